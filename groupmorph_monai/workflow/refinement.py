"""Fine-tuning z for one series after the network has spoken (GroupMorph, Section 6 and the dotted arrow of Fig. 2)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError
from ..probability.likelihood import Likelihood
from ..probability.prior import FluidPrior, MomentumNorm
from ..space.grid import displace, upsample_field
from ..space.lattice import CosineTransform, coarsen, gaussian_filter, gradient, restrict

__all__ = ["Refinement", "stride_of"]

_NEARBY_VOXELS, _CLEAR_NATS = 2.0, 0.02  # a voxel and timepoint
_LEAST_STATIONARY_SHARE = 0.01  # of all voxels: fewer are there by chance
_WEIGHT_STEPS = 20


def stride_of(field: Tensor, images: Tensor) -> int:
    """Voxels of ``images`` ``(B, K, *S)`` between those of ``field`` ``(B, K, D, *C)``, ``C = ceil(S / stride)``."""
    return max(-(-n // c) for n, c in zip(images.shape[2:], field.shape[3:]))


@dataclass
class _Quadratic:
    """``value + <force, d> - <d, curvature d> / 2`` of K fields on their lattice: the log likelihood near z, to second
    order.

    ``value`` is a scalar; ``force`` is ``(K, D, *S)``; ``curvature`` holds a symmetric D x D matrix a voxel, ``(K, D,
    D, *S)``.
    """

    value: Tensor
    force: Tensor
    curvature: Tensor

    def product(self, d: Tensor) -> Tensor:
        return (self.curvature * d.unsqueeze(1)).sum(dim=2)

    def damped(self, damping: float) -> "_Quadratic":
        return _Quadratic(self.value, self.force, (1 + damping) * self.curvature) if damping else self

    @property
    def mean_curvature(self) -> Tensor:
        return self.curvature.diagonal(dim1=1, dim2=2).mean()


class _Pieces:
    """z ``(1, K, T * D, *S_z)`` of T velocities, one flow after the other, as what they share and what sets them
    apart. A stationary velocity is one that shares all with itself.

    Args:
        images: ``(1, K, *S)``.
    """

    def __init__(self, z: Tensor, images: Tensor):
        pieces = z.unflatten(2, (-1, images.dim() - 2))
        self.number, self.shared = pieces.shape[2], pieces.mean(dim=2)
        self._apart = (pieces - self.shared.unsqueeze(2)).flatten(2, 3)
        self._images, self._stride = images, stride_of(z, images)

    def whole(self, shared: Tensor) -> Tensor:
        """z on the lattice of ``shared`` ``(1, K, D, *C)``."""
        if self.number == 1:
            return shared
        apart = _on_lattice(self._apart, self._stride, stride_of(shared, self._images), self._images.shape[2:])
        return apart + torch.cat([shared] * self.number, dim=2)


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
    by maximising the evidence (MacKay 1992), ``weight = (determined coefficients) / (energy at weight 1)``.

    Args:
        likelihood: of the warped volumes.
        prior: of z. Its weights hold for z on the voxels of the image.
        levels: voxels between the images' samples, coarse to fine; one that leaves fewer than 8 on an axis is left out.
        iterations: steps at most, on each level.
        tolerance: a level is done when the mean step is shorter than this share of its voxels.
        lattice_voxels: of z on the finest lattice.
        adapt_prior: see above.
        independent_share: of the voxels that tell the prior's weights something new. Noise that neighbours share and
            what the likelihood does not explain make it less than 1. On phantoms 0.1 has the least error; with 0.3
            lesions keep their volume better, and real images were aligned the best.
        conjugate_steps: of each solve.
        stationary: whether parts may have stayed where they were, beside others that slide along them.
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
        independent_share: float = 0.3,
        conjugate_steps: int = 8,
        stationary: bool = True,
    ):
        if len(levels) != len(iterations):
            raise ValueError(f"iterations: expected one number for each of the levels {levels}, got {iterations}")
        self.likelihood, self.prior = likelihood, prior
        self.levels, self.iterations = tuple(levels), tuple(iterations)
        self.tolerance, self.lattice_voxels = tolerance, lattice_voxels
        self.adapt_prior, self.independent_share = adapt_prior, independent_share
        self.conjugate_steps, self.stationary = conjugate_steps, stationary

    @torch.no_grad()
    def __call__(
        self,
        z: Tensor,
        images: Tensor,
        displacement: Callable[[Tensor], Tensor],
        mask: Tensor | None = None,
        still: Tensor | None = None,
    ) -> Tensor:
        """Refined z, ``(B, K, T * D, *ceil(S / lattice_voxels))``, its mean over K that of the given z: the images
        cannot tell it.

        Args:
            z: ``(B, K, T * D, *S_z)`` to start from, on any lattice of the images. Of T velocities, one flow after the
                other, what they share is refined and what sets them apart is kept.
            images: ``(B, K, *S)``.
            displacement: from z to displacements on its grid, voxels of it.
            mask: 1 where voxels count and 0 where not, ``(B, K, *S)``, or ``(B, 1, *S)`` of the first timepoint, which
                then holds where its voxels go.
            still: ``(B, K, D, *S_z)``, what z shares of a series in which nothing moved; none is 0.
        """
        found = []
        for n, (z_one, x) in enumerate(zip(z.split(1), images.split(1))):
            pieces = _Pieces(z_one, x)
            unmoved = torch.zeros_like(pieces.shared) if still is None else still[n : n + 1]
            inside = None if mask is None else mask[n : n + 1]
            found.append(pieces.whole(self._series(pieces, unmoved, x, inside, displacement)))
        return torch.cat(found)

    def _series(
        self, pieces: _Pieces, still: Tensor, images: Tensor, mask: Tensor | None, displacement: Callable
    ) -> Tensor:
        """What the refined pieces share."""

        def moved(z: Tensor) -> Tensor:
            return displacement(pieces.whole(z))

        z, size = pieces.shared, images.shape[2:]
        schedule = [
            (f, n) for f, n in zip(self.levels, self.iterations) if f <= self.lattice_voxels or min(size) >= 8 * f
        ]
        start, weights, stayed = z, [1.0] * len(self.prior.terms((1,))), True
        with tqdm(total=sum(n for _, n in schedule), desc="Refining", leave=False) as bar:
            for factor, iterations in schedule:
                level = coarsen(images, factor)
                level_mask = None if mask is None else coarsen(mask, factor)
                step = max(factor, self.lattice_voxels)
                # On the finest images the level before has been at work on the same lattice: only a wall that it found
                # may be left.
                known = (z, start, still) if factor > 1 and z is not start else (z, still)
                *moving, unmoved = (_on_lattice(v, stride_of(v, images), step, size) for v in known)
                z = moving[0]
                if stayed or factor > 1:
                    z, stayed = self._restart(moving, unmoved, level, level_mask, moved, step // factor)
                best, damping = None, 0.0
                for _ in range(iterations):
                    model = self._model(level, level_mask, moved(z), step // factor)
                    priors = self._priors(pieces, z, step)
                    terms = [w * t for w, t in zip(weights, priors)]
                    if best is not None and _worse(model, z, *best, sum(terms)):
                        # Levenberg and Marquardt: back, and a shorter step from there.
                        model, z = best
                        damping = 8 * damping + 8
                    else:
                        damping /= 8
                    best = model, z
                    precision = sum(terms)
                    ascent = _ascent(model, precision, z[0])
                    dz = _solve(model.damped(damping), precision, ascent, self.conjugate_steps)
                    # The second-order model holds no farther than half a voxel of the lattice. The mean counts: where
                    # nothing is seen, as in the air, a step may be long and does no harm.
                    dz = dz / (2 * dz.square().sum(dim=1).sqrt().mean()).clamp_min(1)
                    z = z + dz
                    if step == self.lattice_voxels:
                        weights = self._weights(priors, z, model)
                    bar.update()
                    length_voxels = step * dz.square().sum(dim=1).sqrt().mean()
                    bar.set_postfix(level=factor, step=f"{length_voxels:.3f} voxels")
                    if length_voxels < self.tolerance * factor:
                        break
        return z

    def _restart(
        self,
        moving: Sequence[Tensor],
        still: Tensor,
        images: Tensor,
        mask: Tensor | None,
        displacement: Callable,
        factor: int,
    ) -> tuple[Tensor, bool]:
        """Where a level begins, of several z on its lattice: the one that makes its images the most likely, as coarse
        levels lead away from a good start where a series has no coarse structure; and ``still`` wherever that is
        clearly more likely yet (a fusion move, Lempitsky et al. 2010), as no smooth field takes what stands still back
        from what slides along it. Second, whether there are such places."""
        values = []
        fields = [displacement(v) for v in ((*moving, still) if self.stationary else moving)]
        inside = 1 if mask is None else _pulled(mask, fields[0], factor).mean(dim=1, keepdim=True)
        for ddf in fields:
            value = self.likelihood.linearise(_pulled(images, ddf, factor)).value
            values.append(inside * value / images.shape[1])
        best = max(range(len(moving)), key=lambda n: float(values[n].sum()))
        if not self.stationary:
            return moving[best], False
        lattice = (..., *[slice(None, None, factor)] * (images.dim() - 2))
        gain = gaussian_filter(values[-1] - values[best], _NEARBY_VOXELS)[lattice]
        stays = (gain > _CLEAR_NATS).to(still)
        if stays.mean() < _LEAST_STATIONARY_SHARE:
            return moving[best], False
        # Smoothed by half a voxel of the lattice: a step from one voxel to the next cannot be integrated.
        share = gaussian_filter(stays, 0.5).unsqueeze(2)
        return moving[best] + share * (still - moving[best]), True

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
        z: Tensor,
        images: Tensor,
        displacement: Callable[[Tensor], Tensor],
        mask: Tensor | None = None,
        number: int = 20,
        seed: int = 0,
    ) -> Iterator[Tensor]:
        """Draws of z from Laplace's approximation of its posterior at a refined z, each like ``z``, which is one
        series' ``(1, K, T * D, *S)``; the other arguments are those of a call.

        ``N(z, (H + Lambda)^-1)`` on fields of mean 0 over K: a draw solves ``(H + Lambda) d = sqrt(H) e + sqrt(Lambda)
        f`` for white e and f (Papandreou and Yuille 2010, Gaussian sampling by local perturbations). H, Lambda and the
        prior's weights are those of the last step that led to z.
        """
        generator = torch.Generator(z.device).manual_seed(seed)
        model = self._model(images, mask, displacement(z), self.lattice_voxels)
        pieces = _Pieces(z, images)
        z = pieces.shared
        priors = self._priors(pieces, z, self.lattice_voxels)
        weights = self._weights(priors, z, model)
        precision = sum(w * t for w, t in zip(weights, priors))
        cosine = CosineTransform(z.shape[3:], z)
        # The floor keeps a matrix of rank 2, where an edge tells nothing along itself, within Cholesky's reach.
        square = model.curvature.movedim((1, 2), (-2, -1))
        floor = 1e-4 * square.diagonal(dim1=-2, dim2=-1).mean(dim=-1) + 1e-12
        root = torch.linalg.cholesky(square + floor[..., None, None] * torch.eye(z.shape[2]).to(z))

        def white() -> Tensor:
            return torch.randn(z.shape[1:], generator=generator, device=z.device, dtype=z.dtype)

        for _ in range(number):
            force = (root @ white().movedim(1, -1).unsqueeze(-1)).squeeze(-1).movedim(-1, 1)
            right = cosine(force) + precision.sqrt() * white()
            yield pieces.whole(z + _solve(model, precision, right, 4 * self.conjugate_steps))

    def _priors(self, pieces: _Pieces, z: Tensor, step: int) -> list[Tensor]:
        """The prior's terms at weight 1 of what the pieces share: each piece pays for it."""
        return [pieces.number * t.to(z) for t in self.prior.terms(z.shape[3:], step)]

    def _weights(self, priors: Sequence[Tensor], z: Tensor, model: _Quadratic) -> list[float]:
        """Weights of the prior's terms at z on the finest lattice: of the mode and of the draws about it."""
        if not self.adapt_prior:
            return [1.0] * len(priors)
        return _likeliest_weights(priors, z[0], self.independent_share * model.mean_curvature)

    def _model(self, images: Tensor, mask: Tensor | None, ddf: Tensor, factor: int) -> _Quadratic:
        """Of the likelihood near ``ddf`` ``(1, K, D, *C)``, which lies on every ``factor``-th voxel of ``images``."""
        size, timepoints = images.shape[2:], images.shape[1]
        value, guide, score, weight = self.likelihood.linearise(_pulled(images, ddf, factor))
        if mask is not None:
            inside = _pulled(mask, ddf, factor)
            score, weight = score * inside, weight * inside
        force, curvature = [], []
        # The guide's gradient is in voxels of the images, z in voxels of its lattice: ``factor`` times as long.
        for k in range(timepoints):
            if k < guide.shape[1]:
                slope = gradient(guide[:, k : k + 1])[0, 0] * factor
                square = torch.cat([restrict((s * slope)[None], factor) for s in slope])
            share = restrict(weight[:, k : k + 1], factor)[0] / factor ** len(size)
            force.append(restrict((score[0, k] * slope)[None], factor)[0])
            curvature.append(share * square)
        return _Quadratic(value.sum(), torch.stack(force), torch.stack(curvature))


def _pulled(volumes: Tensor, ddf: Tensor, factor: int) -> Tensor:
    """``volumes`` ``(1, K, *S)`` warped by ``ddf`` ``(1, K, D, *C)``, which lies on every ``factor``-th voxel of them;
    one volume goes with the first timepoint."""
    pairs = zip(volumes.split(1, dim=1), ddf.split(1, dim=1))
    return torch.cat([displace(x, upsample_field(u, factor, volumes.shape[2:])[0]) for x, u in pairs], dim=1)


def _on_lattice(z: Tensor, old: int, new: int, size: Sequence[int]) -> Tensor:
    """z from every ``old``-th voxel to every ``new``-th one of an image of ``size``."""
    if old >= new and old % new == 0:
        return upsample_field(z, old // new, [-(-n // new) for n in size])
    if new % old:
        raise ValueError(f"z: expected a lattice that divides by or into {new} voxels, got one of {old}")
    return coarsen(z.flatten(1, 2), new // old).unflatten(1, z.shape[1:3]) / (new // old)


def _bound(model: _Quadratic, z: Tensor, precision: Tensor) -> float:
    return float(model.value - 0.5 * (precision * CosineTransform(z.shape[3:], z)(z).square()).sum())


def _worse(model: _Quadratic, z: Tensor, old_model: _Quadratic, old: Tensor, precision: Tensor) -> bool:
    """Whether the bound fell from ``old`` to ``z`` by more than a hundredth. A little it may: the gradient leaves out
    what a displacement does to the windows, and the solution is not exact."""
    now, before = _bound(model, z, precision), _bound(old_model, old, precision)
    return now < before - 0.01 * abs(before)


def _ascent(model: _Quadratic, precision: Tensor, z: Tensor) -> Tensor:
    """The bound's gradient ``g - Lambda z`` in cosine coordinates, ``(K, D, *S)``."""
    cosine = CosineTransform(z.shape[2:], z)
    return cosine(model.force) - precision * cosine(z)


def _solve(model: _Quadratic, precision: Tensor, right: Tensor, steps: int) -> Tensor:
    """``(H + Lambda)^-1 right`` among K fields of mean 0 over K, ``(K, D, *S)``, by conjugate gradients; ``right`` in
    cosine coordinates."""
    cosine = CosineTransform(right.shape[2:], right)
    # Where H counts little the coordinates are white under the prior; a fifth of its mean keeps the others in bounds.
    scale = (precision + 0.2 * model.mean_curvature).rsqrt()
    shrinkage = precision * scale.square()
    r = _centred(scale * right)
    p, y = r, torch.zeros_like(r)
    rr = first = r.square().sum()
    for _ in range(steps):
        product = _centred(scale * cosine(model.product(cosine.inverse(scale * p)))) + shrinkage * p
        length = rr / (p * product).sum().clamp_min(1e-30)
        y, r = y + length * p, r - length * product
        previous, rr = rr, r.square().sum()
        if rr < 1e-4 * first:
            break
        p = r + rr / previous.clamp_min(1e-30) * p
    return cosine.inverse(scale * y)


def _centred(fields: Tensor) -> Tensor:
    return fields - fields.mean(dim=0, keepdim=True)


def _likeliest_weights(priors: Sequence[Tensor], z: Tensor, curvature: Tensor) -> list[float]:
    """Weights of the prior's terms that maximise the evidence at z (MacKay 1992): ``weight = (determined coefficients)
    / (energy at weight 1)``, between 1 / 30 and 30.

    Args:
        priors: eigenvalues ``(*S)`` of each term at weight 1.
        z: ``(K, D, *S)``.
        curvature: of the likelihood, a scalar.
    """
    squares = CosineTransform(z.shape[2:], z)(z).square().sum(dim=(0, 1))
    energies = [(prior * squares).sum().clamp_min(1e-12) for prior in priors]
    weights = [1.0] * len(priors)
    for _ in range(_WEIGHT_STEPS):
        terms = [w * prior for w, prior in zip(weights, priors)]
        # Of the (K - 1) D coefficients of each frequency the likelihood determines a share.
        free = (z.shape[0] - 1) * z.shape[1] * curvature / (curvature + sum(terms)) / sum(terms).clamp_min(1e-30)
        determined = [float((term * free).sum()) for term in terms]
        weights = [min(max(n / float(energy), 1 / 30), 30.0) for n, energy in zip(determined, energies)]
    return weights
