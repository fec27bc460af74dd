"""Prior of velocities that vary smoothly in time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..space.cosine_transform import CosineTransform
from ..space.sampling import placed_once
from .posterior import Posterior
from .prior import FluidPrior, log_pseudo_determinant

_SHORTEST_INTERVAL = 0.1  # of the mean interval of a series; shorter ones would fix the motion between two timepoints


class TemporalPrior(FluidPrior):
    """`FluidPrior` with temporal smoothness, for series in temporal order (4D smoothness, GroupMorph, Section 6).

    The precision is ``Lambda + lambda_t L_t``, where L_t is the weighted Laplacian of the chain of K timepoints. The
    weight of the difference between consecutive timepoints is the mean interval of the series divided by theirs, so
    that the variance of the difference is proportional to the time between them.

    Args:
        lambda_t: weight of the squared differences between the fields of timepoints k and k + 1 a mean interval apart.
        **weights: weights of `FluidPrior`.
    """

    def __init__(self, lambda_t: float, **weights: float):
        super().__init__(**weights)
        if lambda_t < 0:
            raise ValueError(f"lambda_t: expected 0 or more, got {lambda_t}")
        self.lambda_t = float(lambda_t)

    def energy(self, z: Tensor, times: Tensor | None = None) -> Tensor:
        """Compute ``z^T (Lambda + lambda_t L_t) z`` of a series, divided equally among its timepoints: ``(B, K, D,
        *S)`` to ``(B, K, D)``; times as in `Prior`."""
        weights = z.new_tensor(_interval_weights(z.shape[:2], times)).unsqueeze(2)
        between = weights * z.diff(dim=1).square().flatten(3).sum(dim=3)
        total = super().energy(z).sum(dim=1) + self.lambda_t * between.sum(dim=1)
        return (total / z.shape[1]).unsqueeze(1).expand(-1, z.shape[1], -1)

    def kl(
        self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Compute ``KL(q || p)`` of the series, divided equally among its timepoints; arguments as in
        `FluidPrior.kl`."""
        size, smoothing_voxels = mean.shape[3:], (posterior or Posterior()).smoothing_voxels
        weights = _interval_weights(mean.shape[:2], times)
        diagonal, constant = (
            torch.stack([placed_once(make, tuple(w), size, smoothing_voxels, like=mean) for w in weights])
            for make in (self._diagonal_of_series, self._constant_of_series)
        )
        trace = (diagonal.unsqueeze(2) * log_variance.exp() - log_variance).flatten(3).sum(dim=3)
        energy = self.energy(mean, times)
        return 0.5 * (trace.mean(dim=1, keepdim=True) + energy - constant.view(-1, 1, 1)).sum(dim=2)

    def _diagonal_of_series(self, weights: Sequence[float], size: Sequence[int], smoothing_voxels: float) -> Tensor:
        """Compute the diagonal of ``C^T (Lambda + lambda_t L_t) C``, ``(K, *S)``."""
        smoothing = CosineTransform.diagonal(Posterior(smoothing_voxels).spectrum(size).square())
        degrees = _chain_laplacian(weights).diagonal().view(-1, *[1] * len(size))
        return self._diagonal(size, smoothing_voxels) + self.lambda_t * degrees * smoothing

    def _constant_of_series(self, weights: Sequence[float], size: Sequence[int], smoothing_voxels: float) -> Tensor:
        """Compute the constant of `FluidPrior`'s KL for a series, divided equally among its timepoints."""
        temporal = torch.linalg.eigvalsh(_chain_laplacian(weights)).clamp_min(0).view(-1, *[1] * len(size))
        log_determinant = log_pseudo_determinant(self.spectrum(size) + self.lambda_t * temporal) / len(temporal)
        log_smoothing = Posterior(smoothing_voxels).spectrum(size).log().sum().item()
        return torch.tensor(math.prod(size) + log_determinant + 2 * log_smoothing, dtype=torch.float64)


def _interval_weights(shape: Sequence[int], times: Tensor | None) -> list[list[float]]:
    """Divide the mean interval of each series by its intervals: ``(B, K)`` to ``(B, K - 1)``."""
    batch, timepoints = shape
    if times is None:
        times = torch.arange(timepoints).expand(batch, -1)
    intervals = times.double().diff(dim=1)
    mean = intervals.mean(dim=1, keepdim=True)
    # Equal times, such as those of the phases of one scan, are no order in time.
    relative = torch.where(mean > 0, intervals / mean, 1.0).clamp_min(_SHORTEST_INTERVAL)
    return relative.reciprocal().tolist()


def _chain_laplacian(weights: Sequence[float]) -> Tensor:
    """Return the Laplacian of a chain whose edges have ``weights``, ``(K, K)`` float64."""
    incidence = torch.eye(len(weights) + 1, dtype=torch.float64).diff(dim=0)
    return incidence.T @ (torch.tensor(weights, dtype=torch.float64).unsqueeze(1) * incidence)
