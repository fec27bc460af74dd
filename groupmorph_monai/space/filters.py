"""Separable filters on voxel grids: window statistics, Gaussians, central differences. The window functions and the
gradient are TorchScript-compatible, for networks that use them."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str = "replicate") -> Tensor:
    """Pad one axis of ``x`` ``(N, C, *S)`` by ``before`` and ``after`` voxels, in a mode of PyTorch's ``pad``."""
    padding = [0] * (2 * (x.dim() - 2))
    padding[2 * (x.dim() - 1 - axis)], padding[2 * (x.dim() - 1 - axis) + 1] = before, after
    return F.pad(x, padding, mode=mode)


def _weighted_shifts(x: Tensor, axis: int, weights: list[float]) -> Tensor:
    radius, n = len(weights) // 2, x.shape[axis]
    padded = pad_axis(x, axis, radius, radius)
    result = padded.narrow(axis, 0, n) * weights[0]
    for shift, weight in enumerate(weights[1:], start=1):
        result = result.add_(padded.narrow(axis, shift, n), alpha=weight)
    return result


def window_mean(x: Tensor, radius: int) -> Tensor:
    """Compute the mean of ``x`` ``(N, C, *S)`` over the cubic window of ``2 * radius + 1`` voxels per axis around every
    voxel, with replicated borders. Sums shifted copies, 4 times as fast on a CPU as ``avg_pool3d``."""
    for axis in range(2, x.dim()):
        x = _weighted_shifts(x, axis, [1 / (2 * radius + 1)] * (2 * radius + 1))
    return x


def valid_mean(x: Tensor, radius: int, valid: Tensor | None = None, share: Tensor | None = None) -> Tensor:
    """Compute `window_mean` with the weights ``valid`` ``(N, C, *S)``, in [0, 1], or 1 if None; 0 in windows without
    any. ``share`` is ``window_mean(valid, radius)``, if it has been computed before."""
    if valid is None:
        return window_mean(x, radius)
    if share is None:
        share = window_mean(valid, radius)
    return window_mean(x * valid, radius) / share.clamp_min(1e-6)


def surrounded(valid: Tensor) -> Tensor:
    """Compute the smallest of the weights ``valid`` ``(N, C, *S)`` of each voxel and its neighbours."""
    for axis in range(2, valid.dim()):
        padded, n = pad_axis(valid, axis, 1, 1), valid.shape[axis]
        valid = torch.stack([padded.narrow(axis, shift, n) for shift in range(3)]).amin(dim=0)
    return valid


def window_moments(
    x: Tensor, radius: int, valid: Tensor | None = None, share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute mean and variance over the windows of `valid_mean`, each ``(N, C, *S)``."""
    if valid is not None and share is None:
        share = window_mean(valid, radius)
    mean = valid_mean(x, radius, valid, share)
    return mean, (valid_mean(x.square(), radius, valid, share) - mean.square()).clamp_min(0.0)


def window_normalise(x: Tensor, radius: int, least_variance: float, valid: Tensor | None = None) -> Tensor:
    """Normalise ``x`` ``(N, C, *S)`` to zero mean and unit variance in the window around every voxel, which removes
    local contrast.

    Args:
        x: ``(N, C, *S)``.
        radius: radius of the window, in voxels.
        least_variance: added to the variance, to avoid amplifying noise.
        valid: as in `valid_mean`.
    """
    mean, variance = window_moments(x, radius, valid)
    return (x - mean) * (variance + least_variance).rsqrt()


def gaussian_filter(x: Tensor, sigma_voxels: float, radius: int | None = None) -> Tensor:
    """Smooth ``x`` ``(N, C, *S)`` with a Gaussian truncated at ``radius`` voxels, or at 3 standard deviations."""
    radius = radius or max(1, math.ceil(3 * sigma_voxels))
    weights = [math.exp(-0.5 * (t / sigma_voxels) ** 2) for t in range(-radius, radius + 1)]
    for axis in range(2, x.dim()):
        x = _weighted_shifts(x, axis, [w / sum(weights) for w in weights])
    return x


def gradient(x: Tensor) -> Tensor:
    """Compute the gradient per voxel by central differences, one-sided at the border, and 0 along an axis of one voxel:
    ``(N, C, *S)`` to ``(N, C, D, *S)``."""
    slopes: list[Tensor] = []
    for axis in range(2, x.dim()):
        slopes.append(torch.gradient(x, dim=axis)[0] if x.shape[axis] > 1 else torch.zeros_like(x))
    return torch.stack(slopes, dim=2)
