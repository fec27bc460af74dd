"""Smoothing filters from momenta to velocities."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .chunks import total
from .cosine_transform import CosineTransform
from .sampling import full_precision, placed_once


class MultiGaussian:
    """Multi-Gaussian smoothing ``v = (L^T L)^-1 m``: a weighted sum of Gaussian filters with free borders, diagonal in
    cosine coordinates (AVSM, Section 3 after Eq. 9; Risser et al. 2011).

    Args:
        widths: standard deviations, as fractions of the field's extent along each axis.
        weights: weights of the Gaussians, each of which integrates to 1.
    """

    def __init__(
        self,
        widths: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.25),
        weights: Sequence[float] = (0.067, 0.133, 0.2, 0.267, 0.333),
    ):
        if len(widths) != len(weights) or not widths or min(*widths, *weights) <= 0:
            raise ValueError(f"widths, weights: expected equally many numbers above 0, got {widths} and {weights}")
        self.widths, self.weights = tuple(widths), tuple(weights)

    def spectrum(self, size: Sequence[int]) -> Tensor:
        """Return the eigenvalues of the filter in cosine coordinates, ``(*S)`` float64."""
        # The m-th cosine has the angular frequency pi m per extent.
        lines = [(math.pi * torch.arange(n, dtype=torch.float64)).square() for n in size]
        squares = total(torch.meshgrid(lines, indexing="ij"))
        return total(w * torch.exp(-0.5 * width**2 * squares) for width, w in zip(self.widths, self.weights))

    @full_precision
    def __call__(self, momentum: Tensor) -> Tensor:
        """Smooth ``momentum`` ``(..., *S)`` over its 3 spatial axes."""
        size = momentum.shape[-3:]
        cosine = CosineTransform(size, momentum)
        return cosine.inverse(placed_once(self.spectrum, size, like=momentum) * cosine(momentum))
