"""Refine the network's prediction of z for one series (GroupMorph, Section 6 and the dotted arrow of Fig. 2)."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.storage import IN_MEMORY, Storage
from ..errors import InputError
from ..probability.likelihood import Likelihood
from ..probability.prior import VelocityPrior
from ..space.field import DisplacementField, VelocityField
from .conjugate_gradients import ascent, solve
from .evidence import EVERYWHERE, Displace, Evidence, Level, Pieces, Quadratic
from .posterior_draws import posterior_draws
from .precision import FreeLinearPrecision, LikeliestWeights, Precision
from .schedule import Schedule, Stage
from .static_regions import StaticRegions
from .trust_region import TrustRegion, take_step

logger = logging.getLogger(__name__)
Weights = Sequence[Tensor | float]


class Refinement:
    """Maximise the evidence lower bound of one series over z, starting from the posterior mean, by Gauss-Newton steps.
    The network's weights are fixed.

    The optimisation is coarse to fine. Each level smooths and subsamples the images; z lies on every voxel of the
    level, on the finest levels on every ``lattice_voxels``-th voxel of the image or fewer. A step solves ``(H + Lambda)
    d = g - Lambda z`` by conjugate gradients in cosine coordinates, which diagonalise the terms of the prior's
    precision Lambda. The gradient g and the curvature H come from the likelihood's second-order model, so neither the
    warp nor the integration is differentiated: to first order, an update of the velocity moves the warped image like
    the same update of the displacement (log-demons, Vercauteren et al. 2009). Each level starts from the more likely of
    the last level's result and the initial z.

    Args:
        likelihood: likelihood of the warped volumes.
        prior: prior of z. Its weights refer to z on every voxel of the image.
        schedule: levels, and when each of them ends; None for the defaults.
        prior_weights: re-estimates the prior's weights on the finest lattice; None to keep them.
        static_regions: detects static regions next to regions that slide along them; None if there are none.
        storage: where tensors of all K timepoints are kept.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        prior: VelocityPrior,
        schedule: Schedule | None = None,
        prior_weights: LikeliestWeights | None = None,
        static_regions: StaticRegions | None = None,
        storage: Storage = IN_MEMORY,
    ):
        # `eval` makes the likelihood use all voxels, so that the values before and after a step are comparable.
        self.likelihood, self.prior, self.schedule = likelihood.eval(), prior, schedule or Schedule()
        self.prior_weights, self.static_regions, self.storage = prior_weights, static_regions, storage

    @torch.no_grad()
    def __call__(
        self,
        z: VelocityField,
        images: Tensor,
        displacement: Displace,
        evidence: Evidence = EVERYWHERE,
        hypotheses: Sequence[VelocityField] = (),
    ) -> VelocityField:
        """Refine z, ``(B, K, T * D, *C)``. Its mean over K is unchanged, as the images do not determine it.

        Args:
            z: initial value on any lattice. The mean of its T velocities, whose flows are composed, is refined; their
                deviations from it are kept.
            images: ``(B, K, *S)``.
            displacement: maps z to displacements on the same lattice.
            evidence: voxels that count.
            hypotheses: ``(B, K, D, *C)`` each; values that z may take in parts of the volume, such as that of static
                tissue.

        Returns:
            z on the lattice of the last level.

        Raises:
            InputError: If the storage holds a few timepoints at a time but the likelihood couples all.
        """
        self._check_storage()
        refined = []
        for n, values in enumerate(z.values.split(1)):
            pieces, series = Pieces(z.with_values(values)), images[n : n + 1]
            static = [h.with_values(h.values[n : n + 1]) for h in hypotheses] if self.static_regions else []
            shared = self._refine_shared(pieces, static, series, evidence.of_series(n), displacement)
            refined.append(pieces.combine(shared))
        one = refined[0]
        return one if len(refined) == 1 else one.with_values(torch.cat([field.values for field in refined]))

    def check_draws(self, number: int) -> None:
        """Check that the likelihood allows draws from the posterior.

        Raises:
            InputError: If the likelihood's scale, and thus the width of the posterior, is arbitrary.
        """
        if not self.likelihood.calibrated:
            raise InputError(
                f"std_draws (--std): expected 0 with {type(self.likelihood).__name__}, whose scale is arbitrary "
                f"(calibrated = False), got {number}; omit it, or use the default likelihood or --overlay "
                "likelihoods/multi_kernel"
            )

    @torch.no_grad()
    def draws(
        self,
        z: VelocityField,
        images: Tensor,
        displacement: Displace,
        evidence: Evidence = EVERYWHERE,
        number: int = 20,
        seed: int = 0,
    ) -> Iterator[VelocityField]:
        """Draw from a Gaussian approximation of the posterior at a refined z, see `posterior_draws`. The curvature and
        the prior's weights are estimated as in the last step that led to z.

        Args:
            z: refined z of one series, ``(1, K, T * D, *C)``.
            images, displacement, evidence: as in a call.
            number: number of draws.
            seed: random seed.

        Yields:
            Draws, each like ``z``.

        Raises:
            InputError: If no voxel is covered by two timepoints and kept by the mask.
        """
        level, pieces, ddf = Level(images, evidence, 1, z.lattice.step, self.storage), Pieces(z), displacement(z)
        model = level.model(self.likelihood, ddf)
        if model.voxels == 0:
            raise InputError(
                "std_draws (--std): expected voxels that two timepoints cover and the mask keeps, got none; omit "
                "it, or use a wider mask"
            )
        determined = level.without_guide_noise(model, self.likelihood, ddf)
        precision = self._adapted(self._precision(pieces, pieces.shared), pieces.shared, model)
        factor = self.prior_weights.factor if self.prior_weights else 1.0
        for deviation in posterior_draws(model, determined, precision, factor, number, seed):
            yield pieces.combine(pieces.shared.with_values(pieces.shared.values + deviation))

    def _check_storage(self) -> None:
        if self.storage.scans_at_once and self.likelihood.couples_all:
            raise InputError(
                f"scans_at_once: expected null with {type(self.likelihood).__name__}, which compares all scans at "
                f"once, got {self.storage.scans_at_once}; omit it and use fewer scans, or use the default "
                "likelihood"
            )

    def _refine_shared(
        self,
        pieces: Pieces,
        static: Sequence[VelocityField],
        images: Tensor,
        evidence: Evidence,
        displacement: Displace,
    ) -> VelocityField:
        """Refine the mean of the T velocities of one series."""

        def shared_displacement(z: VelocityField) -> DisplacementField:
            return displacement(pieces.combine(z))

        initial, stages = pieces.shared, self.schedule.stages(images.shape[2:])
        z, has_static = initial, True
        weights: Weights | None = None
        with tqdm(total=sum(stage.iterations for stage in stages), desc="Refining", leave=False, disable=None) as bar:
            for stage in stages:
                level = Level(images, evidence, stage.factor, stage.step, self.storage)
                # The level before the finest images has already refined z on the same lattice: only static regions
                # that it detected may need to be restored.
                candidates = [z] if z is initial or stage.factor == 1 else [z, initial]
                candidates = [self._resample(candidate, stage.step) for candidate in candidates]
                if has_static or stage.factor > 1:
                    hypotheses = [self._resample(hypothesis, stage.step) for hypothesis in static]
                    z, has_static = self._most_likely(candidates, hypotheses, level, shared_displacement)
                else:
                    (z,) = candidates
                precision = self._precision(pieces, z, weights)
                z, weights = self._refine_level(stage, level, z, precision, shared_displacement, bar)
                logger.info("Refined the motion at %s.", stage.resolution)
        return z

    def _resample(self, z: VelocityField, step: int) -> VelocityField:
        """Compute ``z.at(step)``, chunk by chunk of timepoints."""
        if step == z.lattice.step:
            return z
        values = self.storage.map(lambda part: z.with_values(part).at(step).values, z.values)
        return VelocityField(values, z.lattice.at(step))

    def _most_likely(
        self, candidates: Sequence[VelocityField], static: Sequence[VelocityField], level: Level, displacement: Displace
    ) -> tuple[VelocityField, bool]:
        """Choose the initial z of a level: the most likely candidate, because coarse levels lead away from a good start
        if the series has no coarse structure, with the static regions of the static hypotheses.

        Returns:
            z, and whether any region is static.
        """
        if len(candidates) + len(static) == 1:
            return candidates[0], False
        values, counts = level.log_likelihoods(self.likelihood, [displacement(v) for v in (*candidates, *static)])
        of_candidates, of_static = values.split([len(candidates), len(static)], dim=1)
        best = int(of_candidates.flatten(2).sum(dim=2).argmax())
        if self.static_regions is None:
            return candidates[best], False
        values = torch.cat([of_candidates[:, best : best + 1], of_static], dim=1)
        return self.static_regions.fuse(candidates[best], static, values, counts, level, self.likelihood.unrelated)

    def _refine_level(
        self, stage: Stage, level: Level, z: VelocityField, precision: Precision, displacement: Displace, bar: tqdm
    ) -> tuple[VelocityField, Weights]:
        """Take the steps of one level.

        Each iteration reads three numbers at once, and otherwise never waits for the GPU, on which rejected steps and
        step lengths are handled.

        Returns:
            z and the weights of the prior's terms.
        """
        region = TrustRegion(z)
        for _ in range(stage.iterations):
            before = region.z, precision.weights
            model = level.model(self.likelihood, displacement(z))
            voxels, model = model.voxels, region.accept(z, model, precision)
            if stage.factor <= self.schedule.lattice_voxels:
                precision = self._adapted(precision, region.z, model)
            rhs = ascent(model, precision, region.z.values[0])
            dz = solve(model.damped(region.damping), precision, rhs, self.schedule.conjugate_steps)
            z, length = take_step(region.z, dz, self.storage)
            length_voxels, damping, count = torch.stack([length, region.damping, voxels.to(length)]).tolist()
            # Too little of the volume is covered by two timepoints and kept by the mask.
            if count < stage.least_voxels:
                return before
            bar.update()
            bar.set_postfix(level=stage.factor, step=f"{length_voxels:.3f} voxels")
            if damping < 1 and length_voxels < self.schedule.tolerance * stage.factor:
                break
        return z, precision.weights

    def _precision(self, pieces: Pieces, z: VelocityField, weights: Weights | None = None) -> Precision:
        """Compute the prior's precision of the shared velocity, which is the sum over the T velocities."""
        terms = [pieces.count * t.to(z.values) for t in self.prior.terms(z.lattice.shape, z.lattice.step)]
        kind = FreeLinearPrecision if self.prior.linear_is_free else Precision
        return kind(terms, weights or [1.0] * len(terms))

    def _adapted(self, precision: Precision, z: VelocityField, model: Quadratic) -> Precision:
        """Re-estimate the weights of the prior's terms at z on the finest lattice, for both steps and draws."""
        return self.prior_weights(precision, z.values[0], model) if self.prior_weights else precision
