"""The training objective."""

from collections.abc import Mapping

from torch import Tensor, nn

from .posterior import Posterior
from .prior import FluidPrior

__all__ = ["NegativeELBO"]


class NegativeELBO(nn.Module):
    """Negative evidence lower bound of one draw (GroupMorph, Eq. 7): ``-likelihood(warped) + kl_weight * KL(q || p)``.

    Args:
        likelihood: module from warped volumes ``(B, K, *S)`` to a scalar log likelihood.
        prior: gives the voxel-averaged KL of ``z_mean`` and ``z_log_variance``.
        kl_weight: 1 is the paper's objective with the KL averaged over voxels.
        posterior: what ``z_mean`` and ``z_log_variance`` are of; none is one that does not smooth.
    """

    def __init__(
        self, likelihood: nn.Module, prior: FluidPrior, kl_weight: float = 1.0, posterior: Posterior | None = None
    ):
        super().__init__()
        self.likelihood, self.prior, self.kl_weight = likelihood, prior, kl_weight
        self.posterior = posterior or Posterior()

    def terms(self, registration: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``log_likelihood`` and ``kl`` (before its weight) of an inferer's result, scalars. Where the result holds
        ``returned`` the likelihood is the mean of that in the common space and in every timepoint's own."""
        likelihood = self.likelihood(registration["warped"])
        if "returned" in registration:
            likelihood = 0.5 * (likelihood + self.likelihood(registration["returned"]))
        return {
            "log_likelihood": likelihood,
            "kl": self.prior(registration["z_mean"], registration["z_log_variance"], self.posterior),
        }

    def forward(self, registration: Mapping[str, Tensor], target: None = None) -> Tensor:
        """Scalar loss. ``target`` is what MONAI's trainer passes for a label: there is none."""
        terms = self.terms(registration)
        return self.kl_weight * terms["kl"] - terms["log_likelihood"]
