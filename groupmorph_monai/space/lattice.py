"""Filters and changes of resolution on voxel grids: windows, Gaussians, coarser lattices, cosine coordinates.
What concerns windows is in terms that TorchScript knows, for the networks that see it.

Voxel i of a lattice of step f lies on voxel ``f * i`` of the finer grid, as the outputs of a strided convolution do;
the lattice has ``ceil(n / f)`` voxels an axis.
"""

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from .grid import full_precision, placed_once

__all__ = [
    "CosineTransform",
    "coarsen",
    "gaussian_filter",
    "gradient",
    "restrict",
    "valid_mean",
    "window_mean",
    "window_moments",
    "window_normalise",
]


def _padded(x: Tensor, axis: int, before: int, after: int, mode: str = "replicate") -> Tensor:
    padding = [0] * (2 * (x.dim() - 2))
    padding[2 * (x.dim() - 1 - axis)], padding[2 * (x.dim() - 1 - axis) + 1] = before, after
    return F.pad(x, padding, mode=mode)


def _weighted_shifts(x: Tensor, axis: int, weights: list[float]) -> Tensor:
    radius, n = len(weights) // 2, x.shape[axis]
    padded = _padded(x, axis, radius, radius)
    total = padded.narrow(axis, 0, n) * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        total = total.add_(padded.narrow(axis, shift, n), alpha=weight)
    return total


def window_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over the cubic window of ``2 * radius + 1`` voxels an axis around every voxel of ``(N, C, *S)``; beyond the
    border stands the border's value. A sum of shifted copies: 4 times as fast on a CPU as ``avg_pool3d``."""
    for axis in range(2, x.dim()):
        x = _weighted_shifts(x, axis, [1 / (2 * radius + 1)] * (2 * radius + 1))
    return x


def valid_mean(x: Tensor, radius: int, valid: Tensor | None = None, share: Tensor | None = None) -> Tensor:
    """`window_mean` of the ``valid`` voxels ``(N, C, *S)``, 1 or 0, or of all; 0 where a window has none. ``share`` is
    ``window_mean(valid, radius)``, if that is known already."""
    if valid is None:
        return window_mean(x, radius)
    if share is None:
        share = window_mean(valid, radius)
    return window_mean(x * valid, radius) / share.clamp_min(1e-6)


def window_moments(
    x: Tensor, radius: int, valid: Tensor | None = None, share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance over the windows of `valid_mean`, each ``(N, C, *S)``."""
    if valid is not None and share is None:
        share = window_mean(valid, radius)
    mean = valid_mean(x, radius, valid, share)
    return mean, (valid_mean(x.square(), radius, valid, share) - mean.square()).clamp_min(0.0)


def window_normalise(x: Tensor, radius: int, least_variance: float, valid: Tensor | None = None) -> Tensor:
    """``(N, C, *S)`` brought to zero mean and unit variance in the window around every voxel: free of local contrast.
    ``least_variance`` adds to that of a window, so that noise alone is not blown up; ``valid`` as in
    `window_moments`."""
    mean, variance = window_moments(x, radius, valid)
    return (x - mean) * (variance + least_variance).rsqrt()


def gaussian_filter(x: Tensor, sigma_voxels: float, radius: int | None = None) -> Tensor:
    """``(N, C, *S)`` smoothed by a Gaussian cut at ``radius`` voxels, or at 3 standard deviations."""
    radius = radius or max(1, math.ceil(3 * sigma_voxels))
    weights = [math.exp(-0.5 * (t / sigma_voxels) ** 2) for t in range(-radius, radius + 1)]
    total = sum(weights)
    for axis in range(2, x.dim()):
        x = _weighted_shifts(x, axis, [w / total for w in weights])
    return x


def coarsen(images: Tensor, factor: int) -> Tensor:
    """``(B, K, *S)`` on the lattice of every ``factor``-th voxel, smoothed before by a Gaussian of half a step."""
    if factor == 1:
        return images
    every = [slice(None)] * 2 + [slice(None, None, factor)] * (images.dim() - 2)
    return gaussian_filter(images, factor / 2)[tuple(every)].contiguous()


def restrict(x: Tensor, factor: int) -> Tensor:
    """Adjoint of linear interpolation from the lattice of every ``factor``-th voxel, up to the border: what a voxel
    carries goes to its lattice neighbours by its weights there. ``(N, C, *S)`` to ``(N, C, *ceil(S / factor))``."""
    if factor == 1:
        return x
    for axis in range(2, x.dim()):
        n, coarse = x.shape[axis], -(-x.shape[axis] // factor)
        padded = _padded(x, axis, factor - 1, coarse * factor - n, mode="constant")
        span = (coarse - 1) * factor + 1
        total = x.new_zeros(())
        for shift in range(2 * factor - 1):
            weight = 1 - abs(shift - factor + 1) / factor
            kept = padded.narrow(axis, shift, span)[(*[slice(None)] * axis, slice(None, None, factor))]
            total = total + weight * kept
        x = total
    return x


def gradient(x: Tensor) -> Tensor:
    """Central differences, one-sided at the border: ``(N, C, *S)`` to ``(N, C, D, *S)``, per voxel."""
    return torch.stack(torch.gradient(x, dim=tuple(range(2, x.dim()))), dim=2)


def _cosines(n: int) -> Tensor:
    m = torch.arange(n, dtype=torch.float64)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * m[:, None] * (2 * m + 1) / (2 * n))
    matrix[0] /= math.sqrt(2)
    return matrix


class CosineTransform:
    """Orthonormal cosine transform (DCT-II) over the last axes, in which the Laplacian of a grid with free borders is
    diagonal. Matrix products: fields are short along every axis, and a product is one call on any device.

    Args:
        size: voxels an axis.
        like: tensor whose dtype and device the matrices take.
        kept: number of coefficients along each axis, those of the lowest frequencies; None keeps all.
    """

    def __init__(self, size: Sequence[int], like: Tensor, kept: Sequence[int] | None = None):
        matrices = [placed_once(_cosines, n, like=like) for n in size]
        self._matrices = [matrix[:k] for matrix, k in zip(matrices, kept or size)]

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., *S)`` to its coefficients, ``(..., *S)`` or ``(..., *kept)``."""
        return self._apply(x, self._matrices)

    def inverse(self, x: Tensor) -> Tensor:
        """Coefficients to ``(..., *S)``; those that are not kept are 0."""
        return self._apply(x, [m.T for m in self._matrices])

    @staticmethod
    @full_precision
    def _apply(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """Multiply the last axes by one matrix each. No axis is moved, which would copy the volume."""
        shape, first = list(x.shape), x.dim() - len(matrices)
        for axis, matrix in reversed(list(enumerate(matrices, start=first))):
            if axis == x.dim() - 1:
                x = x.reshape(-1, shape[axis]) @ matrix.T
            else:
                x = matrix @ x.reshape(-1, shape[axis], prod(shape[axis + 1 :]))
            shape[axis] = len(matrix)
            x = x.reshape(shape)
        return x

    @staticmethod
    def laplacian(size: Sequence[int]) -> Tensor:
        """Eigenvalues of ``L = D - A``, sums over the axes of ``2 - 2 cos(pi m / n)``: ``(*S)``, float64."""
        total = torch.zeros((), dtype=torch.float64)
        for axis, n in enumerate(size):
            line = 2 - 2 * torch.cos(math.pi * torch.arange(n, dtype=torch.float64) / n)
            total = total + line.view([-1 if a == axis else 1 for a in range(len(size))])
        return total

    @staticmethod
    def diagonal(spectrum: Tensor) -> Tensor:
        """Diagonal, ``(*S)``, of the matrix with eigenvalues ``spectrum`` ``(*S)`` in cosine coordinates."""
        return CosineTransform._apply(spectrum, [_cosines(n).square().T.to(spectrum) for n in spectrum.shape])
