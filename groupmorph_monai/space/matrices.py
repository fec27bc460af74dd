"""Small matrices, one at every voxel: in closed form, as libraries take them one after the other."""

import torch
from torch import Tensor

__all__ = ["cholesky"]


def cholesky(matrices: Tensor) -> Tensor:
    """Compute the lower triangular L with ``L L^T = matrices``, element by element, each for all voxels at once.

    Args:
        matrices: symmetric and positive definite, ``(K, D, D, *S)``.
    Returns: of the same shape.
    """
    root = torch.zeros_like(matrices)
    for j in range(matrices.shape[1]):
        row = root[:, j, :j]
        root[:, j, j] = (matrices[:, j, j] - row.square().sum(dim=1)).clamp_min(1e-30).sqrt()
        for i in range(j + 1, matrices.shape[1]):
            root[:, i, j] = (matrices[:, i, j] - (root[:, i, :j] * row).sum(dim=1)) / root[:, j, j]
    return root
