"""Fields that know their lattice."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from torch import Tensor

from .grid import upsample_field
from .lattice import coarsen

__all__ = ["Field"]


@dataclass(frozen=True, eq=False)
class Field:
    """K velocities or displacements on every ``step``-th voxel of an image, from its first voxel on.

    Args:
        values: ``(B, K, D, *C)`` with ``C = ceil(size / step)``, in voxels of this lattice.
        size: voxels of the image along each axis.
        step: voxels of the image between neighbours of the lattice.
    """

    values: Tensor
    size: Sequence[int]
    step: int = 1

    def __post_init__(self) -> None:
        expected = tuple(-(-n // self.step) for n in self.size)
        if tuple(self.values.shape[3:]) != expected:
            raise ValueError(
                f"values: expected spatial shape {expected} on every {self.step}. voxel of {tuple(self.size)}, got "
                f"{tuple(self.values.shape[3:])}"
            )

    def like(self, values: Tensor) -> "Field":
        """Other values on the same lattice."""
        return Field(values, self.size, self.step)

    def at(self, step: int) -> "Field":
        """The same field on every ``step``-th voxel, interpolated linearly, or smoothed and thinned."""
        if step == self.step:
            return self
        if self.step % step == 0:
            size = [-(-n // step) for n in self.size]
            return Field(upsample_field(self.values, self.step // step, size), self.size, step)
        if step % self.step:
            return self.at(gcd(step, self.step)).at(step)
        factor = step // self.step
        thinned = coarsen(self.values.flatten(1, 2), factor).unflatten(1, self.values.shape[1:3])
        return Field(thinned / factor, self.size, step)

    def on_image(self) -> Tensor:
        """Values on every voxel of the image, ``(B, K, D, *size)``, in its voxels."""
        return self.at(1).values
