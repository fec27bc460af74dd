"""Lattices: coarser voxel grids.

Voxel i of a lattice with step f lies on voxel ``f * i`` of the finer grid, like the outputs of a strided convolution;
the lattice has ``ceil(n / f)`` voxels per axis.
"""

from torch import Tensor

from .filters import gaussian_filter, pad_axis


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
