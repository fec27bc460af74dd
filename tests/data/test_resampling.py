"""From one grid to another: closed forms on ramps, which linear interpolation keeps, and a real pair's landmarks."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from groupmorph_monai.data.points import read_points
from groupmorph_monai.data.readers import Frame, read_series
from groupmorph_monai.data.resampling import resample, resample_series, working_grid
from groupmorph_monai.errors import InputError

LUNG = Path(__file__).parents[3] / "shared" / "data" / "elastix_lung"
SIZE = (9, 12, 7)
VOLUME = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)


def _affine(spacing=(1.5, 2.0, 3.0)):
    """Of a rotated grid."""
    rotation, _ = np.linalg.qr([[1.2, -0.6, 0.3], [0.5, 1.6, -0.4], [-0.1, 0.5, 2.8]])
    return np.block([[rotation * spacing, np.array([[-20], [5], [40]])], [np.zeros(3), 1]])


def _linear(affine, size, slope=(0.7, -1.1, 0.4)):
    """A ramp in world coordinates: linear interpolation keeps it."""
    i, j, k = np.meshgrid(*map(np.arange, size), indexing="ij")
    world = np.einsum("de,eijk->dijk", affine[:3, :3], np.stack([i, j, k])) + affine[:3, 3].reshape(3, 1, 1, 1)
    return np.einsum("d,dijk->ijk", slope, world).astype(np.float32)


def test_working_grid_keeps_the_first_voxel_and_covers_the_last():
    frame = Frame(VOLUME, _affine((1.5, 2.0, 3.0)), "x")
    affine, size = working_grid(frame, None)
    assert size == (9, 12, 7) and np.array_equal(affine, frame.affine)
    affine, size = working_grid(frame, (3.0, 2.5, 2.0))
    # Extents between voxel centres: 12, 22 and 18 mm.
    assert size == (5, 10, 10)
    np.testing.assert_allclose(affine[:3, 3], frame.affine[:3, 3])
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (3.0, 2.5, 2.0))
    np.testing.assert_allclose(affine[:3, :3] / (3.0, 2.5, 2.0), frame.affine[:3, :3] / (1.5, 2.0, 3.0))
    assert working_grid(frame, 1.0)[1] == (13, 23, 19)
    for wrong in (0, -1.0, (1, 2), "fine", float("nan"), (1, 2, 0)):
        with pytest.raises(InputError, match="spacing_mm"):
            working_grid(frame, wrong)


def test_resampling_a_ramp_is_exact_and_holds_the_border_outside():
    native, target = _affine(), working_grid(Frame(VOLUME, _affine(), ""), 1.3)[0]
    inside = (6, 8, 9)
    ramp = _linear(native, (12, 14, 9))
    np.testing.assert_allclose(resample(ramp[None], native, target, inside)[0], _linear(target, inside), atol=1e-4)
    beyond = native.copy()
    beyond[:3, 3] -= native[:3, 0] * 2
    moved = resample(ramp[None], native, beyond, ramp.shape)[0]
    np.testing.assert_allclose(moved, ramp[[0, 0, *range(10)]], atol=1e-4)


def test_resampling_through_a_displacement_in_mm_is_exact_on_a_ramp_and_slab_by_slab(monkeypatch):
    native, size = _affine(), (10, 9, 8)
    ramp, shift = _linear(native, size), np.array([0.8, -0.5, 0.6])
    field = np.broadcast_to(shift.reshape(3, 1, 1, 1), (3, *size)).astype(np.float32)
    whole = resample(ramp[None], native, native, size, field)[0]
    expected = ramp + np.dot((0.7, -1.1, 0.4), shift)
    np.testing.assert_allclose(whole[2:-2, 2:-2, 2:-2], expected[2:-2, 2:-2, 2:-2], atol=1e-4)
    monkeypatch.setattr("groupmorph_monai.data.resampling._SLAB_VOXELS", 3 * 9 * 8)
    np.testing.assert_array_equal(resample(ramp[None], native, native, size, field)[0], whole)


def test_series_on_differing_grids_comes_to_the_first_one_and_says_so(tmp_path, caplog):
    first = _affine((1.5, 2.0, 3.0))
    # The same world from a finer, larger grid that runs the other way along i.
    other = first.copy()
    other[:3, 0] *= -0.5
    other[:3, 3] = first[:3, 3] + first[:3, 0] * (SIZE[0] + 1) - first[:3, 1]
    grids = {"a.nii": (first, SIZE), "b.nii": (other, (30, 15, 7)), "c.nii": (first, SIZE)}
    with caplog.at_level(logging.INFO):
        for name, grid in grids.items():
            nib.save(nib.Nifti1Image(_linear(*grid), grid[0]), tmp_path / name)
        series = read_series([tmp_path / name for name in grids])
    images = resample_series(series, *working_grid(series.frames[0], None))
    np.testing.assert_allclose(images[1].numpy(), images[0].numpy(), atol=1e-4)
    np.testing.assert_array_equal(images[0].numpy(), _linear(first, SIZE))
    np.testing.assert_allclose(images.affine.numpy(), first, atol=1e-5)
    said = [r.getMessage() for r in caplog.records if "another grid" in r.getMessage()]
    assert len(said) == 1 and str(tmp_path / "b.nii") in said[0]


@pytest.mark.skipif(not LUNG.is_dir(), reason="needs the data beside the project")
def test_real_lung_pair_lies_where_its_landmarks_say():
    series = read_series([LUNG / "3DCT_lung_baseline.mha", LUNG / "3DCT_lung_followup.mha"])
    # Landmarks on vessels lie in the patient, not in air around him: they would, were LPS and RAS mixed up.
    points = [read_points(LUNG / f"itkelastix_CT_3D_lung_{w}_point_set_corrected.txt") for w in ("fixed", "moving")]
    for frame, where in zip(series.frames, points):
        voxels = (where - frame.affine[:3, 3]) @ np.linalg.inv(frame.affine[:3, :3]).T
        assert (voxels > 0).all() and (voxels < np.array(frame.data.shape) - 1).all()
    assert np.median(np.linalg.norm(points[0] - points[1], axis=1)) == pytest.approx(35.3, abs=1.5)
    images = resample_series(series, *working_grid(series.frames[0], 6.0)).clamp(min=-1024)
    assert images.shape == (2, 27, 37, 55) and 0.2 < np.corrcoef(images.numpy().reshape(2, -1))[0, 1] < 0.99
