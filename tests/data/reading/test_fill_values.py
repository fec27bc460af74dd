"""Voxels outside the field of view are detected by their values."""

import numpy as np
import pytest
from image_files import error_of, write_nifti
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from groupmorph_monai.data.reading.readers import read_series


def _round_view(size=(24, 26, 10)):
    i, j, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    return np.hypot(i, j) <= 1


@pytest.mark.parametrize("fill", [-2048, -3024, -32768])
def test_a_fill_value_is_no_evidence(tmp_path, fill):
    view = _round_view()
    tissue = np.random.default_rng(0).normal(40, 60, view.shape)
    tissue[:, :8] = np.random.default_rng(1).normal(-1000, 20, tissue[:, :8].shape)
    tissue = tissue.round().astype(np.int16)
    files = [
        write_nifti(tmp_path / "filled.nii", np.where(view, tissue, np.int16(fill))),
        write_nifti(tmp_path / "whole.nii", tissue),
    ]
    filled, whole = read_series(files).frames
    np.testing.assert_array_equal(filled.valid, view)
    np.testing.assert_array_equal(filled.data[view], tissue[view])
    assert np.unique(filled.data[~view]).tolist() == [tissue[view].min()]
    assert whole.valid is None
    np.testing.assert_array_equal(whole.data, tissue)


def test_the_rim_of_an_interpolated_fill_value_is_invalid_too(tmp_path):
    view = _round_view((80, 80, 10))
    tissue = np.random.default_rng(0).uniform(-1000, 300, view.shape)
    data = np.where(view, tissue, -2048)
    data[np.roll(view, 1, 0) & ~view] = -1990
    valid = read_series([write_nifti(tmp_path / "a.nii", data.astype(np.float32))] * 2).frames[0].valid
    np.testing.assert_array_equal(valid, view)


def test_dark_tissue_is_not_the_rim_of_a_fill_value(tmp_path):
    """Example: cerebrospinal fluid in an extracted brain that was normalised to mean 0."""
    view = _round_view((60, 64, 10))
    data = np.where(view, np.random.default_rng(0).normal(2, 0.2, view.shape), -1.0)
    data[26:34, 28:36] = -0.8
    valid = read_series([write_nifti(tmp_path / "a.nii", data.astype(np.float32))] * 2).frames[0].valid
    np.testing.assert_array_equal(valid, view)


def test_values_other_than_fill_values_are_kept(tmp_path):
    noise, view = np.random.default_rng(0).normal(size=(24, 26, 10)), _round_view()
    inner = np.zeros_like(view)
    inner[8:12, 8:12, 3:7] = True
    cases = {
        "clipped": np.clip(noise, -2, 2),  # 2 % hold the minimum, as many lie just above it
        "masked": np.where(view, np.abs(noise) + 5, 0),
        "air": np.where(view, 200 * noise, -1024).clip(-1024),
        "inner": np.where(inner, -2048, noise),  # not on the border
        "corner": np.where(np.arange(noise.size).reshape(noise.shape) < 2, -2048, noise),  # too few
        "mask": np.where(view, 1, -1),
    }
    cases["air"][view & (noise < -1)] = -1000 - 20 * np.abs(noise[view & (noise < -1)])
    for name, data in cases.items():
        frame = read_series([write_nifti(tmp_path / f"{name}.nii", data.astype(np.float32))] * 2).frames[0]
        valid = view | True if frame.valid is None else frame.valid  # without slices of one value at the ends
        assert valid[view].all(), name
        np.testing.assert_array_equal(frame.data[valid], data.astype(np.float32)[valid])


def _trunk(size=(60, 64, 24)):
    """Make lungs in a body in air, in HU with noise, and the mask of the body."""
    rng = np.random.default_rng(0)
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    body = np.hypot(i / 0.95, j / 0.7) < 1
    air = rng.normal(-1000, 15, size)
    lung = np.hypot((np.abs(i) - 0.4) / 0.25, j / 0.3) < 1
    return np.where(lung, rng.normal(-850, 30, size), np.where(body, rng.normal(40, 20, size), air)), body, (i, j, k)


def test_padding_around_a_convex_field_of_view_is_no_evidence(tmp_path):
    """The fill value may equal the value of air, as in CT that was clipped at -1024."""
    trunk, body, (i, j, k) = _trunk()
    cylinder = np.hypot(i + 0.3 * k, j) < 0.8  # oblique, and through the body
    padded = np.where(cylinder, trunk.clip(-1024), -1024)
    frame = read_series([write_nifti(tmp_path / "ct.nii", padded.astype(np.float32))] * 2).frames[0]
    assert not frame.valid[~cylinder].any()
    inner = ~binary_dilation(~cylinder, iterations=2)  # air at the border is clipped, too
    assert frame.valid[inner].mean() > 0.999 and frame.valid[body & inner].mean() > 0.999
    # Clipped or removed air around the body was measured, apart from constant slices at the ends.
    blurred = gaussian_filter(np.where(body, trunk, -1024), 0.7)
    chest = np.where(binary_erosion(body, iterations=3), np.where(np.abs(i) < 0.2, 40.0, -850.0), 40.0)
    others = {
        "clipped": trunk.clip(-1000),
        "removed": np.where(blurred < -1020, -1024, blurred),
        "thin": np.where(body, chest, -1024),  # the wall of a small chest, in large voxels
    }
    for name, data in others.items():
        frame = read_series([write_nifti(tmp_path / f"{name}.nii", data.astype(np.float32))] * 2).frames[0]
        assert frame.valid is None or frame.valid[2:-2, 10:-10].all(), name


@pytest.mark.parametrize("fill", [0, 9999])
def test_slices_of_one_value_at_the_ends_are_not_measured(tmp_path, fill):
    """Examples: zero-filled partitions of 3D MRI, and the padding of resliced scans."""
    data = np.random.default_rng(0).uniform(5, 9, (24, 26, 10)).astype(np.float32)
    measured = np.zeros(data.shape, dtype=bool)
    measured[:, 2:-4, 3:-1] = True
    data[~measured] = fill
    data[10:12, 10:12, 5] = fill  # between measured voxels it may be a signal
    frame = read_series([write_nifti(tmp_path / "scan.nii", data)] * 2).frames[0]
    np.testing.assert_array_equal(frame.valid, measured)
    np.testing.assert_array_equal(frame.data[measured], data[measured])
    assert (frame.data[~measured] == data[measured].min()).all()


def _resliced(image, degrees, fill, order=1):
    """Rotate an image about its centre, with a fill value beyond its ends; also return the source of each voxel."""
    rotation = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    centre = (np.array(image.shape).reshape(3, 1, 1, 1) - 1) / 2
    source = np.einsum("ij,j...->i...", rotation, np.indices(image.shape) - centre) + centre
    return map_coordinates(image, source, order=order, cval=fill), source


def _depth_in(source, shape):
    """Compute the distance of points from the nearest face of a volume, in voxels, negative outside."""
    ends = np.array(shape).reshape(3, 1, 1, 1) - 1
    return np.minimum(source, ends - source).min(axis=0)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("fill", [0.0, 300.0])
def test_wedges_of_resliced_scans_are_not_measured(tmp_path, order, fill):
    """Other programs fill the outside of the field of view with 0 when they resample a scan."""
    tissue = 300 * np.random.default_rng(0).standard_normal((48, 40, 24)) ** 2 + 5
    data, source = _resliced(tissue, (5, -4, 7), fill, order)
    frame = read_series([write_nifti(tmp_path / "scan.nii", data.astype(np.float32))] * 2).frames[0]
    depth = _depth_in(source, tissue.shape)
    assert (depth < 0).mean() > 0.1
    assert frame.valid[depth < -0.5].mean() < 0.01
    assert frame.valid[depth > 2.5].all()


def test_zeros_around_a_body_are_measured(tmp_path):
    """Examples: a head without background, and a trunk that reaches both ends of an axis, rotated or not."""
    i, j, k = np.meshgrid(*[np.linspace(-1, 1, n) for n in (96, 90, 24)], indexing="ij")
    texture = 100 + 20 * gaussian_filter(np.random.default_rng(0).standard_normal(i.shape), 2)
    bodies = {"head": i**2 + j**2 + k**2 < 0.8, "trunk": i**2 + j**2 / 0.6 < 0.9}
    for name, body in bodies.items():
        for degrees in ((0, 0, 0), (0, 0, 12)):
            data, _ = _resliced(np.where(body, texture, 0), degrees, 0)
            frame = read_series([write_nifti(tmp_path / f"{name}.nii", data.astype(np.float32))] * 2).frames[0]
            if frame.valid is not None:
                rim = (data > 0) & ~frame.valid
                assert rim.sum() < 0.1 * (data > 0).sum(), (name, degrees)
                assert frame.valid[(data == 0) & (np.abs([i, j, k]).max(axis=0) < 0.75)].all(), (name, degrees)


@pytest.mark.parametrize("half", [8, 18])
def test_a_cube_in_zeros_is_measured_as_a_whole(tmp_path, half):
    """It has no structure apart from its faces."""
    cube = np.where(np.abs(np.indices((40, 40, 40)) - 20).max(axis=0) < half, 7, 0).astype(np.float32)
    frame = read_series([write_nifti(tmp_path / "cube.nii", cube)] * 2).frames[0]
    assert frame.valid is None
    np.testing.assert_array_equal(frame.data, cube)


def test_nan_at_the_border_is_not_measured(tmp_path):
    data, source = _resliced(np.random.default_rng(0).uniform(5, 9, (24, 26, 10)), (5, -4, 7), np.nan)
    known = np.isfinite(data)
    assert 0.05 < (~known).mean() < 0.5
    frame = read_series([write_nifti(tmp_path / "scan.nii", data.astype(np.float32))] * 2).frames[0]
    np.testing.assert_array_equal(frame.valid, known)
    assert np.isfinite(frame.data).all()
    np.testing.assert_array_equal(frame.data[known], data[known].astype(np.float32))


def test_nan_may_surround_the_voxels_and_does_not_hide_dark_ones(tmp_path):
    """Example: a masked, standardised image, a tenth of which has much lower values than the rest."""
    data = np.random.default_rng(0).normal(3, 0.3, (24, 26, 12)).astype(np.float32)
    data[8:12, 8:20, 3:9] = -5 + 1e-3 * data[8:12, 8:20, 3:9]
    known = np.zeros(data.shape, dtype=bool)
    known[3:-3, 4:-4, 2:-2] = True
    frame = read_series([write_nifti(tmp_path / "scan.nii", np.where(known, data, np.nan))] * 2).frames[0]
    np.testing.assert_array_equal(frame.valid, known)


@pytest.mark.parametrize("where", ["inside", "one", "both", "infinite", "all"])
def test_other_nan_is_refused(tmp_path, where):
    data = np.random.default_rng(0).uniform(5, 9, (24, 26, 10)).astype(np.float32)
    if where in ("both", "infinite"):
        data[:2] = np.nan
    data[{"inside": np.s_[9:15, 9:15, 4:7], "one": np.s_[0, 0, 0], "all": ...}.get(where, np.s_[12, 12, 5])] = np.nan
    if where == "infinite":
        data[12, 12, 5] = np.inf
    files = [write_nifti(tmp_path / f"{k}.nii", values) for k, values in enumerate((data, np.nan_to_num(data)))]
    message = error_of(files)
    assert f"got {int((~np.isfinite(data)).sum())} NaN or infinite ones" in message
