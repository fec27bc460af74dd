"""Process K timepoints a few at a time."""

from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor

__all__ = ["Chunks", "all_at_once", "total"]

Chunks = Callable[[int], Iterable[slice]]  # from K to slices that together cover the K timepoints, in order


def all_at_once(number: int) -> list[slice]:
    """Return one chunk with all timepoints."""
    return [slice(0, number)]


def total(parts: Iterable[Tensor]) -> Tensor:
    """Add tensors as they are computed, so that only one of them is in memory beside their sum."""
    return reduce(torch.add, parts)
