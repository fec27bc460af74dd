"""Precision of z under the prior: products and square roots for a refinement and its draws."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..space.chunks import total
from ..space.cosine_transform import CosineTransform
from .evidence import Quadratic

INDEPENDENT_SHARE = 0.2  # fraction of voxels that are independent, as noise is spatially correlated

_WEIGHT_STEPS = 20  # number of fixed-point iterations
_LARGEST_WEIGHT = 30  # maximum factor on the prior's own weights; without motion, the likeliest weight is infinite


def _exact_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of numbers that need all digits: float64, except on MPS, which has none."""
    return torch.float32 if device.type == "mps" else torch.float64


class Precision:
    """Precision Lambda of fields in cosine coordinates: the weighted sum of a prior's terms.

    Args:
        terms: eigenvalues of each term of the prior at weight 1, ``(*S)``.
        weights: weights of the terms.
    """

    def __init__(self, terms: Sequence[Tensor], weights: Sequence[float | Tensor]):
        self.terms, self.weights = terms, weights
        self.spectrum = total(w * t for w, t in zip(weights, terms))
        self._root = self.spectrum.sqrt()

    def exact(self) -> Self:
        """Return this precision in `_exact_dtype`."""
        return type(self)([term.to(_exact_dtype(term.device)) for term in self.terms], self.weights)

    def with_weights(self, weights: Sequence[float | Tensor]) -> Self:
        """Return the precision of the same terms with other weights."""
        return type(self)(self.terms, weights)

    def _project(self, x: Tensor) -> Tensor:
        """Remove the component without cost from ``x``, which may be overwritten."""
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


class FreeLinearPrecision(Precision):
    """Precision under which linear fields have no energy, for any weights, so that errors of a preceding affine
    alignment are corrected at no cost.

    Linear fields have no second differences, but cosine coordinates continue them by reflection, which has a kink at
    the border and thus a cost. Integrating them out under a flat prior leaves ``sqrt(Lambda) P sqrt(Lambda)``, where P
    projects out ``sqrt(Lambda)`` times the linear fields.

    Args:
        terms, weights: as for `Precision`.
    """

    def __init__(self, terms: Sequence[Tensor], weights: Sequence[float | Tensor]):
        super().__init__(terms, weights)
        self._linear = []
        for axis, n in enumerate(self.spectrum.shape):
            indices = torch.arange(n, dtype=self.spectrum.dtype, device=self.spectrum.device) - (n - 1) / 2
            ramp = CosineTransform((n,), self.spectrum)(indices)
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


@dataclass(frozen=True)
class LikeliestWeights:
    """Estimate the weights of a prior's terms from a series, by maximising the evidence at z (MacKay 1992): ``weight =
    (determined coefficients) / (energy at weight 1)``.

    Args:
        independent_share: fraction of voxels that are independent; less than 1 because of spatially correlated noise
            and unmodelled image differences.
        factor: factor on the estimates. Values above 1 keep spatially correlated noise from being registered as motion,
            and preserve the volume of lesions better.
    """

    independent_share: float = INDEPENDENT_SHARE
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.independent_share <= 0 or self.factor <= 0:
            raise ValueError(
                f"independent_share, factor: expected more than 0, got {self.independent_share}, {self.factor}"
            )

    def __call__(self, precision: Precision, z: Tensor, model: Quadratic) -> Precision:
        """Return ``precision`` with the estimated weights.

        Args:
            precision: its weights determine the fit of the linear field that is removed from z if linear fields are
                free.
            z: ``(K, D, *S)``.
            model: the likelihood's model at z.
        """
        cosine = CosineTransform(z.shape[2:], z)

        def squares(part: Tensor) -> Tensor:
            return precision.without_linear(cosine(part)).square().sum(dim=(0, 1))

        spectrum = model.storage.sum(squares, z, dim=0)
        exact = _exact_dtype(z.device)
        energies = torch.stack([(term * spectrum).sum() for term in precision.terms]).clamp_min(1e-12).to(exact)
        curvature = self.independent_share * model.mean_curvature
        weights = torch.ones_like(energies).unbind()
        for _ in range(_WEIGHT_STEPS):
            terms = [w * term for w, term in zip(weights, precision.terms)]
            # The likelihood determines this share of the (K - 1) D coefficients of each frequency.
            share = curvature / (curvature + total(terms)).clamp_min(1e-30)
            free = (z.shape[0] - 1) * z.shape[1] * share / total(terms).clamp_min(1e-30)
            determined = torch.stack([(term * free).sum() for term in terms]).to(exact)
            weights = (determined / energies).clamp(1 / _LARGEST_WEIGHT, _LARGEST_WEIGHT).unbind()
        return precision.with_weights([self.factor * weight for weight in weights])
