"""Standard deviation of displacements over draws."""

from collections.abc import Iterable

import torch
from torch import Tensor


def standard_deviation(fields: Iterable[Tensor]) -> Tensor:
    """Compute the standard deviation over ``fields``, tensors of the same shape, holding one of them at a time.

    Uses Welford's algorithm (1962): the difference of the sum of squares and the squared sum suffers from cancellation
    in float32 where displacements are long and their spread is small.

    Returns:
        A tensor of the shape of one field; 0 for a single field.
    """
    mean, squares, count = torch.zeros(()), torch.zeros(()), 0
    for count, field in enumerate(fields, start=1):
        deviation = field - mean
        mean = mean + deviation / count
        squares = squares + deviation * (field - mean)
    return (squares / max(count - 1, 1)).sqrt()
