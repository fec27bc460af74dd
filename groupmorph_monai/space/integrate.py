"""From z to a transformation: z is a velocity field (scaling and squaring) or the displacement itself."""

from torch import Tensor

from .grid import compose

__all__ = ["Displacement", "ScalingAndSquaring"]


class ScalingAndSquaring:
    """Diffeomorphic variant: z is a stationary velocity field, its displacement ``exp(z) - id`` (GroupMorph, Eq. 8).

    Args:
        steps: squarings; the field is divided by ``2**steps`` and composed with itself that many times.
    """

    def __init__(self, steps: int = 7):
        if steps < 0:
            raise ValueError(f"steps: expected 0 or more squarings, got {steps}")
        self.steps = steps

    def __call__(self, z: Tensor) -> Tensor:
        """``(B, K, D, *S)`` velocity to displacement, both in voxels."""
        ddf = z / 2**self.steps
        for _ in range(self.steps):
            ddf = compose(ddf, ddf)
        return ddf

    def inverse(self, z: Tensor) -> Tensor:
        """Displacement of the inverse map, ``exp(-z) - id``."""
        return self(-z)


class Displacement:
    """Displacement variant: z is the displacement field itself. Nothing keeps it from folding.

    Args:
        iterations: of the fixed point ``w(x) = -z(x + w(x))`` (Chen et al. 2008, Med Phys 35:81) for the inverse, which
            converges where the displacement's Lipschitz constant is below 1.
    """

    def __init__(self, iterations: int = 20):
        self.iterations = iterations

    def __call__(self, z: Tensor) -> Tensor:
        return z

    def inverse(self, z: Tensor) -> Tensor:
        ddf = -z
        for _ in range(self.iterations):
            ddf = compose(z, ddf).sub(ddf).neg()
        return ddf
