"""Vector fields with their lattice."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from torch import Tensor

from .lattice import coarsen
from .warping import upsample_field


@dataclass(frozen=True, eq=False)
class Field:
    """K velocities or displacements on every ``step``-th voxel of an image, starting at its first voxel.

    Args:
        values: ``(B, K, D, *C)`` with ``C = ceil(size / step)``, in voxels of the lattice.
        size: size of the image, in voxels.
        step: image voxels between lattice voxels.
    """

    values: Tensor
    size: Sequence[int]
    step: int = 1

    def __post_init__(self) -> None:
        expected = tuple(-(-n // self.step) for n in self.size)
        if tuple(self.values.shape[3:]) != expected:
            raise ValueError(
                f"values: expected spatial shape {expected} for size {tuple(self.size)} and step {self.step}, got "
                f"{tuple(self.values.shape[3:])}"
            )

    def with_values(self, values: Tensor) -> "Field":
        """Return a field with other values on the same lattice."""
        return Field(values, self.size, self.step)

    def at(self, step: int) -> "Field":
        """Resample the field to every ``step``-th voxel: linear interpolation, or smoothing and subsampling.

        Vectors are rescaled to voxels of the new lattice.
        """
        if step == self.step:
            return self
        if self.step % step == 0:
            size = [-(-n // step) for n in self.size]
            return Field(upsample_field(self.values, self.step // step, size), self.size, step)
        if step % self.step:
            return self.at(gcd(step, self.step)).at(step)
        factor = step // self.step
        coarse = coarsen(self.values.flatten(1, 2), factor).unflatten(1, self.values.shape[1:3])
        return Field(coarse / factor, self.size, step)

    def timepoints(self, chunk: slice) -> "Field":
        """Return the fields of a chunk of timepoints."""
        return self.with_values(self.values[:, chunk])

    def on_image(self, every: int = 1) -> Tensor:
        """Return the values on every ``every``-th voxel of the image, ``(B, K, D, *ceil(size / every))``, in image
        voxels."""
        return upsample_field(self.values, self.step, self.size, every)


def as_field(ddf: Tensor | Field) -> Field:
    """Convert displacements of one series on every voxel, ``(K, D, *S)``, to a field ``(1, K, D, *S)``."""
    return ddf if isinstance(ddf, Field) else Field(ddf[None], ddf.shape[2:])
