"""Warps and resampling of fields as in `space`, restricted to what TorchScript supports."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["displace", "exponential", "upsampled", "gradient", "half_as_fine"]


def _line(n: int, like: Tensor) -> Tensor:
    """Return the coordinates of ``n`` voxels, from -1 to 1."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.arange(n, dtype=dtype, device=like.device) * (2.0 / (n - 1)) - 1.0


def displace(x: Tensor, u: Tensor) -> Tensor:
    """Compute ``x(p + u(p))``.

    `torch.nn.functional.affine_grid` is not used, as its matrix product rounds coordinates under autocast and TF32.

    Args:
        x: ``(N, C, *S)``.
        u: displacements, ``(N, 3, *S)``, voxels.

    Returns:
        ``(N, C, *S)``, border values outside.
    """
    i, j, k = x.shape[2], x.shape[3], x.shape[4]
    grid = torch.stack(
        [
            _line(k, u).view(1, 1, 1, -1) + u[:, 2] * (2.0 / (k - 1)),
            _line(j, u).view(1, 1, -1, 1) + u[:, 1] * (2.0 / (j - 1)),
            _line(i, u).view(1, -1, 1, 1) + u[:, 0] * (2.0 / (i - 1)),
        ],
        dim=-1,
    )
    return F.grid_sample(x.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=True)


def exponential(z: Tensor, squarings: int) -> Tensor:
    """Integrate velocities ``(N, 3, *S)`` by scaling and squaring."""
    u = z / 2.0**squarings
    for _ in range(squarings):
        u = u + displace(u, u)
    return u


def gradient(x: Tensor) -> Tensor:
    """Compute central differences with replicated borders, ``(N, C, *S)`` to ``(N, C, 3, *S)``."""
    p = F.pad(x, [1] * 6, mode="replicate")
    return 0.5 * torch.stack(
        [
            p[:, :, 2:, 1:-1, 1:-1] - p[:, :, :-2, 1:-1, 1:-1],
            p[:, :, 1:-1, 2:, 1:-1] - p[:, :, 1:-1, :-2, 1:-1],
            p[:, :, 1:-1, 1:-1, 2:] - p[:, :, 1:-1, 1:-1, :-2],
        ],
        dim=2,
    )


def upsampled(z: Tensor, factor: int = 2) -> Tensor:
    """Interpolate a field from a lattice, in voxels of it, to the lattice of ``factor`` times the resolution."""
    size = [factor * (z.shape[axis] - 1) + 1 for axis in (2, 3, 4)]
    fine = F.interpolate(z, size=size, mode="trilinear", align_corners=True)
    return factor * F.pad(fine, [0, factor - 1] * 3, mode="replicate")


def half_as_fine(x: Tensor) -> Tensor:
    """Average ``x`` to the lattice of every second voxel."""
    return F.avg_pool3d(x, 3, stride=2, padding=1, count_include_pad=False)
