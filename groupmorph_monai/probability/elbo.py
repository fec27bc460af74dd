"""The training objective."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..space.sampling import full_precision
from .posterior import Posterior
from .prior import Prior
from .surface import SurfaceDistance


class NegativeELBO(nn.Module):
    """Negative evidence lower bound of one draw (GroupMorph, Eq. 7): ``-likelihood(warped) + kl_weight * KL(q || p)``.

    Args:
        likelihood: maps warped volumes ``(B, K, *S)``, and where they are valid, to a scalar log likelihood.
        prior: prior of z.
        kl_weight: weight of the KL term; 1 is the paper's objective with the KL averaged over voxels of z and
            timepoints, and summed over components.
        posterior: distribution that ``z_mean`` and ``z_log_variance`` parametrise; None is `Posterior` without
            smoothing.
        surfaces: likelihood of a structure's surfaces, for batches that contain them (VoxelMorph-diff, Eq. 10).
        surface_weight: weight of the surface likelihood.
        symmetry_weight: weight of the asymmetry of exchanged pairs: the mean squared displacement, in voxels, of the
            two maps composed, for results that contain ``round_trip_ddf`` (AVSM, Eq. 10). Affine maps are compared by
            where they move voxels too, not by their matrices (AVSM, Eq. 5).
    """

    def __init__(
        self,
        likelihood: nn.Module,
        prior: Prior,
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
        """Compute the unweighted terms of the objective.

        Args:
            registration: an inferer's result. If it contains ``covered``, only these voxels of ``warped`` count; if
                it contains ``backward_pairs`` and ``backward_covered``, the likelihood is the mean of the likelihoods
                in the common space and in each timepoint's own space. ``times``, ``(B, K)``, are for temporal priors.
            target: the structure's surfaces, in the format of `SurfaceDistance`.

        Returns:
            Scalars ``log_likelihood`` and ``kl``, with surfaces ``surface_log_likelihood``, and for exchanged pairs
            ``asymmetry``.
        """
        likelihood = self.likelihood(registration["warped"], registration.get("covered"))
        if "backward_pairs" in registration:
            likelihood = 0.5 * (
                likelihood + self.likelihood(registration["backward_pairs"], registration["backward_covered"])
            )
        parameters = registration["z_mean"], registration["z_log_variance"]
        terms = {
            "log_likelihood": likelihood,
            "kl": self.prior(*parameters, self.posterior, registration.get("times")),
        }
        if self.surfaces is not None and target is not None:
            surfaces = self.surfaces(registration["ddf"], registration["inverse_ddf"], target)
            terms["surface_log_likelihood"] = surfaces
        if "round_trip_ddf" in registration:
            terms["asymmetry"] = registration["round_trip_ddf"].square().sum(dim=1).mean()
        return terms

    def forward(self, registration: Mapping[str, Tensor], target: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute the scalar loss.

        Args:
            registration: an inferer's result. Where it contains ``steps``, the results of the earlier passes, the loss
                is the sum over all passes (AVSM, Eq. 12).
            target: the label that MONAI's trainer passes: surfaces, or None.
        """
        first, *later = (self._single_pass(step, target) for step in (*registration.get("steps", ()), registration))
        return sum(later, first)

    def _single_pass(self, registration: Mapping[str, Tensor], target: Mapping[str, Tensor] | None) -> Tensor:
        terms = self.terms(registration, target)
        surfaces, asymmetry = (terms.get(name, 0.0) for name in ("surface_log_likelihood", "asymmetry"))
        bound = terms["log_likelihood"] - self.kl_weight * terms["kl"] + self.surface_weight * surfaces
        return self.symmetry_weight * asymmetry - bound
