"""Fine-tuning z for one series after the network has spoken (GroupMorph, Section 6 and the dotted arrow of Fig. 2)."""

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
from .precision import Precision

__all__ = ["Refinement"]

logger = logging.getLogger(__name__)
_NEARBY_VOXELS, _CLEAR_NATS = 2.0, 0.02  # a voxel and timepoint
_LEAST_SHARE_NEARBY = 0.1  # of voxels that count
_LEAST_STATIONARY_SHARE = 0.01  # of all voxels: fewer are there by chance
_LEAST_VOXELS = 8**3  # that count on a level whose images are coarser than the series'
_WEIGHT_STEPS = 20
_DRAW_STEPS = 32  # of the conjugate gradients of a draw, whatever the effort
# On draws. Errors have longer tails than the Gaussian: over the `reliability` suite's phantoms 930 to 935, with 1.3, 50
# to 56 % of them lay inside the stated 50 % interval, but only 84 to 88 % inside that of 90 %.
_TAILS = 1.4


class Refinement:
    """Raise the evidence lower bound of one series in z itself, from the posterior's mean, by Gauss-Newton steps; the
    network's weights stay as they are.

    Coarse to fine: at each level the images are smoothed and thinned, and z lies on every voxel of the level, on the
    finest on every ``lattice_voxels``-th. A step solves ``(H + Lambda) d = g - Lambda z`` by conjugate gradients in the
    cosine coordinates in which the prior's precision Lambda is white; g and the curvature H come from the likelihood's
    second-order model, so that neither the warp nor the integration is differentiated. To first order a step of the
    velocity moves the warped image as the same displacement would (Vercauteren et al. 2009, log-demons). A level begins
    from the likelier of what the last one found and the given z, and where nothing moved from just that, if
    ``stationary``.

    The prior's weights are those of the series at hand: with ``adapt_prior`` each is re-estimated on the finest lattice
    by maximising the evidence (MacKay 1992), ``weight = (determined coefficients) / (energy at weight 1)``, and
    multiplied by ``prior_factor``.

    Args:
        likelihood: of the warped volumes.
        prior: of z. Its weights hold for z on the voxels of the image.
        levels: voxels between the images' samples, coarse to fine; one that leaves fewer than 8 on an axis is left out.
        iterations: steps at most, on each level.
        tolerance: a level is done when the mean step is shorter than this share of its voxels.
        lattice_voxels: of z on the finest lattice.
        adapt_prior: see above.
        independent_share: of the voxels that tell the prior's weights something new. Noise that neighbours share and
            what the likelihood does not explain make it less than 1.
        prior_factor: of the likeliest weights. Above 1 it keeps noise that neighbours share from being taken for
            motion, and lesions keep their volume better.
        conjugate_steps: at most, of each iteration's solve.
        stationary: whether parts may have stayed where they were, beside others that slide along them.
        storage: of what there is of all timepoints.
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
        independent_share: float = 0.2,
        prior_factor: float = 1.0,
        conjugate_steps: int = 16,
        stationary: bool = True,
        storage: Storage = IN_MEMORY,
    ):
        if len(levels) != len(iterations):
            raise ValueError(f"iterations: expected one number for each of the levels {levels}, got {iterations}")
        self.likelihood, self.prior = likelihood.eval(), prior  # steps are compared: all voxels count in each
        self.levels, self.iterations = tuple(levels), tuple(iterations)
        self.tolerance, self.lattice_voxels = tolerance, lattice_voxels
        if independent_share <= 0 or prior_factor <= 0:
            raise ValueError(
                f"independent_share, prior_factor: expected more than 0, got {independent_share}, {prior_factor}"
            )
        self.adapt_prior, self.independent_share = adapt_prior, independent_share
        self.prior_factor = prior_factor if adapt_prior else 1.0
        self.conjugate_steps, self.stationary, self.storage = conjugate_steps, stationary, storage

    @torch.no_grad()
    def __call__(
        self,
        z: Field,
        images: Tensor,
        displacement: Callable[[Tensor], Tensor],
        evidence: Evidence = EVERYWHERE,
        hypotheses: Sequence[Field] = (),
    ) -> Field:
        """Refine z, ``(B, K, T * D, *C)``. Its mean over K stays: the images cannot tell it.

        Args:
            z: to start from, on any lattice. Of T velocities, one flow after the other, what they share is refined and
                what sets them apart is kept.
            images: ``(B, K, *S)``.
            displacement: from z to displacements on its grid, voxels of it.
            evidence: which voxels count.
            hypotheses: ``(B, K, D, *C)`` each, what z may share in parts of the series, such as where nothing moved.
        Returns: z on every ``lattice_voxels``-th voxel.
        """
        self._check_storage()
        refined = []
        for n, values in enumerate(z.values.split(1)):
            pieces = Pieces(z.like(values))
            static = [h.like(h.values[n : n + 1]) for h in hypotheses] if self.stationary else []
            refined.append(pieces.whole(self._series(pieces, static, images[n : n + 1], evidence.of(n), displacement)))
        return refined[0] if len(refined) == 1 else refined[0].like(torch.cat([field.values for field in refined]))

    def _check_storage(self) -> None:
        if self.storage.scans_at_once and self.likelihood.couples_all:
            raise InputError(
                f"scans_at_once: expected null with {type(self.likelihood).__name__}, which compares all scans at "
                f"once, got {self.storage.scans_at_once}; leave it out and give fewer scans, or take the default "
                "likelihood"
            )

    def _at(self, z: Field, step: int) -> Field:
        """`Field.at`, a few timepoints at a time."""
        if step == z.step:
            return z
        return Field(self.storage.map(lambda v: z.like(v).at(step).values, z.values), z.size, step)

    def schedule(self, size: Sequence[int]) -> list[tuple[int, int]]:
        """The levels of images of ``size``, and the iterations of each at most."""
        levels = zip(self.levels, self.iterations)
        return [(f, n) for f, n in levels if f <= self.lattice_voxels or min(size) >= 8 * f]

    def _series(
        self, pieces: Pieces, static: Sequence[Field], images: Tensor, evidence: Evidence, displacement: Callable
    ) -> Field:
        """What the refined pieces share."""

        def moved(z: Field) -> Tensor:
            return displacement(pieces.whole(z).values)

        z, schedule = pieces.shared, self.schedule(images.shape[2:])
        start, weights, stayed = z, None, True
        with tqdm(total=sum(n for _, n in schedule), desc="Refining", leave=False, disable=None) as bar:
            for factor, iterations in schedule:
                step = max(factor, self.lattice_voxels)
                level = Level(images, evidence.seen, evidence.mask, evidence.home, factor, step, self.storage)
                # On the finest images the level before has been at work on the same lattice: only a wall that it found
                # may be left.
                candidates = [self._at(v, step) for v in ((z, start) if factor > 1 and z is not start else (z,))]
                z = candidates[0]
                if stayed or factor > 1:
                    z, stayed = self._restart(candidates, [self._at(h, step) for h in static], level, moved)
                least = _LEAST_VOXELS if factor > 1 else 1  # that the images of this level have to tell of
                z, weights = self._climb(level, z, weights, pieces, moved, (iterations, least), bar)
                logger.info("Refined the motion in images of every n-th voxel, n = %d.", factor)
        return z

    def _climb(
        self,
        level: Level,
        z: Field,
        weights: Sequence[Tensor] | None,
        pieces: Pieces,
        displacement: Callable[[Field], Tensor],
        limits: tuple[int, int],
        bar: tqdm,
    ) -> tuple[Field, Sequence[Tensor] | None]:
        """Take the steps of one level.

        A few numbers are read in an iteration, at once, and the band of frequencies before the first. Until then
        nothing waits for a GPU: which of two models counts and how long the step is are decided there.

        Args:
            weights: of the prior's terms so far; none has them all 1.
            limits: iterations, and voxels below which the level has too little to tell.
        Returns: z and the weights.
        """
        iterations, least = limits
        terms, best, damping, kept = self._terms(pieces, z), None, z.values.new_zeros(()), None
        for _ in range(iterations):
            before = (best[1] if best else z), weights
            model = level.model(self.likelihood, displacement(z))
            voxels, precision = model.voxels, self._precision(terms, weights)
            if best is not None:
                # Levenberg and Marquardt: where the bound fell, back, and a shorter step from there.
                worse = _worse(model, z.values, best[0], best[1].values, precision)
                model = model.unless(worse, best[0])
                z = self._either(worse, best[1], z)
                damping = torch.where(worse, 8 * damping + 8, damping / 8)
            best = model, z
            if z.step == self.lattice_voxels:
                weights = self._weights(precision, z, model)
                precision = self._precision(terms, weights)
            right = ascent(model, precision, z.values[0])
            limits = precision.band_limits(model.mean_curvature)
            kept = kept or limits.tolist()
            dz = solve(model.damped(damping), precision, right, self.conjugate_steps, kept)
            z, length = self._moved(z, dz)
            length_voxels, damped, told, *kept = torch.stack([length, damping, voxels, *limits]).tolist()
            # Of the volume that two timepoints have seen this level has too few voxels, or none.
            if told < least:
                return before
            bar.update()
            bar.set_postfix(level=level.factor, step=f"{length_voxels:.3f} voxels")
            if damped < 1 and length_voxels < self.tolerance * level.factor:
                break
        return z, weights

    def _moved(self, z: Field, dz: Tensor) -> tuple[Field, Tensor]:
        """z after a step, and the step's mean length in voxels of the image.

        The second-order model holds no farther than half a voxel of the lattice. The mean counts: where nothing is
        seen, as in the air, a step may be long and does no harm.
        """
        total = self.storage.sum(lambda part: part.square().sum(dim=1).sqrt().sum(), dz, dim=0)
        mean = total / (dz.numel() / dz.shape[1])
        shortening = (2 * mean).clamp_min(1)
        moved = self.storage.map(lambda v, d: v + d / shortening, z.values, dz[None])
        return z.like(moved), z.step * mean / shortening

    def _either(self, condition: Tensor, one: Field, other: Field) -> Field:
        """One field where ``condition``, a scalar bool that is never read, holds, and else the other."""
        return one.like(self.storage.map(lambda a, b: torch.where(condition, a, b), one.values, other.values))

    def _fused(self, z: Field, hypothesis: Field, share: Tensor) -> Field:
        return z.like(self.storage.map(lambda v, h: v + share * (h - v), z.values, hypothesis.values))

    def _restart(
        self,
        candidates: Sequence[Field],
        static: Sequence[Field],
        level: Level,
        displacement: Callable[[Field], Tensor],
    ) -> tuple[Field, bool]:
        """Where a level begins, of several z on its lattice: the one that makes its images the most likely, as coarse
        levels lead away from a good start where a series has no coarse structure; and one of ``static`` wherever that
        is clearly more likely yet (a fusion move, Lempitsky et al. 2010), as no smooth field takes what stands still
        back from what slides along it. Second, whether there are such places."""
        if len(candidates) + len(static) == 1:
            return candidates[0], False
        values, counts = level.values(self.likelihood, [displacement(v) for v in (*candidates, *static)])
        best = int(values[:, : len(candidates)].flatten(2).sum(dim=2).argmax())
        z, stayed = candidates[best], False
        lattice = (..., *[slice(None, None, level.stride)] * len(z.size))
        values = _surroundings(values, counts)[lattice]
        reached = values[:, best : best + 1]
        for hypothesis, value in zip(static, values[:, len(candidates) :].split(1, dim=1)):
            stays = (value - reached > _CLEAR_NATS).to(value)
            if stays.mean() < _LEAST_STATIONARY_SHARE:
                continue
            # Smoothed by half a voxel of the lattice: a step from one voxel to the next cannot be integrated.
            share = gaussian_filter(stays, 0.5).unsqueeze(2)
            z = self._fused(z, hypothesis, share)
            reached, stayed = torch.where(stays > 0, value, reached), True
        return z, stayed

    def check_draws(self, number: int) -> None:
        """Refuse draws with an InputError where the likelihood's scale, and so the posterior's width, is arbitrary."""
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
        displacement: Callable[[Tensor], Tensor],
        evidence: Evidence = EVERYWHERE,
        number: int = 20,
        seed: int = 0,
    ) -> Iterator[Field]:
        """Draw z from a Gaussian approximation of its posterior at a refined z, on fields of mean 0 over K.

        A draw solves ``(S + Lambda) d = sqrt(H) e + sqrt(c Lambda) f`` for white e and f (Papandreou and Yuille 2010,
        Gaussian sampling by local perturbations). H, Lambda and the prior's weights are those of the last step that led
        to z; S is H without what noise in the guide adds to it. Noise there pushes z about without telling where it
        belongs: ``(S + Lambda)^-1 (H + c Lambda) (S + Lambda)^-1`` is the sandwich covariance (Godambe 1960, Huber
        1967) of the z at which the forces balance, where the true motion has the likeliest weights and Lambda has c =
        ``prior_factor`` times as much. With S = H and c = 1 it is Laplace's ``(H + Lambda)^-1``. Draws are enlarged, as
        errors have longer tails.

        Args:
            z: of one series, ``(1, K, T * D, *S)``.
            images, displacement, evidence: as in a call.
            number: of draws.
            seed: of their white noise.
        Returns: draws, each like ``z``.
        """
        generator = torch.Generator(images.device).manual_seed(seed)
        level = Level(images, evidence.seen, evidence.mask, evidence.home, 1, z.step, self.storage)
        pieces = Pieces(z)
        model = level.model(self.likelihood, displacement(z.values))
        if model.voxels == 0:
            raise InputError(
                "std_draws (--std): expected voxels that two timepoints have seen and that the mask keeps, got none; "
                "leave it out, or give a wider mask"
            )
        determined = level.determined(model, self.likelihood, displacement(z.values))
        shared, z = pieces.shared, pieces.shared.values
        terms = self._terms(pieces, shared)
        weights = self._weights(self._precision(terms), shared, model)
        precision = self._precision(terms, weights)
        cosine = CosineTransform(z.shape[3:], z)
        # The floor keeps a matrix of rank 2, where an edge tells nothing along itself, within Cholesky's reach.
        square = model.curvature.clone()
        square.diagonal(dim1=1, dim2=2).movedim(-1, 1).add_(
            1e-4 * square.diagonal(dim1=1, dim2=2).mean(dim=-1).unsqueeze(1) + 1e-12
        )
        root = cholesky(square)

        def white() -> Tensor:
            return torch.randn(z.shape[1:], generator=generator, device=z.device, dtype=z.dtype)

        for _ in range(number):
            force = (root * white().unsqueeze(1)).sum(dim=2)
            right = cosine(force) + self.prior_factor**0.5 * precision.root(white())
            draw = solve(determined, precision, right, _DRAW_STEPS)
            yield pieces.whole(shared.like(z + _TAILS * draw))

    def _terms(self, pieces: Pieces, z: Field) -> list[Tensor]:
        """The prior's, of what the pieces share: each piece pays for it."""
        return [pieces.number * t.to(z.values) for t in self.prior.terms(z.values.shape[3:], z.step)]

    def _precision(self, terms: Sequence[Tensor], weights: Sequence[Tensor | float] | None = None) -> Precision:
        """Without weights, all are 1."""
        return Precision(terms, weights or [1.0] * len(terms), self.prior.linear_is_free)

    def _weights(self, precision: Precision, z: Field, model: Quadratic) -> Sequence[Tensor | float]:
        """Weights of the prior's terms at z on the finest lattice: of the mode and of the draws about it."""
        if not self.adapt_prior:
            return [1.0] * len(precision.terms)
        curvature = self.independent_share * model.mean_curvature
        likeliest = _likeliest_weights(precision, z.values[0], curvature, self.storage)
        return [self.prior_factor * weight for weight in likeliest]


def _surroundings(values: Tensor, counts: Tensor) -> Tensor:
    """Average ``values`` ``(1, N, *S)`` near every voxel over those that count, ``(1, 1, *S)``. Where few do, the
    surroundings are wider: what was not seen is like what was seen beside it."""
    width, mean, enough = _NEARBY_VOXELS, torch.zeros_like(values), torch.zeros_like(counts, dtype=torch.bool)
    while not enough.all() and width < 2 * max(values.shape[2:]):
        share = gaussian_filter(counts, width)
        mean = torch.where(enough, mean, gaussian_filter(values, width) / share.clamp_min(1e-6))
        enough, width = enough | (share > _LEAST_SHARE_NEARBY), 2 * width
    return mean


def _worse(model: Quadratic, z: Tensor, old_model: Quadratic, old: Tensor, precision: Precision) -> Tensor:
    """Whether, a scalar bool, the bound fell from ``old`` to ``z`` by more than a hundredth. A little it may: the
    gradient leaves out what a displacement does to the windows, and the solution is not exact."""
    cosine, storage = CosineTransform(z.shape[3:], z), model.storage
    now, before = (0.5 * storage.sum(lambda part: precision.energy(cosine(part)), v) for v in (z, old))
    return model.above(old_model) - now + before < -0.01 * (old_model.value.sum() - before).abs()


def _likeliest_weights(
    precision: Precision, z: Tensor, curvature: Tensor, storage: Storage = IN_MEMORY
) -> Sequence[Tensor]:
    """Weights of the prior's terms that maximise the evidence at z (MacKay 1992): ``weight = (determined coefficients)
    / (energy at weight 1)``, between 1 / 30 and 30, scalars.

    Args:
        precision: under weights from which those of the linear part's fit follow.
        z: ``(K, D, *S)``.
        curvature: of the likelihood, a scalar.
        storage: of z.
    """
    cosine = CosineTransform(z.shape[2:], z)
    squares = storage.sum(lambda part: precision.without_linear(cosine(part)).square().sum(dim=(0, 1)), z, dim=0)
    exact = torch.float32 if z.device.type == "mps" else torch.float64  # which that does not have
    energies = torch.stack([(term * squares).sum() for term in precision.terms]).clamp_min(1e-12).to(exact)
    weights = torch.ones_like(energies).unbind()
    for _ in range(_WEIGHT_STEPS):
        terms = [w * term for w, term in zip(weights, precision.terms)]
        # Of the (K - 1) D coefficients of each frequency the likelihood determines a share.
        share = curvature / (curvature + sum(terms)).clamp_min(1e-30)
        free = (z.shape[0] - 1) * z.shape[1] * share / sum(terms).clamp_min(1e-30)
        determined = torch.stack([(term * free).sum() for term in terms]).to(exact)
        weights = (determined / energies).clamp(1 / 30, 30).unbind()
    return weights
