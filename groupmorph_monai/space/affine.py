"""Affine maps: their coordinates, their logarithms, and the velocities of their flows."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .field import VelocityField
from .sampling import full_precision, voxel_grid


def affine_in_voxels(maps: Tensor, grid: Tensor) -> Tensor:
    """Convert affine maps from RAS mm to voxel coordinates.

    Args:
        maps: ``(..., 4, 4)``, RAS mm.
        grid: voxels to RAS mm, ``(4, 4)``, or one per map.

    Returns:
        ``(..., 4, 4)`` float64 on the CPU.
    """
    maps, grid = maps.cpu().double(), grid.cpu().double()
    in_voxels = torch.linalg.inv(grid) @ maps @ grid
    identity = torch.eye(4, dtype=torch.float64)
    # Keep identities exact: a rounding error would cause interpolation.
    return torch.where((maps == identity).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True), identity, in_voxels)


def affine_logarithms(components: Tensor) -> Tensor:
    """Arrange the components of logarithms of affine maps as matrices.

    Args:
        components: ``(..., 12)``: a 3 x 3 matrix, row by row, then a translation.

    Returns:
        ``(..., 4, 4)``, whose last row is 0.
    """
    linear, translation = components[..., :9].unflatten(-1, (3, 3)), components[..., 9:].unsqueeze(-1)
    return pad(torch.cat([linear, translation], dim=-1), (0, 0, 0, 1))


def affine_velocity(logarithms: Tensor, like: VelocityField) -> VelocityField:
    """Compute the stationary velocities whose flows are affine maps.

    Args:
        logarithms: logarithms of the maps, ``(K, 4, 4)``, voxel coordinates of the image.
        like: field on the lattice of the result.

    Returns:
        Velocities ``(1, K, 3, *C)``.
    """
    values, step = like.values, like.lattice.step
    points = step * voxel_grid(like.lattice.shape, values)
    return like.with_values(torch.stack([apply_affine(m.to(values), points) for m in logarithms])[None] / step)


@full_precision
def apply_affine(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply an affine ``matrix`` ``(4, 4)`` to ``points`` ``(3, *S)``."""
    return torch.einsum("de,eijk->dijk", matrix[:3, :3], points) + matrix[:3, 3].view(3, 1, 1, 1)
