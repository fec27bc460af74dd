import numpy as np
import pytest
import torch

from groupmorph_monai.benchmarks.paper.cases import cases
from groupmorph_monai.benchmarks.paper.measures import FieldTransform, curve_roughness_percent, measure, true_points_mm
from groupmorph_monai.space import DisplacementField, invert, voxel_grid
from groupmorph_monai.space.grid import Grid


@pytest.fixture(scope="module")
def series():
    (case,) = cases("phantom", [6], (32, 28, 24), 3)
    return case.load()


def test_no_registration_leaves_what_the_truth_says(series):
    zero = torch.zeros_like(series["motion"])
    numbers, arrays = measure(series, zero, zero)
    places = series["landmarks_mm"]
    distances = torch.cat([(places[i] - places[j]).norm(dim=1) for i, j in ((0, 1), (0, 2), (1, 2))])
    assert numbers["landmarks_mm_mean"] == pytest.approx(distances.mean().item(), rel=1e-6)
    assert numbers["landmarks_mm_sd"] == pytest.approx(distances.std(correction=0).item(), rel=1e-6)
    assert numbers["inverse_consistency_mm"] == 0 and numbers["folding_percent"] == 0
    np.testing.assert_allclose(arrays["jacobian"], 1)
    middle = series["image"][..., 12]
    np.testing.assert_allclose(arrays["subtraction"], middle.mean(0) - middle[0], atol=1e-3)
    assert np.median(arrays["landmark_quantiles_mm"]) == pytest.approx(distances.median().item(), rel=1e-2)


def test_the_true_motion_leaves_nothing(series):
    true = invert(DisplacementField.on_voxels(series["motion"][None]), iterations=60).values[0]
    zero = torch.zeros_like(true)
    before, _ = measure(series, zero, zero)
    for fields in ((true,), (true, series["motion"])):
        after, _ = measure(series, *fields)
        assert after["true_error_mm"] < 0.02 and after["landmarks_mm_mean"] < 0.03
        assert after["rmse"] < 0.75 * before["rmse"] and after["nmi"] > before["nmi"]
        assert after["curve_roughness_percent"] < 0.75 * before["curve_roughness_percent"]


def test_true_points_are_the_same_tissue_in_every_timepoint(series):
    points = true_points_mm(series["motion"], series["image"], series["affine"])
    assert len(points[0]) > 200
    mapped = FieldTransform(series["motion"][1], Grid(series["image"].shape[1:], series["affine"]))(points[1])
    template = FieldTransform(series["motion"][0], Grid(series["image"].shape[1:], series["affine"]))(points[0])
    torch.testing.assert_close(mapped, template, atol=2e-3, rtol=0)


def test_the_inverse_of_a_single_field_is_solved_at_the_requested_points():
    """The map stretches by 1.2 about the centre of an anisotropic grid."""
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0]))
    middle = torch.tensor([10.0, 10, 10]).view(3, 1, 1, 1)
    field = 0.2 * (voxel_grid((21, 21, 21), torch.empty(0)) - middle)
    transform = FieldTransform(field, Grid((21, 21, 21), affine))
    points = torch.tensor([[12.0, 16.0, 36.0], [6.0, 22.0, 24.0]], dtype=torch.float64)
    centre = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(transform.inverse(points), centre + (points - centre) / 1.2, atol=1e-5, rtol=0)


def test_a_line_is_smooth_and_a_bump_as_rough_as_it_is_high():
    covered = torch.ones(5, 5, 5, dtype=torch.bool)
    times = torch.tensor([0.0, 90.0, 150.0, 210.0])
    base = torch.rand(5, 5, 5, generator=torch.Generator().manual_seed(0))
    line = base + times.view(-1, 1, 1, 1)
    assert curve_roughness_percent(line, covered, times) < 1e-4
    bumped = line.clone()
    bumped[1] += 30
    low, high = np.percentile(bumped.numpy(), (1, 99))
    # The bump is 30 above the line between its neighbours; the line at the next scan is too high by half of that.
    expected = 100 * ((30**2 + 15**2) / 2) ** 0.5 / (high - low)
    assert curve_roughness_percent(bumped, covered, times) == pytest.approx(expected, rel=1e-3)
    assert np.isnan(curve_roughness_percent(line[:2], covered, times[:2]))
