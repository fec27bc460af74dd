"""Draws of the refinement where the images tell nothing: they are the prior's."""

import pytest
import torch

from groupmorph_monai.probability import FluidPrior, SquaredError
from groupmorph_monai.space import Field, FlowSequence, ScalingAndSquaring
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.workflow import Refinement
from groupmorph_monai.workflow.posterior_draws import _TAILS


@pytest.mark.parametrize("pieces", [1, 3])
def test_each_piece_of_a_velocity_pays_for_what_all_share(pieces):
    size, prior, timepoints = (12, 10, 8), FluidPrior(0.5, 2.0), 3
    refinement = Refinement(SquaredError(1.0), prior)
    z = Field(torch.zeros(1, timepoints, 3 * pieces, 6, 5, 4), size, 2)
    flat = torch.full((1, timepoints, *size), 0.5)
    samples = refinement.draws(z, flat, FlowSequence(ScalingAndSquaring(2), pieces), number=200)
    draws = torch.stack([draw.values[0].unflatten(1, (pieces, 3)) for draw in samples])
    assert torch.equal(draws, draws[:, :, :1].expand_as(draws))
    coefficients = CosineTransform((6, 5, 4), draws)(draws[:, :, 0])
    # N(0, (T Lambda)^-1) for each of K fields, without their mean.
    expected = (1 - 1 / timepoints) / (pieces * prior.spectrum((6, 5, 4), 2.0))
    ratio = (coefficients / _TAILS).square().mean(dim=(0, 1, 2)) / expected
    assert ratio.mean().item() == pytest.approx(1, abs=0.02) and ratio.std() < 0.1
