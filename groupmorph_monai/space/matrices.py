"""Closed-form operations on small matrices, one per voxel; batched libraries factorise them one by one."""

import torch
from torch import Tensor


def cholesky(matrices: Tensor) -> Tensor:
    """Compute the Cholesky factors ``L L^T = matrices``, one element at a time for all voxels.

    Args:
        matrices: symmetric positive definite, ``(K, D, D, *S)``.

    Returns:
        Lower triangular matrices, ``(K, D, D, *S)``.
    """
    root = torch.zeros_like(matrices)
    for j in range(matrices.shape[1]):
        row = root[:, j, :j]
        root[:, j, j] = (matrices[:, j, j] - row.square().sum(dim=1)).clamp_min(1e-30).sqrt()
        for i in range(j + 1, matrices.shape[1]):
            root[:, i, j] = (matrices[:, i, j] - (root[:, i, :j] * row).sum(dim=1)) / root[:, j, j]
    return root
