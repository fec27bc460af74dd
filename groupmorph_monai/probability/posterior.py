"""q(z given x): a Gaussian with a dense mean and a diagonal covariance (GroupMorph, Eq. 6)."""

import torch
from torch import Tensor

__all__ = ["draw", "split_parameters"]


def split_parameters(parameters: Tensor, timepoints: int) -> tuple[Tensor, Tensor]:
    """A network's one tensor ``(B, 2*K*D, *S)`` as mean and log variance, each ``(B, K, D, *S)``."""
    dimensions = parameters.dim() - 2
    mean, log_variance = parameters.unflatten(1, (2, timepoints, dimensions)).unbind(1)
    return mean, log_variance


def draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    """One draw ``z = mu + sqrt(Sigma) e``, e ~ N(0, I), by the reparameterisation trick.

    The paper prints ``mu + Sigma Sigma^T e``; the covariance of that is not Sigma, so the square root is computed.
    """
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
