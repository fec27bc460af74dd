"""Precision of z under the prior: products and square roots for a refinement and its draws."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.storage import IN_MEMORY, Storage
from ..space.chunks import total
from ..space.lattice import CosineTransform

__all__ = ["Precision", "likeliest_weights"]

_WEIGHT_STEPS = 20


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
    precision: Precision, z: Tensor, curvature: Tensor, storage: Storage = IN_MEMORY
) -> Sequence[Tensor]:
    """Estimate the weights of the prior's terms that maximise the evidence at z (MacKay 1992): ``weight = (determined
    coefficients) / (energy at weight 1)``, scalars between 1 / 30 and 30.

    Args:
        precision: its weights determine the fit of the linear field that is removed from z if linear fields are free.
        z: ``(K, D, *S)``.
        curvature: mean curvature of the log likelihood, a scalar.
        storage: where z is kept.
    """
    cosine = CosineTransform(z.shape[2:], z)
    squares = storage.sum(lambda part: precision.without_linear(cosine(part)).square().sum(dim=(0, 1)), z, dim=0)
    exact = torch.float32 if z.device.type == "mps" else torch.float64  # MPS has no float64
    energies = torch.stack([(term * squares).sum() for term in precision.terms]).clamp_min(1e-12).to(exact)
    weights = torch.ones_like(energies).unbind()
    for _ in range(_WEIGHT_STEPS):
        terms = [w * term for w, term in zip(weights, precision.terms)]
        # The likelihood determines this share of the (K - 1) D coefficients of each frequency.
        share = curvature / (curvature + total(terms)).clamp_min(1e-30)
        free = (z.shape[0] - 1) * z.shape[1] * share / total(terms).clamp_min(1e-30)
        determined = torch.stack([(term * free).sum() for term in terms]).to(exact)
        weights = (determined / energies).clamp(1 / 30, 30).unbind()
    return weights
