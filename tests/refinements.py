"""Refinements with short schedules, for tests."""

from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.space import MeanAlignment, ScalingAndSquaring
from groupmorph_monai.workflow import LikeliestWeights, Refinement, Schedule, StaticRegions
from groupmorph_monai.workflow.evidence import Evidence, Level

EXP = ScalingAndSquaring(6)

WEIGHTS, STATIC = LikeliestWeights(), StaticRegions(window_voxels=2.0, nats=0.005, least_share=0.01)


def displacement(z):
    return EXP(MeanAlignment(remove_mean=True).constrain(z))


def refinement(likelihood=None, prior_weights=WEIGHTS, **schedule):
    prior = FluidPrior(0, 0, 0, 60)
    return Refinement(likelihood or LocalCorrelation(), prior, Schedule(**schedule), prior_weights, STATIC)


def restart(ask, candidates, static, images, mask=None, covered=None):
    level = Level(images, Evidence(covered, mask), 1, 2)
    return ask._most_likely(candidates, static, level, lambda z: displacement(z.values))
