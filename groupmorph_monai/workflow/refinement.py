"""Refine the network's prediction of z for one series (GroupMorph, Section 6 and the dotted arrow of Fig. 2)."""

import logging
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.storage import IN_MEMORY, Storage
from ..errors import InputError
from ..probability.likelihood import Likelihood
from ..probability.prior import FluidPrior, MomentumNorm
from ..space.field import Field
from ..space.lattice import CosineTransform, gaussian_filter
from ..space.matrices import cholesky
from .conjugate_gradients import ascent, solve
from .evidence import EVERYWHERE, Evidence, Level, Pieces, Quadratic
from .precision import Precision, likeliest_weights

__all__ = ["Refinement"]

logger = logging.getLogger(__name__)
Displace = Callable[[Tensor], Tensor]  # maps values of z to displacements on the same lattice
_NEIGHBOURHOOD_VOXELS = 2.0  # standard deviation of the Gaussian over which log likelihoods are compared
_CLEAR_NATS = 0.02  # difference of log likelihood per voxel and timepoint
_LEAST_NEIGHBOURHOOD_SHARE = 0.1  # of a neighbourhood's voxels that count
_LEAST_STATIONARY_SHARE = 0.01  # of all voxels; fewer occur by chance
_LEAST_VOXELS = 8**3  # that count on a level with coarsened images
_DRAW_STEPS = 32  # conjugate gradient steps per draw, whatever `conjugate_steps` is
# Factor on draws, because errors have longer tails than the Gaussian. With 1.3, on the phantoms 930 to 935 of the
# `reliability` suite, the 50 % interval held 50 to 56 % of the errors, but the 90 % interval only 84 to 88 %.
_TAILS = 1.4


class Refinement:
    """Maximise the evidence lower bound of one series over z, starting from the posterior mean, by Gauss-Newton steps.
    The network's weights are fixed.

    The optimisation is coarse to fine. Each level smooths and subsamples the images; z lies on every voxel of the
    level, on the finest levels on every ``lattice_voxels``-th voxel of the image. A step solves ``(H + Lambda) d = g -
    Lambda z`` by conjugate gradients in cosine coordinates, which diagonalise the terms of the prior's precision
    Lambda. The gradient g and the curvature H come from the likelihood's second-order model, so neither the warp nor
    the integration is differentiated: to first order, an update of the velocity moves the warped image like the same
    update of the displacement (log-demons, Vercauteren et al. 2009). Each level starts from the more likely of the last
    level's result and the initial z and, if ``stationary``, from a static hypothesis wherever that is more likely.

    With ``adapt_prior``, the weight of each term of the prior is re-estimated from the series on the finest lattice
    (`likeliest_weights`) and multiplied by ``prior_factor``.

    Args:
        likelihood: likelihood of the warped volumes.
        prior: prior of z. Its weights refer to z on every voxel of the image.
        levels: subsampling factors of the images, coarse to fine. Levels with fewer than 8 samples along an axis are
            skipped, unless their factor is at most ``lattice_voxels``.
        iterations: maximum number of steps on each level.
        tolerance: stop a level when the mean step is shorter than this fraction of the level's voxel.
        lattice_voxels: spacing of z on the finest lattice, in voxels of the image.
        adapt_prior: re-estimate the prior's weights.
        prior_factor: factor on the estimated weights. Values above 1 keep spatially correlated noise from being
            registered as motion, and preserve the volume of lesions better.
        conjugate_steps: maximum number of conjugate gradient steps per iteration.
        stationary: allow static regions beside regions that slide along them.
        storage: where tensors of all K timepoints are kept.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        prior: FluidPrior | MomentumNorm,
        levels: Sequence[int] = (16, 8, 4, 2, 1),
        iterations: Sequence[int] = (8, 6, 4, 6, 6),
        tolerance: float = 0.02,
        lattice_voxels: int = 2,
        adapt_prior: bool = True,
        prior_factor: float = 1.0,
        conjugate_steps: int = 16,
        stationary: bool = True,
        storage: Storage = IN_MEMORY,
    ):
        if len(levels) != len(iterations):
            raise ValueError(f"iterations: expected one number for each of the levels {levels}, got {iterations}")
        # `eval` makes the likelihood use all voxels, so that the values before and after a step are comparable.
        self.likelihood, self.prior = likelihood.eval(), prior
        self.levels, self.iterations = tuple(levels), tuple(iterations)
        self.tolerance, self.lattice_voxels = tolerance, lattice_voxels
        if prior_factor <= 0:
            raise ValueError(f"prior_factor: expected more than 0, got {prior_factor}")
        self.adapt_prior, self.prior_factor = adapt_prior, prior_factor if adapt_prior else 1.0
        self.conjugate_steps, self.stationary, self.storage = conjugate_steps, stationary, storage

    @torch.no_grad()
    def __call__(
        self,
        z: Field,
        images: Tensor,
        displacement: Displace,
        evidence: Evidence = EVERYWHERE,
        hypotheses: Sequence[Field] = (),
    ) -> Field:
        """Refine z, ``(B, K, T * D, *C)``. Its mean over K is unchanged, as the images do not determine it.

        Args:
            z: initial value on any lattice. The mean of its T velocities, whose flows are composed, is refined; their
                deviations from it are kept.
            images: ``(B, K, *S)``.
            displacement: maps values of z to displacements on the same lattice, in voxels of the lattice.
            evidence: voxels that count.
            hypotheses: ``(B, K, D, *C)`` each; values that z may take in parts of the volume, such as that of static
                tissue.

        Returns:
            z on every ``lattice_voxels``-th voxel.

        Raises:
            InputError: If the storage holds a few timepoints at a time but the likelihood couples all.
        """
        self._check_storage()
        refined = []
        for n, values in enumerate(z.values.split(1)):
            pieces, series = Pieces(z.like(values)), images[n : n + 1]
            static = [h.like(h.values[n : n + 1]) for h in hypotheses] if self.stationary else []
            shared = self._refine_shared(pieces, static, series, evidence.of_series(n), displacement)
            refined.append(pieces.combine(shared))
        return refined[0] if len(refined) == 1 else refined[0].like(torch.cat([field.values for field in refined]))

    def _check_storage(self) -> None:
        if self.storage.scans_at_once and self.likelihood.couples_all:
            raise InputError(
                f"scans_at_once: expected null with {type(self.likelihood).__name__}, which compares all scans at "
                f"once, got {self.storage.scans_at_once}; leave it out and give fewer scans, or take the default "
                "likelihood"
            )

    def _resample(self, z: Field, step: int) -> Field:
        """Compute ``z.at(step)``, chunk by chunk of timepoints."""
        if step == z.step:
            return z
        return Field(self.storage.map(lambda v: z.like(v).at(step).values, z.values), z.size, step)

    def schedule(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """Return the subsampling factor and the maximum number of iterations of each level for images of ``size``."""
        levels = zip(self.levels, self.iterations)
        return [(f, n) for f, n in levels if f <= self.lattice_voxels or min(size) >= 8 * f]

    def _refine_shared(
        self, pieces: Pieces, static: Sequence[Field], images: Tensor, evidence: Evidence, displacement: Displace
    ) -> Field:
        """Refine the mean of the T velocities of one series."""

        def shared_displacement(z: Field) -> Tensor:
            return displacement(pieces.combine(z).values)

        z, schedule = pieces.shared, self.schedule(images.shape[2:])
        initial, has_static = z, True
        weights: Sequence[Tensor | float] | None = None
        with tqdm(total=sum(n for _, n in schedule), desc="Refining", leave=False, disable=None) as bar:
            for factor, iterations in schedule:
                step = max(factor, self.lattice_voxels)
                level = Level(
                    images, evidence.coverage, evidence.mask, evidence.mask_timepoint, factor, step, self.storage
                )
                # The level before the finest images has already refined z on the same lattice: only static regions
                # that it detected may need to be restored.
                with_initial = factor > 1 and z is not initial
                candidates = [self._resample(v, step) for v in ((z, initial) if with_initial else (z,))]
                z = candidates[0]
                if has_static or factor > 1:
                    z, has_static = self._restart(
                        candidates, [self._resample(h, step) for h in static], level, shared_displacement
                    )
                min_voxels = _LEAST_VOXELS if factor > 1 else 1
                z, weights = self._refine_level(
                    level, z, weights, pieces, shared_displacement, (iterations, min_voxels), bar
                )
                logger.info("Refined the motion in images of every n-th voxel, n = %d.", factor)
        return z

    def _refine_level(
        self,
        level: Level,
        z: Field,
        weights: Sequence[Tensor | float] | None,
        pieces: Pieces,
        displacement: Callable[[Field], Tensor],
        limits: tuple[int, int],
        bar: tqdm,
    ) -> tuple[Field, Sequence[Tensor | float] | None]:
        """Take the steps of one level.

        Each iteration reads three numbers at once, and otherwise never waits for the GPU, on which rejected steps and
        step lengths are handled.

        Args:
            weights: weights of the prior's terms; None is 1 for each.
            pieces: T velocities of which z is the mean.
            displacement: maps z to displacements on its lattice.
            limits: maximum number of iterations, and minimum number of voxels that count: with fewer, the level ends.

        Returns:
            z and the weights.
        """
        iterations, min_voxels = limits
        terms, best, damping = self._terms(pieces, z), None, z.values.new_zeros(())
        for _ in range(iterations):
            before = (best[1] if best else z), weights
            model = level.model(self.likelihood, displacement(z))
            voxels, precision = model.voxels, self._precision(terms, weights)
            if best is not None:
                # Levenberg-Marquardt: if the bound fell, return to the previous z and take a shorter step.
                worse = _bound_fell(model, z.values, best[0], best[1].values, precision)
                model = model.unless(worse, best[0])
                z = self._select(worse, best[1], z)
                damping = torch.where(worse, 8 * damping + 8, damping / 8)
            best = model, z
            if z.step == self.lattice_voxels:
                weights = self._weights(precision, z, model)
                precision = self._precision(terms, weights)
            right = ascent(model, precision, z.values[0])
            dz = solve(model.damped(damping), precision, right, self.conjugate_steps)
            z, length = self._take_step(z, dz)
            length_voxels, damped, count = torch.stack([length, damping, voxels.to(length)]).tolist()
            # Too little of the volume is covered by two timepoints and kept by the mask.
            if count < min_voxels:
                return before
            bar.update()
            bar.set_postfix(level=level.factor, step=f"{length_voxels:.3f} voxels")
            if damped < 1 and length_voxels < self.tolerance * level.factor:
                break
        return z, weights

    def _take_step(self, z: Field, dz: Tensor) -> tuple[Field, Tensor]:
        """Add a step to z. Returns z and the mean length of the step, in voxels of the image.

        The mean length is limited to half a voxel of the lattice, beyond which the second-order model does not hold.
        Single steps may be longer, as in air, where the images show nothing and a long step does no harm.
        """
        total = self.storage.sum(lambda part: part.square().sum(dim=1).sqrt().sum(), dz, dim=0)
        mean = total / (dz.numel() / dz.shape[1])
        shortening = (2 * mean).clamp_min(1)
        values = self.storage.map(lambda v, d: v + d / shortening, z.values, dz[None])
        return z.like(values), z.step * mean / shortening

    def _select(self, condition: Tensor, one: Field, other: Field) -> Field:
        """Return ``one`` if ``condition``, a scalar bool tensor, holds and ``other`` if not, without reading it."""
        return one.like(self.storage.map(lambda a, b: torch.where(condition, a, b), one.values, other.values))

    def _blend(self, z: Field, hypothesis: Field, share: Tensor) -> Field:
        return z.like(self.storage.map(lambda v, h: v + share * (h - v), z.values, hypothesis.values))

    def _restart(
        self,
        candidates: Sequence[Field],
        static: Sequence[Field],
        level: Level,
        displacement: Callable[[Field], Tensor],
    ) -> tuple[Field, bool]:
        """Choose the initial z of a level.

        The most likely candidate is taken, because coarse levels lead away from a good start if the series has no
        coarse structure. Static hypotheses replace it wherever they are clearly more likely (fusion moves, Lempitsky et
        al. 2010), because a smooth update cannot restore static tissue beside tissue that slides along it.

        Returns:
            z, and whether any region is static.
        """
        if len(candidates) + len(static) == 1:
            return candidates[0], False
        values, counts = level.log_likelihoods(self.likelihood, [displacement(v) for v in (*candidates, *static)])
        best = int(values[:, : len(candidates)].flatten(2).sum(dim=2).argmax())
        z, has_static = candidates[best], False
        lattice = (slice(None), slice(None), *[slice(None, None, level.stride)] * len(z.size))
        values = _neighbourhood_mean(values, counts)[lattice]
        highest = values[:, best : best + 1]
        for hypothesis, value in zip(static, values[:, len(candidates) :].split(1, dim=1)):
            is_static = (value - highest > _CLEAR_NATS).to(value)
            if is_static.mean() < _LEAST_STATIONARY_SHARE:
                continue
            # Smoothed by half a voxel of the lattice, because a discontinuous velocity cannot be integrated.
            share = gaussian_filter(is_static, 0.5).unsqueeze(2)
            z = self._blend(z, hypothesis, share)
            highest, has_static = torch.where(is_static > 0, value, highest), True
        return z, has_static

    def check_draws(self, number: int) -> None:
        """Raise an InputError if the likelihood's scale, and thus the width of the posterior, is arbitrary."""
        if not self.likelihood.calibrated:
            raise InputError(
                f"std_draws (--std): expected 0 with {type(self.likelihood).__name__}, whose scale is arbitrary, got "
                f"{number}; leave it out, or take the default likelihood or --overlay likelihoods/multi_kernel"
            )

    @torch.no_grad()
    def draws(
        self,
        z: Field,
        images: Tensor,
        displacement: Displace,
        evidence: Evidence = EVERYWHERE,
        number: int = 20,
        seed: int = 0,
    ) -> Iterator[Field]:
        """Draw from a Gaussian approximation of the posterior at a refined z, among fields of mean 0 over K.

        A draw solves ``(S + Lambda) d = sqrt(H) e + sqrt(c Lambda) f`` for white noise e and f (Gaussian sampling by
        local perturbations, Papandreou and Yuille 2010). H, Lambda and the prior's weights are estimated as in the last
        step that led to z; S is H without the contribution of noise in the guide, and ``c = prior_factor``. The
        covariance is the sandwich estimator ``(S + Lambda)^-1 (H + c Lambda) (S + Lambda)^-1`` (Godambe 1960, Huber
        1967) of the z at which the forces balance: noise in the guide moves z without determining it, and the true
        motion has the most likely weights, while Lambda has c times as much. With S = H and c = 1 it is the Laplace
        approximation ``(H + Lambda)^-1``. Draws are scaled up because errors have longer tails than a Gaussian.

        Args:
            z: refined z of one series, ``(1, K, T * D, *S)``.
            images, displacement, evidence: as in a call.
            number: number of draws.
            seed: random seed.

        Yields:
            Draws, each like ``z``.

        Raises:
            InputError: If no voxel is covered by two timepoints and kept by the mask.
        """
        generator = torch.Generator(images.device).manual_seed(seed)
        level = Level(images, evidence.coverage, evidence.mask, evidence.mask_timepoint, 1, z.step, self.storage)
        pieces = Pieces(z)
        model = level.model(self.likelihood, displacement(z.values))
        if model.voxels == 0:
            raise InputError(
                "std_draws (--std): expected voxels that two timepoints cover and the mask keeps, got none; leave "
                "it out, or give a wider mask"
            )
        determined = level.determined(model, self.likelihood, displacement(z.values))
        shared, values = pieces.shared, pieces.shared.values
        terms = self._terms(pieces, shared)
        weights = self._weights(self._precision(terms), shared, model)
        precision = self._precision(terms, weights)
        cosine = CosineTransform(values.shape[3:], values)
        # The floor makes singular matrices, such as that of a straight edge, positive definite for Cholesky.
        square = model.curvature.clone()
        square.diagonal(dim1=1, dim2=2).movedim(-1, 1).add_(
            1e-4 * square.diagonal(dim1=1, dim2=2).mean(dim=-1).unsqueeze(1) + 1e-12
        )
        root = cholesky(square)

        def white() -> Tensor:
            return torch.randn(values.shape[1:], generator=generator, device=values.device, dtype=values.dtype)

        for _ in range(number):
            force = (root * white().unsqueeze(1)).sum(dim=2)
            right = cosine(force) + self.prior_factor**0.5 * precision.root(white())
            draw = solve(determined, precision, right, _DRAW_STEPS)
            yield pieces.combine(shared.like(values + _TAILS * draw))

    def _terms(self, pieces: Pieces, z: Field) -> list[Tensor]:
        """Compute the eigenvalues of the prior's terms for the shared velocity, the sum over the T velocities."""
        return [pieces.count * t.to(z.values) for t in self.prior.terms(z.values.shape[3:], z.step)]

    def _precision(self, terms: Sequence[Tensor], weights: Sequence[Tensor | float] | None = None) -> Precision:
        return Precision(terms, weights or [1.0] * len(terms), self.prior.linear_is_free)

    def _weights(self, precision: Precision, z: Field, model: Quadratic) -> Sequence[Tensor | float]:
        """Estimate the weights of the prior's terms at z on the finest lattice, for both steps and draws."""
        if not self.adapt_prior:
            return [1.0] * len(precision.terms)
        likeliest = likeliest_weights(
            precision, z.values[0], model.force, model.mean_curvature, self.prior_factor, self.storage
        )
        return [self.prior_factor * weight for weight in likeliest]


def _neighbourhood_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Average ``values`` ``(1, N, *S)`` in a Gaussian window over the voxels where ``counts`` ``(1, 1, *S)`` is 1.

    The window is widened where few voxels count, so that regions without evidence take the values beside them.
    """
    width, mean, enough = _NEIGHBOURHOOD_VOXELS, torch.zeros_like(values), torch.zeros_like(counts, dtype=torch.bool)
    while not enough.all() and width < 2 * max(values.shape[2:]):
        share = gaussian_filter(counts, width)
        mean = torch.where(enough, mean, gaussian_filter(values, width) / share.clamp_min(1e-6))
        enough, width = enough | (share > _LEAST_NEIGHBOURHOOD_SHARE), 2 * width
    return mean


def _bound_fell(model: Quadratic, z: Tensor, old_model: Quadratic, old_z: Tensor, precision: Precision) -> Tensor:
    """Return, as a scalar bool tensor, whether the bound fell by more than 1 % from ``old_z`` to ``z``.

    A smaller decrease is tolerated: the gradient neglects how a displacement changes the likelihood's windows, and the
    linear system is solved approximately.
    """
    cosine, storage = CosineTransform(z.shape[3:], z), model.storage
    energy, old_energy = (0.5 * storage.sum(lambda part: precision.energy(cosine(part)), v) for v in (z, old_z))
    return model.gain_over(old_model) - energy + old_energy < -0.01 * (old_model.value.sum() - old_energy).abs()
