"""Refinements with short schedules, for tests."""

import math

import torch

from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.space import GeodesicMeanAlignment, Lattice, ScalingAndSquaring, VelocityField
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.workflow import LikeliestWeights, Refinement, Schedule, StaticRegions
from groupmorph_monai.workflow.evidence import Evidence, Level
from groupmorph_monai.workflow.precision import FreeLinearPrecision

EXP = ScalingAndSquaring(6)

WEIGHTS, STATIC = LikeliestWeights(), StaticRegions(window_voxels=2.0, nats=0.005, least_share=0.01)


def displacement(z):
    return EXP(GeodesicMeanAlignment().constrain(z))


def refinement(likelihood=None, prior_weights=WEIGHTS, **schedule):
    prior = FluidPrior(0, 0, 0, 60)
    return Refinement(likelihood or LocalCorrelation(), prior, Schedule(**schedule), prior_weights, STATIC)


def restart(ask, candidates, static, images, mask=None, covered=None):
    level = Level(images, Evidence(covered, mask), 1, 2)
    return ask._most_likely(candidates, static, level, displacement)


def images(phantom):
    x = phantom["image"]
    return (x / x.quantile(0.99)).clamp(0, 1)[None]


def start(phantom, timepoints=4):
    lattice = Lattice(phantom["image"].shape[1:], 4)
    return VelocityField(torch.zeros(1, timepoints, 3, *lattice.shape), lattice)


def dense_precision(precision, size):
    """Compute the ``(N, N)`` precision of one component on N voxels from its spectrum; for `FreeLinearPrecision` linear
    fields are integrated out."""
    number = math.prod(size)
    cosine, identity = CosineTransform(size, precision.spectrum), torch.eye(number).double().view(number, *size)
    dense = cosine.inverse(precision.spectrum * cosine(identity)).flatten(1)
    if not isinstance(precision, FreeLinearPrecision):
        return dense
    axes = torch.meshgrid(*[torch.arange(n).double() - (n - 1) / 2 for n in size], indexing="ij")
    linear = torch.stack([axis.flatten() for axis in axes], dim=1)
    across = dense @ linear
    return dense - across @ torch.linalg.solve(linear.T @ across, across.T)
