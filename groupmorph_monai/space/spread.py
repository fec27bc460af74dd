"""Standard deviations of displacements over draws."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["standard_deviation"]


def standard_deviation(fields: Iterable[Tensor]) -> Tensor:
    """Compute the standard deviation over ``fields``, tensors of one shape, holding one of them at a time.

    Deviations are taken from the running mean (Welford 1962): the difference of the sum of squares and the squared sum
    cancels in float32 where displacements are long and their spread is small.

    Returns: like one of the fields; 0 for a single one.
    """
    mean, squares, number = torch.zeros(()), torch.zeros(()), 0
    for number, field in enumerate(fields, start=1):
        deviation = field - mean
        mean = mean + deviation / number
        squares = squares + deviation * (field - mean)
    return (squares / max(number - 1, 1)).sqrt()
