import pytest
import torch

from groupmorph_monai.probability import LocalCorrelation
from groupmorph_monai.space import DisplacementField, Lattice
from groupmorph_monai.space.filters import gaussian_filter
from groupmorph_monai.workflow.evidence import Evidence, Level, Quadratic


@pytest.mark.parametrize("timepoints", [2, 6])
def test_noise_alone_determines_nothing_and_anatomy_without_noise_all(timepoints):
    likelihood = LocalCorrelation((2,), noise=1e-3)
    noise = torch.rand(1, timepoints, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    gains = torch.linspace(1, 2, timepoints).view(1, -1, 1, 1, 1)
    anatomy = gains * gaussian_filter(noise[:, :1], 1.5).expand_as(noise)
    shares = []
    for x in (noise, anatomy):
        level = Level(x, Evidence(mask=torch.ones_like(x)), 1, 2)
        ddf = DisplacementField(torch.zeros(1, timepoints, 3, 16, 16, 16), Lattice(x.shape[2:], 2))
        model = level.model(likelihood, ddf)
        shares.append(float(level.without_guide_noise(model, likelihood, ddf).curvature.sum() / model.curvature.sum()))
    assert shares[0] < 0.3 and shares[1] > 0.7


def test_voxels_that_move_out_of_view_do_not_count_as_a_gain():
    force, curvature = torch.zeros(2, 3, 3), torch.zeros(2, 3, 3, 3)
    before = Quadratic(torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([2.0, 2, 2, 2]), force, curvature)
    after = Quadratic(torch.tensor([-0.5, -1.0, 0.0, -0.5]), torch.tensor([2.0, 2, 0, 0.5]), force, curvature)
    gain = 0.5 + 1 + 0.5 * (-1 + 2)  # the last for the share of a volume that both cover
    assert after.gain_over(before) == gain and before.gain_over(after) == -gain


def test_displacements_are_those_of_the_lattice_of_the_level():
    level = Level(torch.zeros(1, 2, 8, 8, 8), Evidence(), 1, 2)
    with pytest.raises(ValueError, match="ddf: expected the lattice of z.*step=2.*step=1"):
        level.warped(DisplacementField.on_voxels(torch.zeros(1, 2, 3, 8, 8, 8)))


def test_a_single_mask_moves_with_its_own_timepoint():
    mask, ddf = torch.rand(1, 1, 6, 5, 4), torch.zeros(1, 3, 3, 6, 5, 4)
    ddf[:, 0, 0] = 2
    level = Level(mask.repeat(1, 3, 1, 1, 1), Evidence(mask=mask, mask_timepoint=2), 1, 1)
    torch.testing.assert_close(level.warped(DisplacementField.on_voxels(ddf))[2], mask)


def test_a_step_that_changes_only_what_the_mask_leaves_out_is_neither_better_nor_worse():
    x = torch.rand(1, 1, 16, 14, 12, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1, 1, 1)
    mask = torch.zeros_like(x[:, :1])
    mask[:, :, :6] = 1
    shift = torch.zeros(1, 2, 3, 16, 14, 12)
    shift[:, :, :, 10:] = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1, 1)
    fields = [DisplacementField.on_voxels(ddf) for ddf in (torch.zeros_like(shift), shift)]
    for held in (mask, mask.expand_as(x)):
        level = Level(x, Evidence(mask=held), 1, 1)
        one, other = (level.model(LocalCorrelation((1,)), ddf) for ddf in fields)
        assert abs(float(other.gain_over(one))) < 1e-4 and one.voxels == 6 * 14 * 12
    free = Level(x, Evidence(), 1, 1)
    one, other = (free.model(LocalCorrelation((1,)), ddf) for ddf in fields)
    assert abs(float(other.gain_over(one))) > 1
