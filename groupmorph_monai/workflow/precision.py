"""Precision of z under the prior, in all cosine coordinates or in a band of low frequencies."""

from collections.abc import Sequence
from copy import copy
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from ..space.lattice import CosineTransform

__all__ = ["Band", "Precision"]

# Precision of the prior over the curvature of the likelihood. The likelihood then changes a coefficient by less than
# 1 %, and that only in the direction of a step: where the steps converge does not depend on it.
_NEGLIGIBLE = 100.0
_LEAST_KEPT = 4  # frequencies that hold 99 % of the energy of a linear field


class Band:
    """The cosine coordinates that a likelihood can change: a block of the lowest frequencies, and for every axis the
    line of coefficients that vary along this axis alone, as a linear field has them at all frequencies.

    Packed coordinates ``(..., M)`` hold the block, flattened, then the rest of each line.

    Args:
        size: number of coefficients along each axis.
        kept: number of them in the block, whole numbers.
    """

    def __init__(self, size: Sequence[int], kept: Sequence[float]):
        self.size, self.kept = tuple(size), tuple(map(int, kept))
        self.block: tuple[slice, ...] = tuple(slice(k) for k in self.kept)
        rest = [n - k for n, k in zip(self.size, self.kept)]
        self._ends = list(accumulate(rest, initial=prod(self.kept)))

    def _rests(self, x: Tensor) -> list[Tensor]:
        """Coefficients ``(..., *S)`` of each line beyond the block, views."""
        axes = range(len(self.size))
        return [x[(..., *(slice(self.kept[a], None) if a == axis else 0 for a in axes))] for axis in axes]

    def pack(self, x: Tensor) -> Tensor:
        """``(..., *S)`` to ``(..., M)``."""
        return torch.cat([x[(..., *self.block)].flatten(-len(self.size)), *self._rests(x)], dim=-1)

    def unpack(self, packed: Tensor, into: Tensor) -> Tensor:
        """Replace the coefficients of ``into`` ``(..., *S)`` that are ``packed`` ``(..., M)``, and return it."""
        into[(..., *self.block)] = self.of_block(packed)
        for rest, start, end in zip(self._rests(into), self._ends, self._ends[1:]):
            rest.copy_(packed[..., start:end])
        return into

    def of_block(self, packed: Tensor) -> Tensor:
        """The block of packed coordinates, ``(..., *kept)``, a view."""
        return packed[..., : self._ends[0]].unflatten(-1, self.kept)

    def line(self, axis: int, device: torch.device) -> Tensor:
        """Packed indices of the coefficients that vary along one axis alone, ``(n,)``."""
        stride = prod(self.kept[axis + 1 :])
        block = torch.arange(0, self.kept[axis] * stride, stride, device=device)
        return torch.cat([block, torch.arange(self._ends[axis], self._ends[axis + 1], device=device)])


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
        self._root, size = self.spectrum.sqrt(), self.spectrum.shape
        self._lines: list[Tensor] = []
        self._ramps: list[Tensor] = []
        for axis, n in enumerate(size if linear_is_free else ()):
            self._lines.append(Band(size, size).line(axis, self.spectrum.device))
            ramp = CosineTransform((n,), self.spectrum)(_centred_line(n, self.spectrum))
            ramp = self._root.flatten()[self._lines[axis]] * ramp
            self._ramps.append(ramp / ramp.norm().clamp_min(1e-30))

    def within(self, band: Band) -> "Precision":
        """The same in packed coordinates ``(..., M)``."""
        packed = copy(self)
        packed.spectrum, packed._root = band.pack(self.spectrum), band.pack(self._root)
        packed._lines = [band.line(axis, line.device) for axis, line in enumerate(self._lines)]
        return packed

    def band_limits(self, curvature: Tensor) -> Tensor:
        """Count the frequencies along each axis that a likelihood of this mean ``curvature`` can change, ``(D,)``: at
        least those that a linear field consists of, as it may have no other cost."""
        axes = range(self.spectrum.dim())
        lines = [self.spectrum[tuple(slice(None) if a == axis else 0 for a in axes)] for axis in axes]
        counts = [(line < _NEGLIGIBLE * curvature).sum().clamp(min(_LEAST_KEPT, len(line))) for line in lines]
        return torch.stack(counts)

    def _project(self, x: Tensor) -> Tensor:
        """Remove the linear fields from ``sqrt(Lambda)`` times coefficients, in place."""
        flat = x.view(*x.shape[: x.dim() - self.spectrum.dim()], -1)
        for line, ramp in zip(self._lines, self._ramps):
            along = flat[..., line]
            flat[..., line] = along - (along @ ramp).unsqueeze(-1) * ramp
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


def _centred_line(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, dtype=like.dtype, device=like.device) - (n - 1) / 2
