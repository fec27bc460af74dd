"""What is likely: posterior, prior, likelihood and the bound that joins them."""

from .elbo import NegativeELBO
from .likelihood import GroupNMI
from .posterior import draw, split_parameters
from .prior import FluidPrior

__all__ = ["FluidPrior", "GroupNMI", "NegativeELBO", "draw", "split_parameters"]
