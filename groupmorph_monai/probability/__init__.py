"""What is likely: posterior, prior, likelihood and the bound that joins them."""

from .elbo import NegativeELBO
from .likelihood import GroupNMI
from .local_correlation import LocalCorrelation
from .posterior import draw, split_parameters
from .prior import FluidPrior
from .structure import LowRank, NormalisedGradient

__all__ = [
    "FluidPrior",
    "GroupNMI",
    "LocalCorrelation",
    "LowRank",
    "NegativeELBO",
    "NormalisedGradient",
    "draw",
    "split_parameters",
]
