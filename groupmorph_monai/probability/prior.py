"""p(z): a Gaussian whose precision controls the fluid energy of the velocity fields."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FluidPrior"]


@lru_cache(maxsize=32)
def _log_determinant(size: tuple[int, ...], lambda_u: float, lambda_v: float) -> float:
    spectrum = torch.zeros((), dtype=torch.float64)
    for axis, n in enumerate(size):
        line = 2 - 2 * torch.cos(math.pi * torch.arange(n, dtype=torch.float64) / n)
        spectrum = spectrum + line.view([-1 if a == axis else 1 for a in range(len(size))])
    eigenvalues = lambda_v + lambda_u * spectrum
    # With lambda_v = 0 (VoxelMorph's prior) the constant field has no density: the pseudo-determinant leaves it out.
    return eigenvalues[eigenvalues > 1e-12].log().sum().item()


class FluidPrior:
    """``p(z) = N(0, Lambda^-1)`` with ``Lambda = lambda_v I + lambda_u L`` for every component of every field.

    ``L = D - A`` is the Laplacian of the voxel grid with 2*D neighbours inside and fewer at the borders (GroupMorph,
    Eq. 1). The paper prints ``mu^T Lambda^-1 mu`` in Eq. 7 where ``mu^T Lambda mu`` is meant, as its own expansion and
    supplement show; the latter is computed here.

    Args:
        lambda_u: weight of the field's differences between neighbours (viscous fluid energy), > 0.
        lambda_v: weight of its magnitude; 0 gives VoxelMorph-diff's prior.
    """

    def __init__(self, lambda_u: float = 1.0, lambda_v: float = 0.01):
        if lambda_u < 0 or lambda_v < 0 or lambda_u + lambda_v == 0:
            raise ValueError(f"lambda_u, lambda_v: expected numbers >= 0, not both 0, got {lambda_u} and {lambda_v}")
        self.lambda_u, self.lambda_v = float(lambda_u), float(lambda_v)

    def log_determinant(self, size: Sequence[int]) -> float:
        """log |Lambda| for one component on a grid of ``size``, exact: L's eigenvalues are sums of ``2 - 2 cos(pi m /
        n)``."""
        return _log_determinant(tuple(size), self.lambda_u, self.lambda_v)

    def degree(self, like: Tensor) -> Tensor:
        """Diagonal of L on the grid of ``like`` ``(..., D, *S)``: the number of neighbours of every voxel, ``(*S)``."""
        size = like.shape[-like.shape[2] :]
        degree = torch.zeros(size, dtype=like.dtype, device=like.device)
        for axis, n in enumerate(size):
            line = torch.full((n,), 2.0, dtype=like.dtype, device=like.device)
            line[0] -= 1
            line[-1] -= 1
            degree = degree + line.view([-1 if a == axis else 1 for a in range(len(size))])
        return degree

    def energy(self, z: Tensor) -> Tensor:
        """``z^T Lambda z`` of every field component: ``(B, K, D, *S)`` to ``(B, K, D)``."""
        axes = tuple(range(3, z.dim()))
        differences = sum(z.diff(dim=axis).square().sum(dim=axes) for axis in axes)
        return self.lambda_u * differences + self.lambda_v * z.square().sum(dim=axes)

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """``KL(N(mean, exp(log_variance)) || p)``, one number per field: ``(B, K, D, *S)`` twice to ``(B, K)``, summed
        over components and voxels, constants included (GroupMorph, supplement)."""
        axes = tuple(range(3, mean.dim()))
        trace = ((self.lambda_u * self.degree(mean) + self.lambda_v) * log_variance.exp() - log_variance).sum(dim=axes)
        voxels = math.prod(mean.shape[3:])
        return 0.5 * (trace + self.energy(mean) - voxels - self.log_determinant(mean.shape[3:])).sum(dim=2)

    def __call__(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The loss term: KL averaged over voxels, timepoints and batch, summed over components; a scalar.

        Eq. 7 sums it over voxels beside a mean NMI in [0, 1]: taken literally it drowns the images by a factor of the
        number of voxels, and its weight would change with the patch size. The average over timepoints answers the
        likelihood's average over pairs, so that the balance does not change with K either.
        """
        return self.kl(mean, log_variance).mean() / math.prod(mean.shape[3:])
