"""Structural likelihoods of a group: low-rank volumes and aligned edges."""

import torch
from torch import Tensor

from ..space.filters import gradient, surrounded
from ..space.sampling import full_precision
from .likelihood import Likelihood


class LowRank(Likelihood):
    """Low rank of the group, ``-sum_i i lambda_i / K``, where lambda_1 >= lambda_2 >= ... are the eigenvalues of the
    volumes' K x K correlation matrix: few eigenimages explain aligned volumes (Huizinga et al. 2016, Med Image Anal
    29:65, their second PCA metric; Elastix's PCAMetric2).
    """

    def __init__(self) -> None:
        super().__init__(stiffness=30.0)  # a correlation of whole volumes is on a scale far from nats per voxel

    @full_precision
    def forward(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        values = warped.flatten(2)
        if valid is None:
            values = values - values.mean(dim=2, keepdim=True)
        else:
            valid = valid.flatten(2)
            mean = (values * valid).sum(dim=2, keepdim=True) / valid.sum(dim=2, keepdim=True).clamp_min(1)
            values = (values - mean) * valid
        values = values / values.norm(dim=2, keepdim=True).clamp_min(1e-6)
        eigenvalues = torch.linalg.eigvalsh(values @ values.mT)  # ascending
        timepoints = warped.shape[1]
        rank = torch.arange(timepoints, 0, -1, dtype=values.dtype, device=values.device)
        return -(rank * eigenvalues).sum(dim=1).mean() / timepoints


class NormalisedGradient(Likelihood):
    """Normalised gradient fields (Haber and Modersitzki 2006): the mean over voxels and ordered pairs of timepoints, i
    = j included, of ``<n_i, n_j>^2`` with ``n = grad x / sqrt(|grad x|^2 + edge^2)``, which is invariant to the sign of
    the contrast.

    The mean over pairs is computed as the squared Frobenius norm of the mean over K of ``n n^T``.

    Args:
        edge: gradient magnitude below which edges are suppressed, intensities in [0, 1] per voxel.
    """

    def __init__(self, edge: float = 0.02):
        super().__init__()
        self.edge = edge

    @full_precision
    def forward(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        slope = gradient(warped)
        if valid is not None:
            slope = slope * surrounded(valid.to(slope)).unsqueeze(2)
        normal = slope * (slope.square().sum(dim=2, keepdim=True) + self.edge**2).rsqrt()
        mean = torch.einsum("bkd...,bke...->bde...", normal, normal) / warped.shape[1]
        return mean.square().sum(dim=(1, 2)).mean()
