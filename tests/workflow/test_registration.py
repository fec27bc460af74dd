"""Composition of deformations and initial affine maps."""

import pytest
import torch
from torch.nn.functional import interpolate

from groupmorph_monai.space import DisplacementField, Grid, Lattice
from groupmorph_monai.workflow import ComposeTransformsd, timepoint_transforms

SIZE = (14, 12, 10)
GRID = torch.tensor([[0.0, -2, 0.2, 5], [1.5, 0, 0, -7], [0, 0.1, 4, 30], [0, 0, 0, 1]], dtype=torch.float64)


def smooth(seed):
    noise = torch.rand(2, 3, 3, 3, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    return interpolate(noise, size=SIZE, mode="trilinear", align_corners=True)


def maps():
    matrices = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    matrices[1, :3, :3] += 0.1 * torch.rand(3, 3, generator=torch.Generator().manual_seed(2)).double()
    matrices[1, :3, 3] = torch.tensor([6.0, -3.0, 1.5])
    return matrices


def test_the_deformation_comes_first_and_then_the_initial_map():
    ddf, inverse, initial, grid = smooth(0), smooth(1), maps(), Grid(SIZE, GRID)
    transforms = timepoint_transforms(*(DisplacementField.on_voxels(u[None]) for u in (ddf, inverse)), GRID, initial)
    voxel = torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64)
    point = GRID[:3, :3] @ voxel + GRID[:3, 3]
    for k in range(2):
        deformed = point + GRID[:3, :3] @ ddf[k, :, 5, 4, 3].double()
        expected = initial[k, :3, :3] @ deformed + initial[k, :3, 3]
        torch.testing.assert_close(transforms[k](point[None])[0], expected, atol=1e-5, rtol=0)
        # The inverse applies the inverse initial map first, then the inverse field.
        mapped = initial[k, :3, :3] @ point + initial[k, :3, 3]
        expected = point + GRID[:3, :3] @ inverse[k, :, 5, 4, 3].double()
        torch.testing.assert_close(transforms[k].inverse(mapped[None])[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        transforms[1].displacement(grid)[:, 5, 4, 3], (transforms[1](point[None])[0] - point).float()
    )


def test_a_field_on_a_coarse_lattice_gives_the_map_of_its_interpolation():
    coarse = DisplacementField(0.5 * smooth(3)[None, ..., ::2, ::2, ::2], Lattice(SIZE, 2))
    whole = coarse.at(1)
    voxels = torch.rand(50, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 8 + 1
    points = voxels @ GRID[:3, :3].T + GRID[:3, 3]
    of_lattice = timepoint_transforms(coarse, coarse, GRID)
    of_image = timepoint_transforms(whole, whole, GRID)
    for lattice, image in zip(of_lattice, of_image):
        assert (image(points) - points).norm(dim=1).max() > 0.3
        torch.testing.assert_close(lattice(points), image(points), atol=1e-5, rtol=0)


def test_fields_that_do_not_belong_together_are_refused():
    field = DisplacementField(torch.zeros(1, 2, 3, 7, 6, 5), Lattice(SIZE, 2))
    other = DisplacementField(field.values, Lattice((13, 12, 10), 2))
    batch = field.with_values(field.values.expand(2, -1, -1, -1, -1, -1))
    for pair in ((field, other), (field, field.timepoints(slice(0, 1))), (batch, batch)):
        with pytest.raises(ValueError, match="ddf, inverse_ddf: expected fields of one series on one lattice"):
            timepoint_transforms(*pair, GRID)


def test_fields_stay_as_they_are_and_the_spread_passes_through_the_linear_part():
    ddf, std = smooth(0), torch.tensor([0.5, 0.25, 1.0]).view(1, 3, 1, 1, 1).expand(2, 3, *SIZE)
    pred = {"lattice_ddf": ddf, "lattice_inverse_ddf": -ddf, "step": 1, "ddf_std": std}
    item = {"image": torch.zeros(2, *SIZE), "pred": pred, "affine": GRID, "initial": maps()}
    pred = ComposeTransformsd()(item)["pred"]
    assert pred["lattice_ddf"] is ddf
    for k, matrix in enumerate(maps()):
        linear = matrix[:3, :3] @ GRID[:3, :3]
        covariance = linear @ torch.diag(torch.tensor([0.25, 0.0625, 1.0], dtype=torch.float64)) @ linear.T
        expected = covariance.trace().sqrt().float().expand(SIZE)
        torch.testing.assert_close(pred["std_mm"][k], expected)


def test_without_motion_transforms_are_the_identity():
    zero = DisplacementField.on_voxels(torch.zeros(1, 2, 3, *SIZE))
    transforms = timepoint_transforms(zero, zero, GRID, maps())
    assert transforms[0].is_identity and not transforms[1].is_identity
