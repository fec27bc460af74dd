"""Standard deviation of displacements over draws."""

from collections.abc import Iterable

import torch

from .field import AnyField


def standard_deviation(fields: Iterable[AnyField]) -> AnyField:
    """Compute the standard deviation of each component over ``fields``, one or more on the same lattice, holding one of
    them at a time.

    Uses Welford's algorithm (1962): the difference of the sum of squares and the squared sum suffers from cancellation
    in float32 where displacements are long and their spread is small.

    Returns:
        Standard deviations on the same lattice; 0 for a single field.
    """
    mean, squares, count = torch.zeros(()), torch.zeros(()), 0
    for count, field in enumerate(fields, start=1):
        deviation = field.values - mean
        mean = mean + deviation / count
        squares = squares + deviation * (field.values - mean)
    return field.with_values((squares / max(count - 1, 1)).sqrt())
