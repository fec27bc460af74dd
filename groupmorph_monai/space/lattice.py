"""Lattices: coarser voxel grids.

Voxel i of a lattice with step f lies on voxel ``f * i`` of the finer grid, like the outputs of a strided convolution;
the lattice has ``ceil(n / f)`` voxels per axis.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .filters import gaussian_filter, pad_axis
from .grid import Grid


@dataclass(frozen=True)
class Lattice:
    """Every ``step``-th voxel of an image along each axis, starting at its first voxel.

    Args:
        size: size of the image, in voxels.
        step: image voxels between lattice voxels.

    Raises:
        ValueError: If the step is less than 1.
    """

    size: tuple[int, ...]
    step: int = 1

    def __post_init__(self) -> None:
        if self.step < 1:
            raise ValueError(f"step: expected 1 or more, got {self.step}")
        object.__setattr__(self, "size", tuple(int(n) for n in self.size))

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of lattice voxels along each axis."""
        return tuple(-(-n // self.step) for n in self.size)

    def at(self, step: int) -> "Lattice":
        """Return the lattice of every ``step``-th voxel of the same image."""
        return Lattice(self.size, step)

    def covering(self) -> "Lattice":
        """Return the lattice with another voxel along each axis whose last image voxel it does not reach."""
        return Lattice(tuple(-(-(n - 1) // self.step) * self.step + 1 for n in self.size), self.step)

    def grid(self, affine: Tensor) -> Grid:
        """Return the grid of the lattice in patient coordinates, for an image with ``affine`` ``(4, 4)``, voxels to RAS
        mm."""
        steps = torch.tensor([self.step, self.step, self.step, 1], dtype=torch.float64)
        return Grid(self.shape, torch.as_tensor(affine).double().cpu() * steps)


def coarsen(images: Tensor, factor: int) -> Tensor:
    """Subsample ``images`` ``(B, K, *S)`` to every ``factor``-th voxel, after Gaussian smoothing with a standard
    deviation of half a step."""
    if factor == 1:
        return images
    lattice = [slice(None)] * 2 + [slice(None, None, factor)] * (images.dim() - 2)
    return gaussian_filter(images, factor / 2)[tuple(lattice)].contiguous()


def restrict(x: Tensor, factor: int) -> Tensor:
    """Apply the adjoint of linear interpolation from the lattice of every ``factor``-th voxel, except at the border:
    distribute each voxel's value to its lattice neighbours by its interpolation weights.

    Args:
        x: ``(N, C, *S)``.
        factor: step of the lattice, in voxels.

    Returns:
        ``(N, C, *ceil(S / factor))``.
    """
    if factor == 1:
        return x
    for axis in range(2, x.dim()):
        n, coarse = x.shape[axis], -(-x.shape[axis] // factor)
        padded = pad_axis(x, axis, factor - 1, coarse * factor - n, mode="constant")
        span = (coarse - 1) * factor + 1
        restricted = x.new_zeros(())
        for shift in range(2 * factor - 1):
            weight = 1 - abs(shift - factor + 1) / factor
            subsampled = padded.narrow(axis, shift, span)[(*[slice(None)] * axis, slice(None, None, factor))]
            restricted = restricted + weight * subsampled
        x = restricted
    return x
