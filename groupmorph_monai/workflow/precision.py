"""The precision of z under the prior, as a refinement multiplies by it and draws from it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..space.lattice import CosineTransform

__all__ = ["Precision"]


def _centred_line(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2


class Precision:
    """Precision Lambda of fields in cosine coordinates: the weighted sum of a prior's terms.

    A linear field has no second differences, but in cosine coordinates, which continue a field by reflection, it has a
    kink at the border and pays for it. With ``linear_is_free`` linear fields are integrated out under a flat prior,
    which leaves ``sqrt(Lambda) P sqrt(Lambda)``, where P projects ``sqrt(Lambda)`` times the linear fields away: what
    an affine alignment has missed is then corrected at no cost, whatever the weights.

    Args:
        terms: eigenvalues ``(*S)`` of each of the prior's terms at weight 1.
        weights: of the terms.
        linear_is_free: see above.
    """

    def __init__(self, terms: Sequence[Tensor], weights: Sequence[float | Tensor], linear_is_free: bool):
        self.terms = terms
        self.spectrum = sum(w * t for w, t in zip(weights, terms))
        self._root, self._linear = self.spectrum.sqrt(), []
        if linear_is_free:
            for axis, n in enumerate(self.spectrum.shape):
                ramp = CosineTransform((n,), self.spectrum)(_centred_line(n, self.spectrum))
                ramp = self._line(self._root, axis) * ramp
                self._linear.append(ramp / ramp.norm().clamp_min(1e-30))

    def _line(self, x: Tensor, axis: int) -> Tensor:
        """The coefficients ``(..., n)`` of what changes along this axis alone, a view."""
        return x[(..., *[slice(None) if a == axis else 0 for a in range(self.spectrum.dim())])]

    def _project(self, x: Tensor) -> Tensor:
        for axis, direction in enumerate(self._linear):
            line = self._line(x, axis)
            line -= (line @ direction).unsqueeze(-1) * direction
        return x

    def root(self, x: Tensor) -> Tensor:
        """``A^T x`` with ``Lambda = A^T A``: white noise becomes noise of covariance Lambda."""
        return self._root * self._project(x.clone())

    def product(self, x: Tensor) -> Tensor:
        """``Lambda x`` of coefficients ``(..., *S)``."""
        return self._root * self._project(self._root * x)

    def energy(self, x: Tensor) -> Tensor:
        """``x^T Lambda x`` of coefficients, a scalar."""
        return self._project(self._root * x).square().sum()

    def without_linear(self, x: Tensor) -> Tensor:
        """Coefficients less the linear field whose absence costs them the least; as they are if it is not free."""
        return self._project(self._root * x) / self._root.clamp_min(1e-30)
