"""Band of low frequencies on which the likelihood of a refinement acts."""

from collections.abc import Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

__all__ = ["Band"]


class Band:
    """Cosine coordinates that a likelihood can change: a block of the lowest frequencies, and for each axis the line of
    the coefficients that vary along this axis only, since linear fields have such coefficients at all frequencies.

    Packed coordinates ``(..., M)`` hold the flattened block, followed by the rest of each line.

    Args:
        size: number of coefficients along each axis.
        kept: number of coefficients in the block along each axis, whole numbers.
    """

    def __init__(self, size: Sequence[int], kept: Sequence[float]):
        self.size, self.kept = tuple(size), tuple(map(int, kept))
        self._block = tuple(slice(k) for k in self.kept)
        rest = [n - k for n, k in zip(self.size, self.kept)]
        self._ends = list(accumulate(rest, initial=prod(self.kept)))

    def _rests(self, x: Tensor) -> list[Tensor]:
        """Return views of the coefficients of each line beyond the block."""
        axes = range(len(self.size))
        return [x[(..., *(slice(self.kept[a], None) if a == axis else 0 for a in axes))] for axis in axes]

    def pack(self, x: Tensor) -> Tensor:
        """Pack coefficients ``(..., *S)`` to ``(..., M)``."""
        return torch.cat([x[(..., *self._block)].flatten(-len(self.size)), *self._rests(x)], dim=-1)

    def unpack(self, packed: Tensor, into: Tensor) -> Tensor:
        """Replace coefficients of ``into`` ``(..., *S)`` by those that are packed, ``(..., M)``, and return it."""
        into[(..., *self._block)] = self.block(packed)
        for rest, start, end in zip(self._rests(into), self._ends, self._ends[1:]):
            rest.copy_(packed[..., start:end])
        return into

    def block(self, packed: Tensor) -> Tensor:
        """Return a view of the block in packed coordinates, ``(..., *kept)``."""
        return packed[..., : self._ends[0]].unflatten(-1, self.kept)

    def line(self, axis: int, device: torch.device) -> Tensor:
        """Return the packed indices of the coefficients that vary along one axis only, ``(n,)``."""
        stride = prod(self.kept[axis + 1 :])
        block = torch.arange(0, self.kept[axis] * stride, stride, device=device)
        return torch.cat([block, torch.arange(self._ends[axis], self._ends[axis + 1], device=device)])
