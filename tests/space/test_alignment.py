import pytest
import torch

from groupmorph_monai.errors import InputError
from groupmorph_monai.space import (
    Displacement,
    MeanAlignment,
    OneWayAlignment,
    ReferenceAlignment,
    ScalingAndSquaring,
    voxel_grid,
)

SIZE = (17, 17, 17)
INSIDE = (..., *[slice(5, -5)] * 3)
EXP = ScalingAndSquaring(9)
ROTATION = torch.tensor([[0, -0.15, 0], [0.15, 0, 0], [0, 0, 0]], dtype=torch.float64)
SHEAR = torch.tensor([[0, 0, 0.15], [0, 0.1, 0], [0, 0, 0]], dtype=torch.float64)


def linear(matrix):
    centred = voxel_grid(SIZE, torch.empty(0, dtype=torch.float64)) - 8
    return torch.einsum("de,eijk->dijk", matrix, centred)


def velocities():
    return torch.stack([linear(ROTATION), linear(SHEAR), linear(0.5 * ROTATION)])[None]


@pytest.mark.parametrize("transformation", [EXP, Displacement(40)])
@pytest.mark.parametrize("reference", [0, 1, 2])
def test_the_reference_stays_exactly(reference, transformation):
    alignment = ReferenceAlignment(reference)
    assert alignment(velocities(), transformation)[:, reference].abs().max() == 0
    assert alignment.inverse(velocities(), transformation)[:, reference].abs().max() == 0


def test_others_are_composed_with_the_references_inverse_where_velocities_do_not_commute():
    ddf = ReferenceAlignment(0)(velocities(), EXP)[0, 1]
    eye = torch.eye(3, dtype=torch.float64)
    expected = linear(torch.linalg.matrix_exp(SHEAR) @ torch.linalg.matrix_exp(-ROTATION) - eye)
    subtracted = linear(torch.linalg.matrix_exp(SHEAR - ROTATION) - eye)
    assert (ddf - expected)[INSIDE].abs().max() < 2e-3
    assert (subtracted - expected)[INSIDE].abs().max() > 2e-2


def test_one_way_each_timepoint_has_its_own_velocity_and_the_references_does_not_count():
    alignment, z = OneWayAlignment(1), velocities()
    ddf, inverse = alignment(z, EXP)[0], alignment.inverse(z, EXP)[0]
    assert ddf[1].abs().max() == inverse[1].abs().max() == 0
    for k, matrix in ((0, ROTATION), (2, 0.5 * ROTATION)):
        for actual, sign in ((ddf[k], 1), (inverse[k], -1)):
            expected = linear(torch.linalg.matrix_exp(sign * matrix) - torch.eye(3, dtype=torch.float64))
            assert (actual - expected)[INSIDE].abs().max() < 2e-3
    with pytest.raises(InputError, match="reference.*3 timepoints.*got 3"):
        OneWayAlignment(3)(z, EXP)


@pytest.mark.parametrize("alignment", [MeanAlignment(), ReferenceAlignment(1), OneWayAlignment(1)])
def test_centring_keeps_differences(alignment):
    z = alignment.constrain(velocities())
    centred = alignment.centred(z)
    torch.testing.assert_close(centred[:, 2] - centred[:, 0], z[:, 2] - z[:, 0])
    if isinstance(alignment, OneWayAlignment):
        assert centred.mean(dim=1).abs().max() < 1e-12 and z.mean(dim=1).abs().max() > 0.1
        # Of the reference, whatever it is said to move by: its velocity does not count.
        shifted = velocities()
        shifted[:, 1] += 3
        torch.testing.assert_close(alignment.centred(shifted), centred)


def test_translations_commute():
    shifts = torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, -1]], dtype=torch.float64)
    z = shifts.view(1, 3, 3, 1, 1, 1).expand(1, 3, 3, *SIZE)
    ddf = ReferenceAlignment(2)(z, EXP)
    torch.testing.assert_close(ddf[0, :, :, 8, 8, 8], shifts - shifts[2], atol=1e-12, rtol=0)


def test_removing_the_mean_leaves_velocities_that_sum_to_zero():
    ddf = MeanAlignment(remove_mean=True)(velocities(), Displacement())
    torch.testing.assert_close(ddf.sum(dim=1), torch.zeros_like(ddf[:, 0]), atol=1e-12, rtol=0)
    torch.testing.assert_close(MeanAlignment()(velocities(), Displacement()), velocities())


def test_reordering_the_timepoints_reorders_the_result():
    order = [2, 0, 1]
    ddf = ReferenceAlignment(0)(velocities(), EXP)
    torch.testing.assert_close(ReferenceAlignment(1)(velocities()[:, order], EXP), ddf[:, order])


def test_a_reference_that_the_series_lacks_is_named():
    with pytest.raises(ValueError, match="reference.*3 timepoints, 0 to 2, got 5"):
        ReferenceAlignment(5)(velocities(), EXP)
