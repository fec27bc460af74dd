"""Cosine transform, which diagonalises the Laplacian of a voxel grid."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .chunks import total
from .sampling import full_precision, multiply_axes, placed_once


def cosines(n: int, device: torch.device | None = None) -> Tensor:
    """Return the orthonormal DCT-II matrix, ``(n, n)`` float64, a cosine per row."""
    m = torch.arange(n, dtype=torch.float64, device=device)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * m[:, None] * (2 * m + 1) / (2 * n))
    matrix[0] /= math.sqrt(2)
    return matrix


def line_laplacian(n: int, device: torch.device | None = None) -> Tensor:
    """Return the eigenvalues of ``L = D - A`` of a line of ``n`` voxels, ``2 - 2 cos(pi m / n)``, ``(n,)`` float64."""
    return 2.0 - 2.0 * torch.cos(math.pi * torch.arange(n, dtype=torch.float64, device=device) / n)


class CosineTransform:
    """Orthonormal cosine transform (DCT-II) over the last axes, which diagonalises the Laplacian of a grid with free
    borders. Implemented as matrix products: fields are short along each axis, and a product is one call on any device.

    Args:
        size: size of the grid, in voxels.
        like: tensor with the dtype and device of the matrices.
    """

    def __init__(self, size: Sequence[int], like: Tensor):
        self._matrices = [placed_once(cosines, n, like=like) for n in size]

    def __call__(self, x: Tensor) -> Tensor:
        """Transform ``x`` ``(..., *S)`` to coefficients of the same shape."""
        return self._apply(x, self._matrices)

    def inverse(self, x: Tensor) -> Tensor:
        """Transform coefficients ``(..., *S)`` back."""
        return self._apply(x, [m.T for m in self._matrices])

    @staticmethod
    @full_precision
    def _apply(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        return multiply_axes(x, matrices)

    @staticmethod
    def laplacian(size: Sequence[int]) -> Tensor:
        """Return the eigenvalues of ``L = D - A`` (GroupMorph, Eq. 1), sums of those of lines along the axes, ``(*S)``
        float64."""
        return total(torch.meshgrid([line_laplacian(n) for n in size], indexing="ij"))

    @staticmethod
    def diagonal(spectrum: Tensor) -> Tensor:
        """Compute the diagonal, ``(*S)``, of the matrix whose eigenvalues in cosine coordinates are ``spectrum``,
        ``(*S)``."""
        return CosineTransform._apply(spectrum, [cosines(n).square().T.to(spectrum) for n in spectrum.shape])
