"""Process K timepoints a few at a time."""

from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor

Chunks = Callable[[int], Iterable[slice]]  # maps K to consecutive slices that cover the K timepoints


def all_at_once(timepoints: int) -> list[slice]:
    """Return one chunk with all timepoints."""
    return [slice(0, timepoints)]


def total(parts: Iterable[Tensor]) -> Tensor:
    """Sum tensors as they are computed, holding only the sum and one of them at a time."""
    return reduce(torch.add, parts)
