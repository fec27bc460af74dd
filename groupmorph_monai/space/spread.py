"""Standard deviations of displacements: over draws, and behind an affine map."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["affine_std", "standard_deviation"]


def standard_deviation(fields: Iterable[Tensor]) -> Tensor:
    """Compute the standard deviation over ``fields``, tensors of one shape, holding one of them at a time.

    Deviations are taken from the running mean (Welford 1962): the difference of the sum of squares and the squared sum
    cancels in float32 where displacements are long and their spread is small.

    Returns: like one of the fields; 0 for a single one.
    """
    mean = squares = number = 0
    for number, field in enumerate(fields, start=1):
        deviation = field - mean
        mean = mean + deviation / number
        squares = squares + deviation * (field - mean)
    return (squares / max(number - 1, 1)).sqrt()


def affine_std(std: Tensor, maps: Tensor) -> Tensor:
    """Carry the standard deviations of displacements through the affine maps that are applied after them.

    Timepoint k lies at ``A_k (x + u_k(x)) + b_k``, whose covariance is ``A_k C_k A_k^T`` with ``C_k`` that of ``u_k``.
    ``C_k`` is taken as diagonal, and the diagonal of the product is kept: component d becomes ``sqrt(sum_e A_de^2
    std_e^2)``. The trace, and with it the length that is written, is exact for a diagonal ``C_k``, and for any ``C_k``
    where ``A_k`` is a rotation and a scale.

    Args:
        std: ``(K, D, *S)``, of each component.
        maps: ``(K, D + 1, D + 1)``, in the coordinates of the components.
    Returns: ``(K, D, *S)``.
    """
    linear = maps[:, :-1, :-1].to(std)
    return torch.einsum("kde,ke...->kd...", linear.square(), std.square()).sqrt()
