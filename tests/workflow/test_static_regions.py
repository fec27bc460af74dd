"""Static tissue next to tissue that slides along it."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from refinements import STATIC, displacement, refinement, restart

from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.space import Lattice, VelocityField
from groupmorph_monai.space.filters import gaussian_filter
from groupmorph_monai.workflow import Refinement
from groupmorph_monai.workflow.evidence import EVERYWHERE, Level


def slabs(shift_voxels=6, timepoints=3):
    """Make a texture whose first half slides along j by up to ``shift_voxels`` while the second half is static."""
    noise = torch.rand(1, 1, 40, 48, 32, generator=torch.Generator().manual_seed(0))
    texture = gaussian_filter(noise, 1.0)
    texture = ((texture - 0.35) / 0.3).clamp(0, 1)
    series = []
    for shift in torch.linspace(0, shift_voxels, timepoints).round().int().tolist():
        series.append(torch.cat([texture[:, :, :20].roll(shift, dims=3), texture[:, :, 20:]], dim=2))
    return torch.cat(series, dim=1)


def slid(shift_voxels, timepoints=3):
    z = torch.zeros(1, timepoints, 3, 20, 24, 16)
    z[:, :, 1] = torch.linspace(0, shift_voxels, timepoints).view(1, -1, 1, 1, 1) / 2
    return VelocityField(z - z.mean(dim=1, keepdim=True), Lattice((40, 48, 32), 2))


def test_static_tissue_stays_in_place_beside_sliding_tissue():
    x, sliding = slabs(), slid(6)
    static = sliding.with_values(torch.zeros_like(sliding.values))
    begun, any_static = restart(refinement(), (sliding,), [static], x)
    assert any_static
    torch.testing.assert_close(begun.values[..., :8, :, :], sliding.values[..., :8, :, :])
    # This includes both ends of j, where some voxels have left the field of view.
    assert begun.values[..., 12:, :, :].abs().max() < 1e-3
    refined = 2 * refinement(iterations=(0, 0, 0, 6, 6))(sliding, x, displacement, hypotheses=[static]).values
    inner = (..., slice(5, -5), slice(3, -3))
    assert (refined - 2 * sliding.values)[0, :, 1, 2:7][inner].abs().mean() < 0.3
    assert refined[0, :, 1, 13:18][inner].abs().mean() < 0.3
    begun, any_static = restart(refinement(), (sliding,), [], x)
    assert torch.equal(begun.values, sliding.values) and not any_static
    # An initial map that moved all of it is undone where nothing moved.
    series = torch.cat([v.roll(-k, dims=3) for v, k in zip(x.split(1, dim=1), (0, 3, 6))], dim=1)
    begun, _ = restart(refinement(), (static,), [sliding.with_values(-sliding.values)], series)
    assert begun.values[..., :8, 6:-6, :].abs().max() < 1e-3
    torch.testing.assert_close(begun.values[..., 12:, 6:-6, :], -sliding.values[..., 12:, 6:-6, :], atol=1e-3, rtol=0)


def test_where_nothing_matches_nothing_is_static():
    """A hypothesis that only disagrees less than z does, such as air with air, explains nothing."""
    z, hypothesis, half = slid(6), slid(0), slice(None, 20)
    values, counts, level = (
        torch.zeros(1, 2, 40, 48, 32),
        torch.ones(1, 1, 40, 48, 32),
        Level(slabs(), EVERYWHERE, 1, 2),
    )
    values[:, 0], values[:, 1] = -0.05, -0.01
    fused, any_static = STATIC.fuse(z, [hypothesis], values, counts, level, unrelated=0.0)
    assert torch.equal(fused.values, z.values) and not any_static
    values[:, 1, half] = 0.05
    fused, any_static = STATIC.fuse(z, [hypothesis], values, counts, level, unrelated=0.0)
    assert any_static and fused.values[..., :6, :, :].abs().max() < 1e-3
    torch.testing.assert_close(fused.values[..., 15:, :, :], z.values[..., 15:, :, :])


@pytest.mark.parametrize(("shift_voxels", "slides"), [(4, False), (5, True), (6, True)])
def test_small_motions_do_not_slide(shift_voxels, slides):
    """If all tissue moves by a voxel or two, a hypothesis may be more likely by chance before z is refined."""
    z, hypothesis = slid(shift_voxels), slid(0)
    level = Level(slabs(shift_voxels), EVERYWHERE, 1, 2)
    values, counts = torch.full((1, 2, 40, 48, 32), 0.1), torch.ones(1, 1, 40, 48, 32)
    values[:, 1, 20:] = 0.2
    fused, any_static = STATIC.fuse(z, [hypothesis], values, counts, level, unrelated=0.0)
    assert any_static == slides and torch.equal(fused.values, z.values) != slides
    # Air that matches under no hypothesis does not slide, however far it moves.
    values[:, :, :20], z.values[..., :6, :, :] = 0.0, 9 * z.values[..., :6, :, :]
    fused, any_static = STATIC.fuse(z, [hypothesis], values, counts, level, unrelated=0.0)
    assert any_static == slides and torch.equal(fused.values, z.values) != slides


@pytest.mark.parametrize(("gain", "evident"), [(0.012, False), (0.04, True)])
def test_regions_that_occur_by_chance_are_not_static(gain, evident):
    """Each of 8 regions of 10^3 voxels in 3 timepoints gains ``0.2 * 3000 * gain`` nats and has 7680 possible
    positions."""
    z, hypothesis = slid(6), slid(0)
    values, counts = torch.full((1, 2, 40, 48, 32), 0.1), torch.ones(1, 1, 40, 48, 32)
    for corner in product((5, 25), (7, 31), (3, 19)):
        values[(0, 1, *[slice(c, c + 10) for c in corner])] += gain
    fused, any_static = STATIC.fuse(z, [hypothesis], values, counts, Level(slabs(), EVERYWHERE, 1, 2), unrelated=0.0)
    assert any_static == evident and torch.equal(fused.values, z.values) != evident
    # Likelihoods whose values are not in nats are compared as they are.
    assert STATIC.fuse(z, [hypothesis], values, counts, Level(slabs(), EVERYWHERE, 1, 2))[1]


def test_a_hypothesis_that_reads_beyond_the_border_wins_nothing():
    """One timepoint does not cover the static half, so there is no evidence for either field."""
    x, sliding = slabs(), slid(6)
    covered = torch.ones_like(x)
    covered[:, 1:, 20:] = 0
    x[:, 1:, 20:] = x[:, 1:, 19:20]  # a constant, as beyond a border
    begun, any_static = restart(
        refinement(), (sliding,), [sliding.with_values(torch.zeros_like(sliding.values))], x, covered=covered
    )
    assert torch.equal(begun.values, sliding.values) and not any_static


def test_a_few_voxels_that_seem_to_stay_are_chance():
    first, sliding = slabs()[:, :1], slid(6)
    static = sliding.with_values(torch.zeros_like(sliding.values))
    x = torch.cat([first.roll(shift, dims=3) for shift in (0, 3, 6)], dim=1)
    x[:, :, 16:24, 20:28, 12:20] = first[:, :, 16:24, 20:28, 12:20]
    begun, any_static = restart(refinement(), (sliding,), [static], x)
    assert torch.equal(begun.values, sliding.values) and not any_static
    lenient = Refinement(LocalCorrelation(), FluidPrior(), static_regions=replace(STATIC, least_share=0.0))
    begun, any_static = restart(lenient, (sliding,), [static], x)
    assert any_static and begun.values[0, :, :, 10, 12, 8].abs().max() < 0.5 * sliding.values.abs().max()


def test_outside_of_the_mask_nothing_is_put_back():
    x, sliding = slabs(), slid(6)
    mask = torch.zeros_like(x[:, :1])
    mask[:, :, :20] = 1
    begun, _ = restart(refinement(), (sliding,), [sliding.with_values(torch.zeros_like(sliding.values))], x, mask)
    torch.testing.assert_close(begun.values[..., 12:, :, :], sliding.values[..., 12:, :, :])
