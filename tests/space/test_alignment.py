import pytest
import torch

from groupmorph_monai.errors import InputError
from groupmorph_monai.space import (
    Displacement,
    MeanAlignment,
    OneWayAlignment,
    ReferenceAlignment,
    ScalingAndSquaring,
    VelocityField,
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
    return VelocityField.on_voxels(torch.stack([linear(ROTATION), linear(SHEAR), linear(0.5 * ROTATION)])[None])


@pytest.mark.parametrize("transformation", [EXP, Displacement(40)])
@pytest.mark.parametrize("reference", [0, 1, 2])
def test_the_reference_stays_exactly(reference, transformation):
    alignment = ReferenceAlignment(reference)
    assert alignment(velocities(), transformation).values[:, reference].abs().max() == 0
    assert alignment.inverse(velocities(), transformation).values[:, reference].abs().max() == 0


@pytest.mark.parametrize("alignment", [MeanAlignment(), ReferenceAlignment(1), OneWayAlignment(1)])
def test_centring_keeps_differences(alignment):
    constrained = alignment.constrain(velocities())
    z, centred = constrained.values, alignment.centred(constrained).values
    torch.testing.assert_close(centred[:, 2] - centred[:, 0], z[:, 2] - z[:, 0])
    if isinstance(alignment, OneWayAlignment):
        assert centred.mean(dim=1).abs().max() < 1e-12 and z.mean(dim=1).abs().max() > 0.1
        # The velocity predicted for the reference has no effect.
        shifted = velocities()
        shifted.values[:, 1] += 3
        torch.testing.assert_close(alignment.centred(shifted).values, centred)


def test_a_reference_that_the_series_lacks_is_named():
    with pytest.raises(ValueError, match="reference.*3 timepoints, 0 to 2, got 5"):
        ReferenceAlignment(5)(velocities(), EXP)
    with pytest.raises(InputError, match="reference.*3 timepoints.*got 3"):
        OneWayAlignment(3)(velocities(), EXP)
    for call in (OneWayAlignment(3).constrain, lambda z: OneWayAlignment(3).inverse(z, EXP)):
        with pytest.raises(InputError, match="reference.*3 timepoints.*got 3"):
            call(velocities())
