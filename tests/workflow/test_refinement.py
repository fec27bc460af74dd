import pytest
import torch
from refinements import EXP, displacement, images, refinement, restart, start

from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import folding_percent, landmark_distances_mm
from groupmorph_monai.probability import GroupNMI, LocalCorrelation
from groupmorph_monai.space import FlowSequence, GeodesicMeanAlignment, Lattice, VelocityField
from groupmorph_monai.space.transforms import interpolate
from groupmorph_monai.workflow import LikeliestWeights, timepoint_transforms
from groupmorph_monai.workflow.evidence import Evidence, Level


def errors(phantom, z):
    ddf, inverse = (EXP(v).at(1) for v in (z, -z))
    transforms = timepoint_transforms(ddf, inverse, torch.eye(4))
    return landmark_distances_mm(phantom["landmarks"], transforms), folding_percent(ddf)


def test_it_finds_a_known_motion_under_changing_contrast(phantom):
    before, _ = errors(phantom, start(phantom).at(2))
    z = refinement(iterations=(0, 0, 4, 4, 8))(start(phantom), images(phantom), displacement)
    after, folds = errors(phantom, z)
    assert before.mean() > 1
    assert after.median() < 0.12 and after.mean() < 0.2 * before.mean() and folds == 0
    assert z.values.mean(dim=1).abs().max() < 1e-4


def test_a_small_scan_is_aligned_with_large_ones(phantom):
    x, first, last = images(phantom), torch.tensor([12, 10, 8]), torch.tensor([31, 29, 27])
    coverage = torch.ones_like(x)
    coverage[:, 1] = 0
    coverage[:, 1, 12:32, 10:30, 8:28] = 1
    z = refinement(iterations=(0, 0, 4, 4, 8))(start(phantom), x * coverage, displacement, Evidence(coverage))
    model = Level(x * coverage, Evidence(coverage), 1, 2).model(LocalCorrelation(), displacement(z))
    # Nothing moves all volumes that are measured at a voxel, which would also move those that are not.
    assert model.force.sum(dim=0).abs().max() < 1e-4 * model.force.abs().max()
    ddf, inverse = (EXP(v).on_image()[0] for v in (z, -z))
    points = phantom["landmarks"]
    covered = ((points[1] >= first) & (points[1] <= last)).all(dim=1)
    common = points[1] + interpolate(inverse[1], points[1])
    errors_voxels = [common + interpolate(ddf[k], common) - points[k] for k in (0, 2, 3)]
    assert covered.sum() > 50 and torch.stack(errors_voxels)[:, covered].norm(dim=2).mean() < 0.25


def test_a_likelihood_without_a_closed_form_works_too(phantom):
    before, _ = errors(phantom, start(phantom).at(2))
    after, _ = errors(phantom, refinement(likelihood=GroupNMI())(start(phantom), images(phantom), displacement))
    assert after.mean() < 0.8 * before.mean()


def test_it_repeats_itself_and_a_batch_equals_its_items(phantom):
    # Rounding, which depends on the order of the timepoints, grows with the number of conjugate gradient steps.
    short = refinement(iterations=(2, 2, 2, 2, 1), conjugate_steps=8)
    x = images(phantom)
    batch = torch.cat([x, x.flip(1)])
    begin = start(phantom)
    together = short(begin.with_values(begin.values.expand(2, -1, -1, -1, -1, -1)), batch, displacement).values
    assert torch.equal(together[:1], short(begin, x, displacement).values)
    torch.testing.assert_close(together[1:], together[:1].flip(1), atol=2e-3, rtol=0)


def test_voxels_outside_the_mask_do_not_drive_the_result(phantom):
    x = images(phantom)
    mask = torch.zeros_like(x)
    mask[:, :, :22] = 1
    disturbed = x.clone()
    disturbed[:, :, 34:] = torch.rand(disturbed[:, :, 34:].shape, generator=torch.Generator().manual_seed(0))
    # Windows and smoothing reach at most 12 voxels, less than the distance to the changed voxels.
    short = refinement(levels=(2, 1), iterations=(3, 2), prior_weights=None)

    def refined(images, mask=None):
        return short(start(phantom), images, displacement, Evidence(mask=mask)).values

    clean, same, free = refined(x, mask), refined(disturbed, mask), refined(disturbed)
    inside = (..., slice(0, 10), slice(None), slice(None))
    assert (same - clean)[inside].abs().max() < 0.02
    torch.testing.assert_close(refined(x, mask[:, :1]), clean, atol=0.3, rtol=0)
    assert (free - clean).abs().max() > 0.1


def test_a_level_begins_from_the_likelier_field(phantom):
    ask, x = refinement(levels=(2, 1), iterations=(3, 2)), images(phantom)
    refined = ask(start(phantom), x, displacement)
    nothing = refined.with_values(torch.zeros_like(refined.values))
    for one, other in ((refined, nothing), (nothing, refined)):
        z, any_static = restart(ask, (one, other), [nothing], x)
        assert torch.equal(z.values, refined.values) and not any_static


def test_the_mean_of_several_velocities_is_refined_and_their_deviations_are_kept(phantom):
    x, short = images(phantom), refinement(levels=(4, 2, 1), iterations=(4, 4, 3))
    sequence = FlowSequence(EXP, 3)

    def one_after_the_other(z):
        return sequence(GeodesicMeanAlignment().constrain(z))

    begin = start(phantom)
    stationary = short(begin, x, displacement).values
    alike = short(begin.with_values(begin.values.repeat(1, 1, 3, 1, 1, 1)), x, one_after_the_other)
    assert stationary.abs().mean() > 0.1
    # Three flows of a third each equal the single one, up to integration errors; at the border, the coverage changes.
    inner = (..., *[slice(3, -3)] * 3)
    difference = alike.values - stationary.repeat(1, 1, 3, 1, 1, 1)
    assert difference[inner].abs().mean() < 0.05 * stationary[inner].abs().mean()
    first, second, third = (v.view(1, 1, 3, 1, 1, 1) * torch.ones_like(begin.values) for v in torch.eye(3))
    apart = torch.cat([first, second, third], dim=2)
    kept = short(begin.with_values(apart), x, one_after_the_other).values.chunk(3, dim=2)
    for part, start_part in zip(kept, apart.chunk(3, dim=2)):
        difference = part - (kept[0] + kept[1] + kept[2]) / 3
        # On every second voxel instead of every fourth a voxel is half as long.
        expected = 2 * (start_part - (first + second + third) / 3)[..., :1, :1, :1].expand_as(difference)
        torch.testing.assert_close(difference, expected, atol=1e-4, rtol=0)
    draws = [draw.values for draw in short.draws(alike, x, one_after_the_other, number=2)]
    assert draws[0].shape == alike.values.shape and (draws[0] - draws[1]).abs().max() > 1e-3
    parts = (draws[0] - alike.values).chunk(3, dim=2)
    torch.testing.assert_close(parts[1], parts[0], atol=1e-5, rtol=0)


def test_where_nothing_counts_nothing_moves_and_no_draws_are_made():
    x = torch.rand(1, 2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    nothing = Evidence(mask=torch.zeros_like(x[:, :1]))
    z = VelocityField(torch.zeros(1, 2, 3, 12, 12, 12), Lattice((24, 24, 24), 2))
    assert not refinement()(z, x, displacement, nothing).values.any()
    with pytest.raises(InputError, match="std_draws.*two timepoints cover.*wider mask"):
        next(refinement().draws(z, x, displacement, nothing))
    with pytest.raises(ValueError, match="independent_share.*got 0, 1.0"):
        LikeliestWeights(independent_share=0)
    with pytest.raises(ValueError, match="factor.*got 0.2, 0"):
        LikeliestWeights(factor=0)
