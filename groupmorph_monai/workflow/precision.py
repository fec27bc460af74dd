"""Precision of z under the prior: products and square roots for a refinement and its draws."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.storage import IN_MEMORY, Storage
from ..space.chunks import total
from ..space.lattice import CosineTransform

__all__ = ["Precision", "likeliest_weights"]

_EXPECTATION_STEPS = 30
_BINS, _BIN_RANGE = 100, 1e10  # of the prior's eigenvalues, up to the greatest
_SUPPRESSED = 30.0  # ratio of precision to curvature from which coefficients of z count less


def _centred_indices(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2


class Precision:
    """Precision Lambda of fields in cosine coordinates: the weighted sum of a prior's terms.

    Linear fields have no second differences, but cosine coordinates continue them by reflection, which has a kink at
    the border and thus a cost. With ``linear_is_free``, linear fields are integrated out under a flat prior, which
    leaves ``sqrt(Lambda) P sqrt(Lambda)``, where P projects out ``sqrt(Lambda)`` times the linear fields. Errors of a
    preceding affine alignment are then corrected at no cost, whatever the weights.

    Args:
        terms: eigenvalues of each term of the prior at weight 1, ``(*S)``.
        weights: weights of the terms.
        linear_is_free: put no cost on linear fields.
    """

    def __init__(self, terms: Sequence[Tensor], weights: Sequence[float | Tensor], linear_is_free: bool):
        self.terms = terms
        self.spectrum = total(w * t for w, t in zip(weights, terms))
        self._root, self._linear = self.spectrum.sqrt(), []
        if linear_is_free:
            for axis, n in enumerate(self.spectrum.shape):
                ramp = CosineTransform((n,), self.spectrum)(_centred_indices(n, self.spectrum))
                ramp = self._line(self._root, axis) * ramp
                self._linear.append(ramp / ramp.norm().clamp_min(1e-30))

    def _line(self, x: Tensor, axis: int) -> Tensor:
        """Return a view of the coefficients ``(..., n)`` of fields that vary along this axis only."""
        return x[(..., *[slice(None) if a == axis else 0 for a in range(self.spectrum.dim())])]

    def _project(self, x: Tensor) -> Tensor:
        for axis, direction in enumerate(self._linear):
            line = self._line(x, axis)
            line -= (line @ direction).unsqueeze(-1) * direction
        return x

    def root(self, x: Tensor) -> Tensor:
        """Compute ``A^T x`` with ``Lambda = A^T A``, which turns white noise into noise of covariance Lambda."""
        return self._root * self._project(x.clone())

    def product(self, x: Tensor) -> Tensor:
        """Compute ``Lambda x`` for coefficients ``(..., *S)``."""
        return self._root * self._project(self._root * x)

    def energy(self, x: Tensor) -> Tensor:
        """Compute ``x^T Lambda x``, a scalar summed over all fields."""
        return self._project(self._root * x).square().sum()

    def without_linear(self, x: Tensor) -> Tensor:
        """Subtract the linear field that minimises the energy of the remainder, if linear fields are free."""
        return self._project(self._root * x) / self._root.clamp_min(1e-30)


def likeliest_weights(
    precision: Precision,
    z: Tensor,
    force: Tensor,
    curvature: Tensor,
    prior_factor: float = 1.0,
    storage: Storage = IN_MEMORY,
) -> Sequence[Tensor]:
    """Estimate the weights of the prior's terms that are most likely given the images, linearised at z.

    A coefficient of the linearised data is motion and noise, ``z + force / H = motion + noise``, with ``motion ~ N(0, 1
    / sum_i weight_i term_i)`` and ``noise ~ N(0, dispersion / H)``. The dispersion would be 1 if the likelihood were
    exact; it is unknown, because noise is correlated and images differ in ways that are not modelled (quasi-likelihood,
    Wedderburn 1974). Spectra tell motion from noise, as motion is smooth. Weights and dispersion are found by
    expectation maximisation (Dempster et al. 1977), with less importance of frequencies that the prior of a refinement
    suppresses.

    Args:
        precision: defines the terms, and the fit of the linear field that is removed from z if linear fields are free.
        z: ``(K, D, *S)``, of mean 0 over K.
        force: gradient of the log likelihood at z, ``(K, D, *S)``.
        curvature: mean curvature H of the log likelihood, a scalar.
        prior_factor: factor on the weights in a refinement.
        storage: where z and the force are kept.

    Returns:
        Scalars between 1e-4 and 1e4.
    """
    cosine, curvature = CosineTransform(z.shape[2:], z), curvature.clamp_min(1e-30)
    mean_force = storage.mean(force, dim=0)

    def squares(z: Tensor, force: Tensor) -> Tensor:
        data = precision.without_linear(cosine(z)) + cosine((force - mean_force) / curvature)
        return data.square().sum(dim=(0, 1))

    data = storage.sum(squares, z, force, dim=0) / ((z.shape[0] - 1) * z.shape[1])
    count, data, *bins = _binned(total(precision.terms), data, *precision.terms)
    terms, curvature = torch.stack(bins), curvature.to(count)
    weights, dispersion = torch.ones_like(terms[:, 0]), torch.ones_like(curvature)
    for _ in range(_EXPECTATION_STEPS):
        prior, noise = (weights[:, None] * terms).sum(dim=0), dispersion / curvature
        importance = count / (1 + prior_factor * prior / curvature / _SUPPRESSED).square()
        gain = 1 / (1 + noise * prior)
        motion, noise = gain.square() * data + gain * noise, (1 - gain).square() * data + gain * noise
        ratio = (importance * terms / prior.clamp_min(1e-30)).sum(dim=1) / (importance * terms * motion).sum(dim=1)
        weights = (weights * ratio).clamp(1e-4, 1e4)
        dispersion = ((importance * noise).sum() / importance.sum() * curvature).clamp_min(1e-3)
    return weights.to(z).unbind()


def _binned(scale: Tensor, *values: Tensor) -> list[Tensor]:
    """Average values ``(*S)`` over bins of equal width in ``log(scale)``.

    Returns:
        The number of values in each bin, and their means, ``(bins,)`` each.
    """
    exact = torch.float32 if scale.device.type == "mps" else torch.float64  # MPS has no float64
    relative = (scale / scale.max()).to(exact).clamp_min(1 / _BIN_RANGE)
    index = ((_BINS - 1) * (1 + relative.log() / math.log(_BIN_RANGE))).round().long().flatten()

    def summed(x: Tensor) -> Tensor:
        return torch.zeros(_BINS, dtype=exact, device=x.device).index_add_(0, index, x.flatten().to(exact))

    count = summed(torch.ones_like(scale))
    return [count, *(summed(x) / count.clamp_min(1) for x in values)]
