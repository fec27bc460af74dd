"""The training objective."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..space.grid import full_precision
from .posterior import Posterior
from .prior import FluidPrior, UnitGaussian
from .surface import SurfaceDistance

__all__ = ["NegativeELBO"]


class NegativeELBO(nn.Module):
    """Negative evidence lower bound of one draw (GroupMorph, Eq. 7): ``-likelihood(warped) + kl_weight * KL(q || p)``.

    Args:
        likelihood: module from warped volumes ``(B, K, *S)`` to a scalar log likelihood.
        prior: gives the voxel-averaged KL of ``z_mean`` and ``z_log_variance``.
        kl_weight: 1 is the paper's objective with the KL averaged over voxels.
        posterior: what ``z_mean`` and ``z_log_variance`` are of; none is one that does not smooth.
        surfaces: likelihood of a structure's surfaces, for batches that hold them (VoxelMorph-diff, Eq. 10).
        surface_weight: of it.
        symmetry_weight: of the mean squared distance, in voxels, from where both maps of an exchanged pair lead back
            to, for results that hold ``there_and_back`` (AVSM, Eq. 10; of affine maps, by the places that they move
            and not by the matrices of Eq. 5).
    """

    def __init__(
        self,
        likelihood: nn.Module,
        prior: FluidPrior | UnitGaussian,
        kl_weight: float = 1.0,
        posterior: Posterior | None = None,
        surfaces: SurfaceDistance | None = None,
        surface_weight: float = 1.0,
        symmetry_weight: float = 0.0,
    ):
        super().__init__()
        self.likelihood, self.prior, self.kl_weight = likelihood, prior, kl_weight
        self.posterior = posterior or Posterior()
        self.surfaces, self.surface_weight = surfaces, surface_weight
        self.symmetry_weight = symmetry_weight

    @full_precision
    def terms(
        self, registration: Mapping[str, Tensor], target: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``log_likelihood``, ``kl``, where there are surfaces ``surface_log_likelihood``, and for exchanged pairs
        ``asymmetry``, of an inferer's result, scalars, before their weights. Where the result holds ``returned`` the
        likelihood is the mean of that in the common space and in every timepoint's own."""
        likelihood = self.likelihood(registration["warped"])
        if "returned" in registration:
            likelihood = 0.5 * (likelihood + self.likelihood(registration["returned"]))
        terms = {
            "log_likelihood": likelihood,
            "kl": self.prior(registration["z_mean"], registration["z_log_variance"], self.posterior),
        }
        if self.surfaces is not None and target is not None:
            surfaces = self.surfaces(registration["ddf"], registration["inverse_ddf"], target)
            terms["surface_log_likelihood"] = surfaces
        if "there_and_back" in registration:
            terms["asymmetry"] = registration["there_and_back"].square().sum(dim=1).mean()
        return terms

    def forward(self, registration: Mapping[str, Tensor], target: Mapping[str, Tensor] | None = None) -> Tensor:
        """Scalar loss. ``target`` is what MONAI's trainer passes for a label: the surfaces, or nothing. Where the
        registration holds ``steps``, those after earlier passes, it is the sum over all (AVSM, Eq. 12)."""
        first, *later = (self._of_one(step, target) for step in (*registration.get("steps", ()), registration))
        return sum(later, first)

    def _of_one(self, registration: Mapping[str, Tensor], target: Mapping[str, Tensor] | None) -> Tensor:
        terms = self.terms(registration, target)
        surfaces, asymmetry = (terms.get(name, 0.0) for name in ("surface_log_likelihood", "asymmetry"))
        bound = terms["log_likelihood"] - self.kl_weight * terms["kl"] + self.surface_weight * surfaces
        return self.symmetry_weight * asymmetry - bound
