"""Standard deviation of displacements over draws."""

from collections.abc import Iterable

import torch

from .field import Field


def standard_deviation(fields: Iterable[Field]) -> Field:
    """Compute the standard deviation of each component over ``fields``, one or more on the same lattice, holding one of
    them at a time.

    Uses Welford's algorithm (1962): the difference of the sum of squares and the squared sum suffers from cancellation
    in float32 where displacements are long and their spread is small.

    Returns:
        Standard deviations on the same lattice; 0 for a single field.
    """
    remaining = iter(fields)
    first = next(remaining)
    mean, squares, count = first.values, torch.zeros_like(first.values), 1
    for count, field in enumerate(remaining, start=2):
        deviation = field.values - mean
        mean = mean + deviation / count
        squares = squares + deviation * (field.values - mean)
    return Field((squares / max(count - 1, 1)).sqrt(), first.lattice)
