"""Resampling from one grid to another, compared with closed forms on linear ramps and with landmarks of a real pair."""

import logging
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from groupmorph_monai.data.preprocessing.resampling import resample, resample_series, working_grid
from groupmorph_monai.data.reading.points import read_points
from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform

LUNG = Path(__file__).parents[4] / "shared" / "data" / "elastix_lung"
SIZE = (9, 12, 7)
VOLUME = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)


def _affine(spacing=(1.5, 2.0, 3.0)):
    """Return the affine of a rotated grid whose axes are closest to right, anterior and superior."""
    rotation, triangle = np.linalg.qr([[1.2, -0.6, 0.3], [0.5, 1.6, -0.4], [-0.1, 0.5, 2.8]])
    rotation = rotation * np.sign(np.diag(triangle))
    return np.block([[rotation * spacing, np.array([[-20], [5], [40]])], [np.zeros(3), 1]])


def _linear(affine, size, slope=(0.7, -1.1, 0.4)):
    """Make a linear ramp in world coordinates, which linear interpolation reproduces exactly."""
    i, j, k = np.meshgrid(*map(np.arange, size), indexing="ij")
    world = np.einsum("de,eijk->dijk", affine[:3, :3], np.stack([i, j, k])) + affine[:3, 3].reshape(3, 1, 1, 1)
    return np.einsum("d,dijk->ijk", slope, world).astype(np.float32)


def _translation(shift_mm):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.as_tensor(shift_mm, dtype=torch.float64)
    return matrix


def _stored(grid, order, flips):
    """Store the same voxels in another order."""
    affine, shape = grid.affine.clone(), grid.shape
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += (shape[axis] - 1) * affine[:3, axis]
            affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, list(order)]
    return Grid(tuple(shape[axis] for axis in order), affine)


def test_working_grid_keeps_the_first_canonical_voxel_and_covers_the_last():
    grid = Grid(SIZE, _affine((1.5, 2.0, 3.0)))
    assert working_grid([grid], None).matches(grid, 1e-12)
    coarse = working_grid([grid], (3.0, 2.5, 2.0))
    # Extents between voxel centres: 12, 22 and 18 mm.
    assert coarse.shape == (5, 10, 10)
    np.testing.assert_allclose(coarse.affine[:3, 3], grid.affine[:3, 3])
    np.testing.assert_allclose(coarse.spacing_mm, (3.0, 2.5, 2.0))
    np.testing.assert_allclose(coarse.affine[:3, :3] / coarse.spacing_mm, grid.affine[:3, :3] / grid.spacing_mm)
    assert working_grid([grid], 1.0).shape == (13, 23, 19)
    for wrong in (0, -1.0, (1, 2), "fine", float("nan"), (1, 2, 0)):
        with pytest.raises(InputError, match="spacing_mm"):
            working_grid([grid], wrong)


@pytest.mark.parametrize("spacing_mm", [None, "auto", 1.7, (2.0, 2.5, 3.5)])
def test_working_grid_is_the_same_whatever_the_storage(spacing_mm):
    grid = Grid(SIZE, _affine((1.5, 2.0, 3.0)))
    expected = working_grid([grid], spacing_mm)
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        stored = _stored(grid, order, flips)
        for grids in ([stored], [stored, grid], [grid, stored, stored]):
            assert working_grid(grids, spacing_mm).matches(expected, 1e-9)
        assert working_grid([Grid((5, 5, 5), np.eye(4)), stored], spacing_mm, reference=1).matches(expected, 1e-9)


def test_automatic_spacing_is_the_middle_one_and_no_finer_than_a_millimetre_or_half_a_slice():
    large = (401, 401, 201)
    np.testing.assert_allclose(working_grid([Grid(large, _affine((1.5, 2.0, 3.0)))]).spacing_mm, 2.0)
    np.testing.assert_allclose(working_grid([Grid(large, _affine((0.4, 0.6, 1.5)))]).spacing_mm, 1.0)
    thick, fine = Grid(large, _affine((1.0, 1.0, 5.0))), Grid((400, 400, 400), np.eye(4))
    np.testing.assert_allclose(working_grid([thick]).spacing_mm, 2.5)
    for reference, expected in ((None, 1.75), (0, 2.5), (1, 1.0)):
        np.testing.assert_allclose(working_grid([thick, fine], reference=reference).spacing_mm, expected)
    # Two slices of 8 mm leave 4 voxels between them.
    assert min(working_grid([Grid((64, 64, 2), _affine((1.0, 1.0, 8.0)))]).shape) == 4


def test_grids_of_few_voxels_are_up_to_twice_as_fine():
    for spacing, shape, expected in (
        ((3.0, 3.0, 3.0), (25, 25, 25), 1.5),  # half the voxel size
        ((2.5, 2.5, 6.0), (33, 33, 17), 2.4),  # 0.4 times the thickness
        ((4.0, 4.0, 4.0), (49, 49, 33), (196 * 196 * 132) ** (1 / 3) / 64),  # 64^3 voxels
        ((1.2, 1.2, 1.2), (33, 33, 33), 1.0),
        ((1.0, 1.0, 1.0), (33, 33, 33), 1.0),
    ):
        np.testing.assert_allclose(working_grid([Grid(shape, _affine(spacing))]).spacing_mm, expected, rtol=0.01)


def test_coarse_axes_are_interpolated_by_cubic_splines():
    """Between slices, linear interpolation halves a wave of 3 slices; padding does not ring."""
    native = Grid((32, 30, 30), _affine((1.0, 1.0, 3.0)))
    across = np.arange(30) * 2 * np.pi / 4
    data = np.broadcast_to(100 * np.sin(across), native.shape).astype(np.float32).copy()
    valid = np.ones(native.shape, dtype=bool)
    valid[:, :8] = False
    data[~valid] = -2000
    series = Series((Frame(data, native.affine.numpy(), "a", valid),) * 2)
    grid = native.at_spacing(torch.ones(3))
    images, covered = resample_series(series, grid)
    voxels = native.voxels(grid.points(slice(None)))
    expected = 100 * np.sin(voxels[..., 2].numpy() * 2 * np.pi / 4)
    inner = (covered[0].numpy() > 0) & (voxels[..., 2].numpy() > 2) & (voxels[..., 2].numpy() < 27)
    assert inner.mean() > 0.4
    assert np.abs(np.asarray(images[0]) - expected)[inner].max() < 12


@pytest.mark.parametrize(("scale", "spacing_mm"), [(1.0, 1.0), (0.5, 0.75), (0.1, 0.15)])
def test_small_objects_are_worked_on_at_a_128th_of_their_longest_side(scale, spacing_mm):
    """Example: a grid of 192 mm, and the same grid in smaller units, as for a mouse."""
    grid = Grid((321, 201, 61), _affine((0.6 * scale, 0.6 * scale, 1.2 * scale)))
    np.testing.assert_allclose(working_grid([grid]).spacing_mm, spacing_mm)


def test_details_finer_than_a_coarser_grid_are_smoothed_away():
    """The image has stripes of 2.2 voxels along the first stored axis, on a ramp; half of the volume is padding."""
    native = Grid((48, 24, 20), _affine((1.0, 3.0, 3.0)))
    stripes = 50 * np.cos(2 * np.pi * np.arange(48) / 2.2)[:, None, None]
    ramp = _linear(native.affine.numpy(), native.shape)
    data, valid = (ramp + stripes).astype(np.float32), np.ones(native.shape, dtype=bool)
    valid[:, 12:] = False
    data[~valid] = -32768
    series = Series((Frame(data, native.affine.numpy(), "a", valid),) * 2)
    grid = Grid(native.shape, native.affine).at_spacing(torch.full((3,), 3.0))
    images, covered = resample_series(series, grid)
    expected = _linear(grid.affine.numpy(), grid.shape)
    inner = np.zeros(grid.shape, dtype=bool)
    inner[2:-2] = True
    inner &= covered[0].numpy() > 0
    assert inner.mean() > 0.3
    assert np.abs(np.asarray(images[0]) - expected)[inner].max() < 2.5


def test_the_grid_between_two_scans_lies_in_the_middle_of_both():
    """The scans are rotated and shifted in opposite directions, so that the grid halfway is that of neither."""
    angle = np.deg2rad(10)
    grids = []
    for sign in (-1, 1):
        affine = np.eye(4)
        affine[:2, :2] = [[np.cos(angle), -sign * np.sin(angle)], [sign * np.sin(angle), np.cos(angle)]]
        affine[:3, 3] = [100, 50, 20] - affine[:3, :3] @ [10, 12, 7] + sign * np.array([6.0, 0, 2])
        grids.append(Grid((21, 25, 15), affine))
    grid = working_grid(grids, None)
    np.testing.assert_allclose(grid.affine[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(grid.centre, [100, 50, 20], atol=1e-9)
    assert grid.shape == (21, 25, 15)
    assert working_grid(grids[::-1], None).matches(grid, 1e-9)
    # If the initial transforms equal the motion between the headers, all scans coincide in the common space.
    initial = torch.stack([g.affine @ torch.linalg.inv(grids[0].affine) for g in grids])
    assert working_grid(grids, None, initial=initial).matches(grids[0], 1e-9)


def test_a_scan_of_another_extent_neither_shrinks_nor_grows_the_grid_to_its_own():
    large, middle, small = (Grid((n, n, n), _affine((2.0, 2.0, 2.0))) for n in (40, 30, 10))
    for grids in ([large, middle, small], [small, large, middle], [middle, small, large]):
        np.testing.assert_allclose(working_grid(grids, None).extent_mm, 60.0)


def test_resampling_a_ramp_is_exact_and_holds_the_border_outside():
    native = Grid((12, 14, 9), _affine())
    ramp = Frame(_linear(_affine(), native.shape), _affine(), "ramp")
    target = Grid((6, 8, 9), native.at_spacing(torch.full((3,), 1.3)).affine)
    values, covered = resample(ramp, target)
    np.testing.assert_allclose(values, _linear(target.affine.numpy(), target.shape), atol=1e-4)
    assert covered.all()
    beyond = native.affine.clone()
    beyond[:3, 3] -= native.affine[:3, 0] * 2
    values, covered = resample(ramp, Grid(native.shape, beyond))
    np.testing.assert_allclose(values, ramp.data[[0, 0, *range(10)]], atol=1e-4)
    assert not covered[:2].any() and covered[2:].all()


def test_a_grid_onto_itself_is_bit_equal():
    frame = Frame(VOLUME, _affine(), "x")
    for transform in (None, AffineTransform(torch.eye(4))):
        values, covered = resample(frame, frame.grid, transform)
        np.testing.assert_array_equal(values, VOLUME)
        assert covered.all()
        values[:] = 0  # the series' own volume must stay as it is
        assert frame.data.any()
    # Another order of storage permutes voxels without interpolation.
    np.testing.assert_allclose(
        resample(frame, _stored(frame.grid, (2, 0, 1), (True, False, True)))[0],
        np.moveaxis(VOLUME[::-1, :, ::-1], (2, 0, 1), (0, 1, 2)),
        atol=1e-6,
    )


@pytest.mark.parametrize("voxels", [0.3, 0.5])
def test_a_value_counts_only_where_all_that_it_comes_from_was_measured(voxels):
    valid = np.ones(SIZE, dtype=bool)
    valid[4, 5, 3] = False
    frame = Frame(VOLUME, _affine(), "x", valid)
    np.testing.assert_array_equal(resample(frame, frame.grid)[1], valid)
    shift = frame.grid.affine[:3, :3] @ torch.tensor([voxels, 0.0, 0.0], dtype=torch.float64)
    _, covered = resample(frame, frame.grid, AffineTransform(_translation(shift)))
    expected = np.ones(SIZE, dtype=bool)
    expected[3:5, 5, 3] = False
    np.testing.assert_array_equal(covered, expected)


def test_resampling_through_a_transform_is_exact_on_a_ramp_and_slab_by_slab(monkeypatch):
    ramp, shift = Frame(_linear(_affine(), (10, 9, 8)), _affine(), "ramp"), np.array([0.8, -0.5, 0.6])
    transform = AffineTransform(_translation(shift))
    whole, covered = resample(ramp, ramp.grid, transform)
    expected = ramp.data + np.dot((0.7, -1.1, 0.4), shift)
    np.testing.assert_allclose(whole[2:-2, 2:-2, 2:-2], expected[2:-2, 2:-2, 2:-2], atol=1e-4)
    for voxels in (1, 3 * 9 * 8):
        monkeypatch.setattr("groupmorph_monai.space.grid.SLAB_VOXELS", voxels)
        parts, covered_parts = resample(ramp, ramp.grid, transform)
        np.testing.assert_array_equal(parts, whole)
        np.testing.assert_array_equal(covered_parts, covered)


def test_series_on_differing_grids_comes_to_one_and_says_so(tmp_path, caplog):
    first = _affine((1.5, 2.0, 3.0))
    # The same image on a finer, larger grid that is reversed along i.
    other = first.copy()
    other[:3, 0] *= -0.5
    other[:3, 3] = first[:3, 3] + first[:3, 0] * (SIZE[0] + 1) - first[:3, 1]
    grids = {"a.nii": (first, SIZE), "b.nii": (other, (30, 15, 7)), "c.nii": (first, SIZE)}
    with caplog.at_level(logging.INFO):
        for name, grid in grids.items():
            nib.save(nib.Nifti1Image(_linear(*grid), grid[0]), tmp_path / name)
        series = read_series([tmp_path / name for name in grids])
    grid = working_grid([frame.grid for frame in series.frames], None, reference=0)
    images, coverage = resample_series(series, grid)
    np.testing.assert_allclose(images[1].numpy(), images[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(
        images[0].numpy(), nib.as_closest_canonical(nib.load(tmp_path / "a.nii")).get_fdata(), rtol=1e-6
    )
    np.testing.assert_allclose(images.affine.numpy(), first, atol=1e-5)
    assert coverage.shape == images.shape and coverage.dtype == torch.float32 and (coverage == 1).all()
    said = [r.getMessage() for r in caplog.records if "another grid" in r.getMessage()]
    assert len(said) == 1 and str(tmp_path / "b.nii") in said[0]


def test_initial_maps_are_applied_before_the_one_interpolation_and_tell_what_was_not_seen():
    frames = [Frame(VOLUME, _affine(), "a"), Frame(VOLUME[::-1].copy(), _affine(), "b")]
    grid = frames[0].grid
    shift = _translation(2 * grid.affine[:3, 1])
    series = Series(tuple(frames))
    images, coverage = resample_series(series, grid, torch.stack([torch.eye(4, dtype=torch.float64), shift]))
    np.testing.assert_array_equal(images[0].numpy(), VOLUME)
    np.testing.assert_allclose(images[1, :, :-2].numpy(), VOLUME[::-1][:, 2:], atol=1e-5)
    assert coverage[0].all() and coverage[1, :, :-2].all() and not coverage[1, :, -2:].any()


@pytest.mark.skipif(not LUNG.is_dir(), reason="needs the data beside the project")
def test_real_lung_pair_lies_where_its_landmarks_say():
    series = read_series([LUNG / "3DCT_lung_baseline.mha", LUNG / "3DCT_lung_followup.mha"])
    # Landmarks on vessels lie inside the patient; if LPS and RAS were confused, they would lie in air.
    points = [read_points(LUNG / f"itkelastix_CT_3D_lung_{w}_point_set_corrected.txt") for w in ("fixed", "moving")]
    for frame, where in zip(series.frames, points):
        voxels = (where - frame.affine[:3, 3]) @ np.linalg.inv(frame.affine[:3, :3]).T
        assert (voxels > 0).all() and (voxels < np.array(frame.data.shape) - 1).all()
    assert np.median(np.linalg.norm(points[0] - points[1], axis=1)) == pytest.approx(35.3, abs=1.5)
    grid = working_grid([frame.grid for frame in series.frames], 6.0, reference=0)
    images = resample_series(series, grid)[0].clamp(min=-1024)
    assert images.shape == (2, 27, 37, 55) and 0.2 < np.corrcoef(images.numpy().reshape(2, -1))[0, 1] < 0.99
