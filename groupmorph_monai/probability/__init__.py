"""Posteriors, priors, likelihoods, and the evidence lower bound that combines them."""

from .elbo import NegativeELBO
from .likelihood import GroupNMI, Likelihood, Linearised, SquaredError, comparable, impute
from .local_correlation import GaussianCorrelation, LocalCorrelation, WindowCorrelation
from .posterior import CodePosterior, Posterior, StepPosterior, split_parameters
from .prior import (
    AffineNorm,
    FluidPrior,
    MomentumNorm,
    Prior,
    UnitGaussian,
    VelocityPrior,
    fading_weight,
)
from .structure import LowRank, NormalisedGradient
from .surface import SurfaceDistance
from .temporal_prior import TemporalPrior

__all__ = [
    "AffineNorm",
    "CodePosterior",
    "FluidPrior",
    "GaussianCorrelation",
    "GroupNMI",
    "Likelihood",
    "Linearised",
    "LocalCorrelation",
    "LowRank",
    "MomentumNorm",
    "NegativeELBO",
    "NormalisedGradient",
    "Posterior",
    "Prior",
    "SquaredError",
    "StepPosterior",
    "SurfaceDistance",
    "TemporalPrior",
    "UnitGaussian",
    "VelocityPrior",
    "WindowCorrelation",
    "comparable",
    "fading_weight",
    "impute",
    "split_parameters",
]
