"""From z to a transformation: z is a velocity field that one of several solvers integrates, or the displacement
itself."""

import torch
from torch import Tensor
from torchdiffeq import odeint

from .grid import compose, displace, full_precision, voxel_grid

__all__ = [
    "AdaptiveSolver",
    "AffineFlow",
    "Displacement",
    "Euler",
    "Flow",
    "FlowSequence",
    "RungeKutta4",
    "ScalingAndSquaring",
    "StepSequence",
]


class _Joined:
    """How a network that goes on from the map of its last step has z of both."""

    def joined(self, z: Tensor | None, step: Tensor) -> Tensor:
        """z of all steps, from that of the steps so far, or none, and a further one. Fields add up:
        ``exp(z) o exp(step) = exp(z + step)`` to first order (Baker-Campbell-Hausdorff)."""
        return step if z is None else z + step


class Flow(_Joined):
    """``phi(1)`` of ``d phi / dt = z(phi)``, ``phi(0) = id``, for a velocity that does not change with time
    (VoxelMorph-diff, Eq. 1)."""

    def __call__(self, z: Tensor) -> Tensor:
        """``(B, K, D, *S)`` velocity to displacement, both in voxels."""
        raise NotImplementedError

    def inverse(self, z: Tensor) -> Tensor:
        """Displacement of the inverse map, the flow of ``-z``."""
        return self(-z)


def _velocity(z: Tensor, ddf: Tensor) -> Tensor:
    """``z(x + ddf(x))``, both ``(B, K, D, *S)``."""
    return displace(z.flatten(0, 1), ddf.flatten(0, 1)).unflatten(0, z.shape[:2])


class ScalingAndSquaring(Flow):
    """``exp(z)``: the field divided by ``2**steps`` and composed with itself ``steps`` times (GroupMorph, Eq. 8).

    Args:
        steps: squarings.
        midpoint: begin from the velocity in the middle of that first short way, not from the one at its start. Three
            squarings then come closer than seven without, in half the time.
    """

    def __init__(self, steps: int = 7, midpoint: bool = False):
        if steps < 0:
            raise ValueError(f"steps: expected 0 or more, got {steps}")
        self.steps, self.midpoint = steps, midpoint

    @full_precision
    def __call__(self, z: Tensor) -> Tensor:
        ddf = z / 2**self.steps
        if self.midpoint:
            ddf = _velocity(z, ddf / 2) / 2**self.steps
        for _ in range(self.steps):
            ddf = compose(ddf, ddf)
        return ddf


class _Solver(Flow):
    """A flow found by torchdiffeq."""

    def _solve(self, z: Tensor, **options: object) -> Tensor:
        times = torch.linspace(0, 1, 2, dtype=z.dtype, device=z.device)
        return odeint(lambda _, ddf: _velocity(z, ddf), torch.zeros_like(z), times, **options)[-1]


class _FixedSteps(_Solver):
    """A flow found in ``steps`` equal steps of torchdiffeq's ``method``."""

    method: str

    def __init__(self, steps: int):
        if steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {steps}")
        self.steps = steps

    def _grid(self, func: object, y0: Tensor, times: Tensor) -> Tensor:
        return torch.linspace(0, 1, self.steps + 1, dtype=times.dtype, device=times.device)

    @full_precision
    def __call__(self, z: Tensor) -> Tensor:
        return self._solve(z, method=self.method, options={"grid_constructor": self._grid})


class Euler(_FixedSteps):
    """Quadrature: ``steps`` straight steps along the velocity (VoxelMorph-diff, Section 4.4.3)."""

    method = "euler"

    def __init__(self, steps: int = 64):
        super().__init__(steps)


class RungeKutta4(_FixedSteps):
    """Kutta's method of order 4, by the 3/8 rule; a step looks at the velocity four times."""

    method = "rk4"

    def __init__(self, steps: int = 8):
        super().__init__(steps)


class AdaptiveSolver(_Solver):
    """Dormand and Prince's method of order 5 with steps as long as the tolerance allows, by torchdiffeq.

    Args:
        tolerance_voxels: of the root mean square error of a step.
    """

    def __init__(self, tolerance_voxels: float = 1e-3):
        if tolerance_voxels <= 0:
            raise ValueError(f"tolerance_voxels: expected more than 0, got {tolerance_voxels}")
        self.tolerance_voxels = tolerance_voxels

    @full_precision
    def __call__(self, z: Tensor) -> Tensor:
        return self._solve(z, rtol=0.0, atol=self.tolerance_voxels)


class AffineFlow(Flow):
    """``exp(z)`` of a velocity that is an affine function of place, by the matrix exponential: exact, also where it
    leaves the grid. The velocity is read off the first two voxels along every axis."""

    @full_precision
    def __call__(self, z: Tensor) -> Tensor:
        dimensions = z.dim() - 3
        corner = z[(slice(None), slice(None), slice(None), *[slice(2)] * dimensions)]
        origin = corner.flatten(3)[..., 0]
        # With axis d first, the voxel one further along it comes after all 2 ** (D - 1) at its start.
        steps = [corner.movedim(3 + d, 3).flatten(3)[..., 2 ** (dimensions - 1)] - origin for d in range(dimensions)]
        matrix = torch.stack([*steps, origin], dim=-1)  # (B, K, D, D + 1)
        matrix = torch.cat([matrix, torch.zeros_like(matrix[..., :1, :])], dim=-2)
        displaced = torch.linalg.matrix_exp(matrix) - torch.eye(dimensions + 1, dtype=z.dtype, device=z.device)
        grid = voxel_grid(z.shape[3:], z)
        linear = torch.einsum("bkde,e...->bkd...", displaced[..., :dimensions, :dimensions], grid)
        return linear + displaced[..., :dimensions, -1].view(*origin.shape, *[1] * dimensions)


class FlowSequence(_Joined):
    """A velocity that changes with time: pieces of equal length, each stationary, one flow after the other.

    Args:
        flow: of one piece.
        pieces: T; z holds the velocities of all, ``(B, K, T * D, *S)``, the first one's components first. With T = 1
            this is ``flow`` itself.
    """

    def __init__(self, flow: Flow, pieces: int = 3):
        if pieces < 1:
            raise ValueError(f"pieces: expected 1 or more, got {pieces}")
        self.flow, self.pieces = flow, pieces

    def _parts(self, z: Tensor) -> list[Tensor]:
        if z.shape[2] % self.pieces:
            raise ValueError(f"z: expected {self.pieces} fields' components on axis 2, got {z.shape[2]}")
        return [part / self.pieces for part in z.chunk(self.pieces, dim=2)]

    def __call__(self, z: Tensor) -> Tensor:
        """``(B, K, T * D, *S)`` velocities to displacement ``(B, K, D, *S)``, both in voxels."""
        ddf, *rest = (self.flow(part) for part in self._parts(z))
        for after in rest:
            ddf = compose(after, ddf)
        return ddf

    def inverse(self, z: Tensor) -> Tensor:
        """Displacement of the inverse map: the inverse flows, last piece first."""
        ddf, *rest = (self.flow.inverse(part) for part in reversed(self._parts(z)))
        for after in rest:
            ddf = compose(after, ddf)
        return ddf


class StepSequence(FlowSequence):
    """The flows of a network's steps, each from the map of the step before, ``phi_t = phi_(t-1) o exp(v_t)`` (AVSM,
    Eq. 12), where velocities that are added have this to first order.

    Of T steps z holds ``T v_t``, the last one's first, ``(B, K, T * D, *S)``: as of any sequence, a change of all
    pieces moves as far as the same change of one velocity.

    Args:
        flow: of one step.
    """

    def __init__(self, flow: Flow):
        super().__init__(flow, pieces=1)

    def joined(self, z: Tensor | None, step: Tensor) -> Tensor:
        """z of all steps, from that of the steps so far, or none, and the velocity ``(B, K, D, *S)`` of a further
        one."""
        if z is None:
            return step
        taken = z.shape[2] // step.shape[2]
        return (taken + 1) * torch.cat([step, z / taken], dim=2)

    def _parts(self, z: Tensor) -> list[Tensor]:
        number = z.shape[2] // (z.dim() - 3)
        return [part / number for part in z.chunk(number, dim=2)]


class Displacement(_Joined):
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
