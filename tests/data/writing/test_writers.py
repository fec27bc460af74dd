"""What is written must be what other programs read: ITK is the judge, closed forms and orientations the witnesses."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from groupmorph_monai.data.preprocessing.resampling import working_grid
from groupmorph_monai.data.reading.points import read_points, write_points
from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.writing import writers
from groupmorph_monai.data.writing.applying import apply_field, apply_field_to_files, apply_field_to_points
from groupmorph_monai.data.writing.fields import read_field
from groupmorph_monai.data.writing.nifti import write_image
from groupmorph_monai.data.writing.output_folder import check_output_dir
from groupmorph_monai.data.writing.writers import Products, earlier_result, listed_result, write_registration
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.geometry import (
    AffineTransform,
    ComposedTransform,
    DenseTransform,
    Grid,
    jacobian_determinant,
)
from groupmorph_monai.workflow.registration import ComposeTransformsd

DATA = Path(__file__).parents[4] / "shared" / "data"
SIZE, SPACING = (20, 26, 15), np.array([1.5, 1.2, 2.5])
_ROTATION, _ = np.linalg.qr(np.array([[1.0, -0.4, 0.2], [0.5, 1.0, -0.3], [-0.1, 0.4, 1.0]]))
AXES = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1]),
    "AIL": np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]]),
    "oblique": _ROTATION,
}


def _affine(axes="RAS", spacing=SPACING, size=SIZE, centre=(7.0, -30.0, 110.0)):
    """A grid around one place of the world, whatever its axes."""
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] * spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def _world(affine, size):
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    return np.einsum("de,eijk->dijk", affine[:3, :3], voxels) + affine[:3, 3].reshape(3, 1, 1, 1)


def _frame(axes="RAS", size=SIZE, spacing=SPACING, phase=0.0, path="x"):
    """A smooth anatomy that is a function of the world alone."""
    affine = _affine(axes, spacing, size)
    x, y, z = _world(affine, size)
    data = 500 + 200 * np.sin(x / 6 + phase) + 150 * np.cos(y / 8 - z / 9) + 4 * x - 3 * y + 5 * z
    return Frame(data.astype(np.float32), affine, path)


def _field(count, size, amplitude=1.5):
    """Smooth displacements, other in every component and timepoint: ``(count, 3, *size)`` voxels."""
    i, j, k = np.meshgrid(*(np.linspace(0, 2, n) for n in size), indexing="ij")
    waves = [[np.sin(i + 2 * j + t + d) * np.cos(k * (d + 1) - t) for d in range(3)] for t in range(count)]
    return torch.tensor(amplitude * np.array(waves), dtype=torch.float32)


def _saved(folder, frames):
    """The frames as files, read back as a series."""
    folder.mkdir(exist_ok=True)
    files = [str(folder / f"{number}.nii") for number in range(len(frames))]
    for frame, file in zip(frames, files):
        write_image(frame, file)
    return read_series(files)


def _working_grid(series, spacing_mm=2.0):
    return working_grid([frame.grid for frame in series.frames], spacing_mm, reference=0)


def _dense(ddf, grid, inverse=None):
    """A transform per timepoint; the negative field is good enough for an inverse where none is judged."""
    return [DenseTransform(u, w, grid) for u, w in zip(ddf, -ddf if inverse is None else inverse)]


def _write(series, folder, ddf=None, grid=None, **options):
    grid = _working_grid(series) if grid is None else grid
    ddf = _field(len(series.frames), grid.shape) if ddf is None else ddf
    return write_registration(series, _dense(ddf, grid), folder, **options)


def _spread(values, grid):
    return [Frame(x.numpy(), grid.affine.numpy(), "std") for x in values]


def _constant(count, size, voxels):
    return torch.tensor(voxels, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(count, 3, *size)


def _by_itk(field, image, reference, outside=-1e6):
    """``image`` brought to the grid of ``reference`` by ITK alone, from the files: ``(*S)``."""
    field = itk.imread(str(field))
    single = itk.DisplacementFieldTransform[itk.F, 3].New()
    single.SetDisplacementField(field)
    # The Python package reads vectors in single precision alone, and resamples with double precision alone.
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetFixedParameters(single.GetFixedParameters())
    transform.SetParameters(itk.OptimizerParameters[itk.D](itk.array_from_image(field).astype(float).ravel().tolist()))
    return itk.array_from_image(
        itk.resample_image_filter(
            itk.imread(str(image), itk.D),
            transform=transform,
            use_reference_image=True,
            reference_image=itk.imread(str(reference), itk.D),
            default_pixel_value=outside,
        )
    ).T


@pytest.mark.parametrize("fields", ["full", "compact"])
@pytest.mark.parametrize("other", ["same grid", "other grid"])
@pytest.mark.parametrize("axes", AXES)
def test_itk_resamples_with_the_written_field_to_the_written_series(tmp_path, axes, other, fields):
    second = _frame(axes, phase=0.7)
    if other == "other grid":
        second = _frame("LPS" if axes == "oblique" else "oblique", (30, 27, 31), (1.1, 1.6, 1.3), phase=0.7)
    series = _saved(tmp_path / "in", [_frame(axes), second])
    warped = _write(series, tmp_path / "out", products=Products(fields))["warped"]
    stored = np.moveaxis(nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata(), -1, 0)
    number = np.zeros(SIZE)
    for k, frame in enumerate(series.frames):
        judged = _by_itk(tmp_path / "out" / f"ddf_{k:02d}.nii.gz", frame.path, series.frames[0].path)
        inside = judged > -1e5
        assert inside.mean() > 0.6
        assert np.abs(judged - warped[k])[inside].max() < 1e-5 * np.ptp(warped[k])
        # Where ITK finds the place beside the volume, so do we, but for a rounding error on a face.
        assert ((stored[k] != 0) != inside).mean() < 1e-3
        np.testing.assert_array_equal(stored[k], np.where(stored[k] != 0, warped[k], 0))
        number += stored[k] != 0
        assert np.abs(frame.data.mean() - judged[inside]).max() > 100  # the image has contrast to be wrong about
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "coverage.nii.gz").get_fdata(), number)


def test_itk_takes_the_inverse_field_on_the_timepoints_own_grid(tmp_path):
    frames = [_frame("LAS"), _frame("oblique", (22, 17, 21), (1.3, 1.9, 1.6))]
    series = _saved(tmp_path / "in", frames)
    _write(series, tmp_path / "out")
    path = tmp_path / "out" / "inverse_ddf_01.nii.gz"
    resampled = apply_field(path, series.frames[0])
    assert resampled.data.shape == (22, 17, 21)
    np.testing.assert_allclose(resampled.affine, frames[1].affine, atol=1e-5)
    judged = _by_itk(path, series.frames[0].path, series.frames[1].path)
    inside = judged > -1e5
    assert inside.mean() > 0.5 and np.abs(judged - resampled.data)[inside].max() < 1e-5 * np.ptp(resampled.data)


def test_field_file_is_what_itk_writes_itself(tmp_path):
    series = _saved(tmp_path / "in", [_frame(), _frame()])
    _write(series, tmp_path / "out", products=Products("full"))
    mine = nib.load(tmp_path / "out" / "ddf_01.nii.gz")
    itk.imwrite(itk.imread(str(tmp_path / "out" / "ddf_01.nii.gz")), str(tmp_path / "itk.nii.gz"))
    theirs = nib.load(tmp_path / "itk.nii.gz")
    assert mine.shape == theirs.shape == (*SIZE, 1, 3)
    assert mine.header.get_intent()[0] == theirs.header.get_intent()[0] == "vector"
    assert mine.get_data_dtype() == theirs.get_data_dtype() == np.float32
    np.testing.assert_allclose(mine.affine, theirs.affine, atol=1e-5)
    np.testing.assert_allclose(mine.get_fdata(), theirs.get_fdata(), atol=1e-6)


@pytest.mark.parametrize("axes", ["LAS", "LPS", "AIL"])
def test_another_stored_orientation_gives_the_same_result_in_millimetres(tmp_path, axes):
    """The motion is given on one working grid; only how the native volumes are stored differs."""
    spacing, size = np.array([1.5, 1.2, 2.5]), np.array([20, 26, 15])
    order = np.abs(AXES[axes]).argmax(axis=0)
    plain = [_frame("RAS", tuple(size), spacing, phase) for phase in (0.0, 0.7)]
    turned = [_frame(axes, tuple(size[order]), spacing[order], phase) for phase in (0.0, 0.7)]
    grid = working_grid([frame.grid for frame in plain], 2.0)
    ddf = _field(2, grid.shape)
    results = {}
    for name, frames in (("plain", plain), ("turned", turned)):
        series = _saved(tmp_path / f"{name}_in", frames)
        spread = _spread(ddf[:, 0].abs(), grid)
        write_registration(
            series, _dense(ddf, grid), tmp_path / name, 0, spread, products=Products("full", jacobian=True)
        )
        files = ("warped", "mean", "coverage", "ddf_01", "inverse_ddf_01", "std_mm_01", "jacobian_01")
        images = {file: nib.as_closest_canonical(nib.load(tmp_path / name / f"{file}.nii.gz")) for file in files}
        results[name] = {file: (image.get_fdata(), image.affine) for file, image in images.items()}
    for file, (expected, place) in results["plain"].items():
        got, where = results["turned"][file]
        np.testing.assert_allclose(where, place, atol=1e-4)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), err_msg=file)


def test_whole_voxel_displacement_takes_the_neighbour_along_each_axis(tmp_path):
    series = _saved(tmp_path / "in", [_frame("oblique"), _frame("oblique", phase=0.7)])
    for axis in range(3):
        shift = [1.0 if a == axis else 0.0 for a in range(3)]
        result = _write(series, tmp_path / "out", _constant(2, SIZE, shift), series.frames[0].grid)
        expected = np.roll(series.frames[1].data, -1, axis)
        inner = tuple(slice(0, -1 if a == axis else None) for a in range(3))
        np.testing.assert_allclose(result["warped"][1][inner], expected[inner], atol=2e-3)
        np.testing.assert_allclose(result["native"][1], series.frames[1].data, atol=0)


def test_displacement_of_a_coarse_turned_grid_becomes_millimetres_on_the_native_one():
    """A displacement linear in the world stays it on every grid within the working one."""
    size, affine = (12, 15, 11), _affine("oblique", (4.0, 3.0, 5.0), (12, 15, 11))
    slope, at = np.array([[0.05, 0.02, -0.03], [-0.04, 0.06, 0.01], [0.02, 0.03, -0.05]]), np.array([7.0, -30, 110])

    def move(world):
        return np.einsum("de,eijk->dijk", slope, world - at.reshape(3, 1, 1, 1)) + 1

    voxels = np.einsum("de,eijk->dijk", np.linalg.inv(affine[:3, :3]), move(_world(affine, size)))
    target = _affine("LAS", (1.5, 1.2, 2.5), (9, 11, 7))
    (transform,) = _dense(torch.tensor(voxels)[None], Grid(size, affine))
    displacement = transform.displacement(Grid((9, 11, 7), target)).numpy()
    np.testing.assert_allclose(displacement, move(_world(target, (9, 11, 7))), atol=1e-5)
    determinant = jacobian_determinant(torch.from_numpy(displacement)[None], torch.from_numpy(target))
    np.testing.assert_allclose(determinant[0], np.linalg.det(np.eye(3) + slope), atol=1e-5)


def test_a_frame_is_interpolated_once_from_its_own_finer_grid(tmp_path):
    """Voxel-to-voxel noise on a grid of half the spacing survives only where it is not resampled in between."""
    fine = _affine(spacing=SPACING / 2, size=(39, 51, 29))
    data = np.random.default_rng(0).normal(size=(39, 51, 29)).astype(np.float32)
    series, grid = Series((_frame(), Frame(data, fine, "x"))), Grid(SIZE, _affine())
    warped = _write(series, tmp_path, _constant(2, SIZE, [0.5, 0.0, 0.0]), grid)["warped"]
    np.testing.assert_allclose(warped[1][:-1], data[1::2, ::2, ::2], atol=1e-5)


def test_an_affine_map_is_exact_far_beyond_the_grid_of_the_deformation(tmp_path):
    """It is not sampled on the working grid to be extrapolated from there."""
    rotation = torch.eye(4, dtype=torch.float64)
    rotation[:3, :3] = torch.from_numpy(_ROTATION)
    rotation[:3, 3] = torch.tensor([60.0, -20.0, 35.0])
    second = _frame("LPS", (40, 42, 44), (2.0, 2.0, 2.0), phase=0.7)
    second.affine[:3, 3] += [60, -20, 35]
    series, grid = Series((_frame(), second)), Grid((5, 5, 5), _affine(size=(5, 5, 5)))
    zero = torch.zeros(3, 5, 5, 5)
    maps = [ComposedTransform(DenseTransform(zero, zero, grid), AffineTransform(m)) for m in (torch.eye(4), rotation)]
    write_registration(series, maps, tmp_path)
    for name, frame, linear, shift in (
        ("ddf_01", series.frames[0], _ROTATION, rotation[:3, 3].numpy()),
        ("inverse_ddf_01", second, _ROTATION.T, -_ROTATION.T @ rotation[:3, 3].numpy()),
    ):
        places = _world(frame.affine, frame.data.shape)
        expected = np.einsum("de,eijk->dijk", linear, places) + shift.reshape(3, 1, 1, 1) - places
        lps = nib.load(tmp_path / f"{name}.nii.gz").get_fdata()[:, :, :, 0]
        np.testing.assert_allclose(np.moveaxis(lps * [-1, -1, 1], -1, 0), expected, atol=1e-4)


def test_results_lie_on_the_home_scan_which_is_not_interpolated(tmp_path):
    frames = [_frame("LAS"), _frame("oblique", (22, 17, 21), (1.3, 1.9, 1.6), phase=0.7)]
    series = _saved(tmp_path / "in", frames)
    grid = _working_grid(series)
    ddf = _field(2, grid.shape)
    ddf[1] = 0
    result = write_registration(series, _dense(ddf, grid), tmp_path / "out", home=1, products=Products("full"))
    for name in ("warped", "mean", "coverage", "ddf_00", "ddf_01", "inverse_ddf_01"):
        image = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert image.shape[:3] == (22, 17, 21)
        np.testing.assert_allclose(image.affine, frames[1].affine, atol=1e-5)
    assert nib.load(tmp_path / "out" / "inverse_ddf_00.nii.gz").shape[:3] == SIZE
    np.testing.assert_array_equal(result["warped"][1], series.frames[1].data)
    np.testing.assert_array_equal(result["native"][1], series.frames[1].data)
    stored = nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata()
    np.testing.assert_array_equal(stored[..., 1], series.frames[1].data)
    judged = _by_itk(tmp_path / "out" / "ddf_00.nii.gz", series.frames[0].path, series.frames[1].path)
    inside = judged > -1e5
    assert inside.mean() > 0.5
    assert np.abs(judged - result["warped"][0])[inside].max() < 1e-5 * np.ptp(result["warped"][0])


@pytest.mark.parametrize("outside", ["zero", "nan", "border"])
def test_what_no_scan_has_seen_is_written_as_asked_and_counts_in_no_mean(tmp_path, outside):
    """Each timepoint is moved by whole voxels along one axis: the layers that come from beyond it are unknown."""
    data = np.random.default_rng(0).uniform(1, 2, size=(3, *SIZE)).astype(np.float32)
    series = Series(tuple(Frame(x, _affine("oblique"), "x") for x in data))
    shifts = torch.tensor([[2.0, 0, 0], [3.0, 0, 0], [0, -1.0, 0]]).view(3, 3, 1, 1, 1).expand(3, 3, *SIZE)
    result = _write(series, tmp_path, shifts, series.frames[0].grid, products=Products(outside=outside))
    covered = np.ones((3, *SIZE), dtype=bool)
    covered[0, -2:] = covered[1, -3:] = covered[2, :, :1] = False
    expected = np.stack(
        [data[0][[*range(2, 20), 19, 19]], data[1][[*range(3, 20), 19, 19, 19]], data[2][:, [0, *range(25)]]]
    )
    np.testing.assert_array_equal(nib.load(tmp_path / "coverage.nii.gz").get_fdata(), covered.sum(axis=0))
    np.testing.assert_array_equal(result["covered"], covered.all(axis=0))
    warped, mean = (nib.load(tmp_path / f"{name}.nii.gz").get_fdata() for name in ("warped", "mean"))
    unseen = {"zero": 0, "nan": np.nan}.get(outside, expected)
    np.testing.assert_allclose(np.moveaxis(warped, -1, 0), np.where(covered, expected, unseen), atol=1e-5)
    over = np.ma.masked_array(expected, ~covered).mean(axis=0)
    nowhere = {"zero": 0, "nan": np.nan}.get(outside, expected.mean(axis=0))
    assert over.mask.sum() == 2 * 15
    np.testing.assert_allclose(mean, np.where(over.mask, nowhere, over.filled(0)), atol=1e-5)


def test_spread_is_a_length_in_millimetres_and_follows_the_initial_maps_linear_part(tmp_path):
    series = _saved(tmp_path / "in", [_frame("oblique"), _frame("oblique")])
    grid = _working_grid(series, (3.0, 2.0, 4.0))
    initial = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    initial[1, :3, :3] = torch.tensor([[1.2, 0.3, 0], [0, 0.9, -0.2], [0.1, 0, 1.1]], dtype=torch.float64)
    zero = torch.zeros(2, 3, *grid.shape)
    pred = {"ddf": zero, "inverse_ddf": zero, "ddf_std": _constant(2, grid.shape, [0.5, 0.25, 1.0])}
    composed = ComposeTransformsd()({"pred": pred, "affine": grid.affine, "initial": initial})["pred"]
    write_registration(series, composed["transforms"], tmp_path / "out", std_mm=_spread(composed["std_mm"], grid))
    linear = initial[1, :3, :3].numpy() @ grid.affine[:3, :3].numpy()
    covariance = linear @ np.diag([0.5, 0.25, 1.0]) ** 2 @ linear.T
    for k, expected in enumerate((np.sqrt(1.5**2 + 0.5**2 + 4.0**2), np.sqrt(np.trace(covariance)))):
        np.testing.assert_allclose(
            nib.load(tmp_path / "out" / f"std_mm_{k:02d}.nii.gz").get_fdata(), expected, rtol=1e-5
        )


def test_frame_time_units_and_codes_of_the_input_are_kept_and_integers_round_by_a_fraction_of_one(tmp_path):
    data = np.stack([_frame(phase=p).data for p in (0, 0.5, 1.0)], axis=-1).astype(np.int16)
    image = nib.Nifti1Image(data, _affine("oblique"))
    image.header.set_zooms((*image.header.get_zooms()[:3], 2540.0))
    image.header.set_xyzt_units("mm", "msec")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=2)
    image.header["descrip"] = b"scanner 7"
    nib.save(image, tmp_path / "in.nii.gz")
    result = _write(read_series(tmp_path / "in.nii.gz"), tmp_path / "out")
    warped, mean = (nib.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("warped", "mean"))
    assert warped.header.get_zooms()[3] == 2540.0 and warped.header.get_xyzt_units() == ("mm", "msec")
    assert int(warped.header["qform_code"]) == int(warped.header["sform_code"]) == 2  # that of the form that was read
    assert mean.header["pixdim"][4] == 0 and mean.header.get_xyzt_units() == ("mm", "unknown")
    assert bytes(warped.header["descrip"]).rstrip(b"\0") == b"scanner 7"
    assert warped.get_data_dtype() == mean.get_data_dtype() == np.int16
    slope = warped.dataobj.slope
    assert slope == mean.dataobj.slope and slope <= result["warped"].max() / 2048  # zero outside
    stored = np.moveaxis(warped.get_fdata(), -1, 0)
    covered = stored != 0
    assert covered.mean() > 0.8
    np.testing.assert_allclose(stored[covered], result["warped"][covered], atol=slope / 2)
    expected = np.ma.masked_array(result["warped"], ~covered).mean(axis=0).filled(0)
    np.testing.assert_allclose(mean.get_fdata(), expected, atol=1.01 * slope / 2)
    for image in (warped, mean):
        np.testing.assert_allclose(image.affine, _affine("oblique"), atol=1e-5)


@pytest.mark.parametrize("outside", ["nan", "border"])
def test_only_scans_of_integers_are_stored_as_integers(tmp_path, outside):
    """NaN needs a floating-point type; values outside the field of view are integers like those inside."""
    frames = [_frame(phase=phase) for phase in (0, 0.5)]
    whole = [replace(frame, data=frame.data.round()) for frame in frames]
    for name, scans in (("fractions", frames), ("whole", whole)):
        _write(_saved(tmp_path / name, scans), tmp_path / f"{name}_out", products=Products(outside=outside))
    types = [nib.load(tmp_path / f"{name}_out" / "warped.nii.gz").get_data_dtype() for name in ("fractions", "whole")]
    assert types == [np.float32, np.float32 if outside == "nan" else np.int16]


@pytest.mark.parametrize("home", [0, 1])
def test_the_header_is_that_of_the_home_scan(tmp_path, home):
    files = [str(tmp_path / f"{k}.nii") for k in range(2)]
    for k, file in enumerate(files):
        image = nib.Nifti1Image(_frame(phase=k).data, _affine("oblique"))
        image.header["descrip"] = f"scanner {k}".encode()
        image.set_sform(image.affine, code=2 + k)
        nib.save(image, file)
    _write(read_series(files), tmp_path / "out", home=home)
    for name in ("warped", "mean"):
        header = nib.load(tmp_path / "out" / f"{name}.nii.gz").header
        assert bytes(header["descrip"]).rstrip(b"\0") == f"scanner {home}".encode()
        assert int(header["qform_code"]) == int(header["sform_code"]) == 2 + home


def test_frame_time_of_a_series_that_is_no_nifti_is_written_in_seconds(tmp_path):
    _write(Series((_frame(), _frame(phase=0.5)), 4.5), tmp_path / "out")
    warped = nib.load(tmp_path / "out" / "warped.nii.gz").header
    assert warped.get_zooms() == pytest.approx((*SPACING, 4.5)) and warped.get_xyzt_units() == ("mm", "sec")
    assert int(warped["qform_code"]) == int(warped["sform_code"]) == 1


@pytest.mark.parametrize("stored", ["4D", "3D"])
def test_a_frame_time_that_nobody_gave_is_not_written(tmp_path, stored):
    frames = [_frame(), _frame(phase=0.5)]
    if stored == "3D":
        series = _saved(tmp_path / "in", frames)
    else:
        image = nib.Nifti1Image(np.stack([frame.data for frame in frames], axis=-1), frames[0].affine)
        image.header["pixdim"][4] = 0
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / "in.nii")
        series = read_series(tmp_path / "in.nii")
    _write(series, tmp_path / "out")
    for name in ("warped", "mean", "ddf_01"):
        header = nib.load(tmp_path / "out" / f"{name}.nii.gz").header
        assert header["pixdim"][4] == 0 and header.get_xyzt_units() == ("mm", "unknown"), name
    assert itk.array_from_image(itk.imread(str(tmp_path / "out" / "warped.nii.gz"))).shape == (2, *SIZE[::-1])


@pytest.mark.parametrize("unit", ["sec", "msec", "usec"])
def test_frame_time_keeps_its_unit_when_that_of_space_becomes_mm(tmp_path, unit):
    affine = _affine("oblique")
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine
    image = nib.Nifti1Image(np.stack([_frame(phase=p).data for p in (0, 0.5)], axis=-1), metres)
    image.header.set_zooms((*image.header.get_zooms()[:3], 2540.0))
    image.header.set_xyzt_units("meter", unit)
    nib.save(image, tmp_path / "in.nii")
    _write(read_series(tmp_path / "in.nii"), tmp_path / "out")
    warped = nib.load(tmp_path / "out" / "warped.nii.gz")
    assert warped.header.get_xyzt_units() == ("mm", unit) and warped.header.get_zooms()[3] == 2540
    np.testing.assert_allclose(warped.affine, affine, atol=1e-4)


def _by_itk_alone(path):
    """Where ITK places a file: the affine of its first three axes, in RAS."""
    image = itk.imread(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection())[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    return np.diag([-1, -1, 1, 1]) @ affine


SHIFT = 7.0 * np.eye(4)[:, :1] @ np.eye(4)[3:]
TURN = np.eye(4)
TURN[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
HALF_TURN = np.diag([-1.0, -1, 1])
HALF_TURN[1:, 1:] = [[-np.cos(4e-4), -np.sin(4e-4)], [np.sin(-4e-4), np.cos(4e-4)]]


@pytest.mark.parametrize("forms", ["both, shifted", "both, turned", "qform", "sform", "neither", "sheared sform"])
@pytest.mark.parametrize("axes", [*AXES, "half turn"])
def test_written_files_lie_alike_for_itk_and_nibabel_whatever_the_input_says(tmp_path, axes, forms):
    axes_matrix = HALF_TURN if axes == "half turn" else AXES[axes]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes_matrix * SPACING, [7, -30, 110]
    sform, qform, codes = affine, affine, (1, 1)
    if forms == "both, shifted":
        qform, codes = affine + SHIFT, (1, 2)
    elif forms == "both, turned":
        qform, codes = TURN @ affine, (1, 4)
    elif forms == "qform":
        sform, codes = affine + SHIFT, (3, 0)
    elif forms == "sform":
        qform, codes = affine + SHIFT, (0, 2)
    elif forms == "neither":
        qform, codes = affine + SHIFT, (0, 0)
    elif forms == "sheared sform":
        sform = affine @ np.array([[1, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for k, phase in enumerate((0.0, 0.7)):
        image = nib.Nifti1Image(_frame(phase=phase).data, None)
        image.set_qform(qform, codes[0])
        image.set_sform(sform, codes[1])
        nib.save(image, tmp_path / f"{k}.nii")
    read = nib.load(tmp_path / "0.nii").affine
    series = read_series([tmp_path / "0.nii", tmp_path / "1.nii"])
    _write(series, tmp_path / "out", products=Products("full", jacobian=True))
    place = series.frames[0].affine
    if forms != "sheared sform":
        np.testing.assert_allclose(place, read, atol=1e-5)
    corners = np.array([[i, j, k, 1] for i in (0, 40) for j in (0, 40) for k in (0, 40)])
    for name in ("warped", "mean", "ddf_01", "inverse_ddf_01", "jacobian_01"):
        path = tmp_path / "out" / f"{name}.nii.gz"
        header = nib.load(path).header
        np.testing.assert_array_equal(nib.load(path).affine, place, err_msg=name)
        # Quaternions of next to half a turn are rounded to 1e-3 radians by nibabel: 1e-3 * 40 voxels * 2.5 mm.
        atol = 0.1 if axes == "half turn" else 1e-3
        np.testing.assert_allclose(corners @ (header.get_qform() - place).T, 0, atol=atol, err_msg=name)
        np.testing.assert_allclose(corners @ (_by_itk_alone(path) - place).T, 0, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(header["pixdim"][1:4], np.linalg.norm(place[:3, :3], axis=0), rtol=1e-5)
        assert int(header["qform_code"]) == int(header["sform_code"]) > 0
    code = next((code for code in codes[::-1] if code), 1)
    assert int(nib.load(tmp_path / "out" / "mean.nii.gz").header["sform_code"]) == code


def test_a_sheared_grid_is_not_written(tmp_path):
    affine = _affine("oblique") @ np.array([[1, 0.05, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(InputError, match="orthogonal axes"):
        write_image(Frame(_frame().data, affine, ""), tmp_path / "x.nii.gz")
    assert not list(tmp_path.iterdir())


def test_result_names_every_file_and_holds_what_they_hold(tmp_path):
    series = _saved(tmp_path / "in", [_frame(), _frame(phase=0.5)])
    grid = _working_grid(series)
    std = _spread(_field(2, grid.shape)[:, 0].abs(), grid)
    result = _write(series, tmp_path / "out", grid=grid, std_mm=std, products=Products(jacobian=True))
    kinds = ("ddf", "inverse_ddf", "jacobian", "std_mm")
    expected = {"warped.nii.gz", "mean.nii.gz", "coverage.nii.gz"} | {
        f"{kind}_{k:02d}.nii.gz" for kind in kinds for k in range(2)
    }
    assert set(result["files"]) == {p.name for p in (tmp_path / "out").iterdir()} == expected
    for k in range(2):
        written = nib.load(tmp_path / "out" / f"jacobian_{k:02d}.nii.gz").get_fdata()
        np.testing.assert_array_equal(written, result["jacobian"][k])


def test_points_there_and_back_under_a_translation(tmp_path):
    series = _saved(tmp_path / "in", [_frame("oblique"), _frame("LPS", (25, 24, 23), (1.4, 1.7, 2.0))])
    grid = _working_grid(series)
    _write(series, tmp_path / "out", _constant(2, grid.shape, [1.5, -0.5, 0.75]), grid)
    points = np.array([7, -30, 110]) + np.random.default_rng(0).uniform(-7, 7, size=(50, 3))
    mapped = apply_field_to_points(tmp_path / "out" / "ddf_01.nii.gz", points)
    np.testing.assert_allclose(mapped, points + grid.affine.numpy()[:3, :3] @ [1.5, -0.5, 0.75], atol=1e-5)
    back = apply_field_to_points(tmp_path / "out" / "inverse_ddf_01.nii.gz", mapped)
    np.testing.assert_allclose(back, points, atol=1e-5)


def test_points_move_with_the_image(tmp_path):
    """The value at p in the common space is that of timepoint 1 at p + ddf(p)."""
    series = _saved(tmp_path / "in", [_frame("LAS"), _frame("oblique", (30, 30, 30), (1.5, 1.5, 1.5))])
    result = _write(series, tmp_path / "out")
    corner, voxel = series.frames[0].affine, np.array([[9, 13, 7], [6, 8, 9]])
    points = voxel @ corner[:3, :3].T + corner[:3, 3]
    x, y, z = apply_field_to_points(tmp_path / "out" / "ddf_01.nii.gz", points).T
    anatomy = 500 + 200 * np.sin(x / 6) + 150 * np.cos(y / 8 - z / 9) + 4 * x - 3 * y + 5 * z
    np.testing.assert_allclose(result["warped"][1][tuple(voxel.T)], anatomy, atol=5)


def test_applying_a_field_to_the_image_gives_the_warped_one_on_any_grid(tmp_path):
    series = _saved(tmp_path / "in", [_frame("LAS"), _frame("oblique", phase=0.7)])
    result = _write(series, tmp_path / "out")
    field = tmp_path / "out" / "ddf_01.nii.gz"
    stored = nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata()[..., 1]
    applied = apply_field(field, series.frames[1].path).data
    both = (applied != 0) & (stored != 0)
    assert both.mean() > 0.6 and ((applied != 0) != (stored != 0)).mean() < 1e-3  # a rounding error on a face
    np.testing.assert_allclose(applied[both], result["warped"][1][both], atol=1e-3)
    like = Frame(np.zeros((7, 8, 6), np.float32), series.frames[0].affine.copy(), "like")
    like.affine[:3, 3] += like.affine[:3, :3] @ [4, 5, 3]
    part = apply_field(field, series.frames[1], like=like)
    np.testing.assert_allclose(part.data, stored[4:11, 5:13, 3:9], atol=1e-3)
    np.testing.assert_array_equal(part.affine, like.affine)


def test_labels_move_unmixed_and_keep_their_type(tmp_path):
    series = _saved(tmp_path / "in", [_frame("LPS"), _frame("LPS")])
    _write(series, tmp_path / "out", _constant(2, SIZE, [2.0, 0.2, -1.0]), series.frames[0].grid)
    labels = np.random.default_rng(0).choice([0, 3, 1000], size=SIZE).astype(np.uint16)
    write_image(Frame(labels, series.frames[1].affine, ""), tmp_path / "labels.nii.gz")
    resampled = apply_field(tmp_path / "out" / "ddf_01.nii.gz", tmp_path / "labels.nii.gz", nearest=True)
    assert resampled.data.dtype == np.uint16
    np.testing.assert_array_equal(resampled.data[:-2, :, 1:], labels[2:, :, :-1])


def test_failure_in_the_middle_leaves_what_was_there(tmp_path, monkeypatch):
    series = _saved(tmp_path / "in", [_frame(), _frame(phase=0.5)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ddf_00.nii.gz").write_text("an earlier result", encoding="utf-8")
    for error, expected in ((RuntimeError("crash"), RuntimeError), (OSError(28, "No space left"), InputError)):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(writers, "_write_series", fail)
        with pytest.raises(expected, match="crash|No space left"):
            _write(series, tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["ddf_00.nii.gz"]
        assert (tmp_path / "out" / "ddf_00.nii.gz").read_text(encoding="utf-8") == "an earlier result"


def test_the_earlier_result_is_what_its_report_lists_and_other_fields_are_told(tmp_path, caplog):
    names = ["ddf_00.nii.gz", "ddf_02.nii.gz", "inverse_ddf_02.nii.gz", "mean.nii.gz", "notes.txt"]
    for name in names:
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert earlier_result(tmp_path) == set()
    assert "3 files of an earlier run, such as ddf_00.nii.gz" in caplog.text
    caplog.clear()
    (tmp_path / "report.json").write_text(
        json.dumps({"files": [*names, "gone.nii.gz", "../mean.nii.gz"]}), encoding="utf-8"
    )
    assert earlier_result(tmp_path) == set(names) - {"notes.txt"}
    assert not caplog.text


def test_places_that_cannot_be_written_are_named_in_one_line(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError) as caught:
            check_output_dir(place)
        assert f"got {place} (" in str(caught.value) and "\n" not in str(caught.value)
    assert check_output_dir(tmp_path / "new" / "folder").is_dir()
    assert not list((tmp_path / "new" / "folder").iterdir())
    with pytest.raises(InputError, match="a.png"):
        write_image(_frame(), tmp_path / "a.png")


def test_what_is_no_field_is_named_in_one_line(tmp_path):
    write_image(_frame(), tmp_path / "image.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no field", encoding="utf-8")
    for name, words in (("image.nii.gz", "(20, 26, 15)"), ("text.nii.gz", "field"), ("gone.nii.gz", "field")):
        with pytest.raises(InputError) as caught:
            read_field(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_field_that_is_not_finite_is_written_or_read(tmp_path, value):
    series = _saved(tmp_path / "in", [_frame(), _frame()])
    _write(series, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    ddf = _field(2, _working_grid(series).shape)
    ddf[1, 2, 3, 3, 3] = value
    with pytest.raises(InputError, match="ddf_01.nii.gz: expected finite displacements, got .* check the weights"):
        _write(series, tmp_path / "out", ddf)
    std = Frame(np.full(SIZE, value, np.float32), series.frames[0].affine, "std")
    with pytest.raises(InputError, match="std_mm_00.nii.gz: expected finite standard deviations"):
        _write(series, tmp_path / "out", std_mm=[std, std])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    image = nib.load(tmp_path / "out" / "ddf_01.nii.gz")
    data = np.array(image.dataobj)
    data[3, 3, 3, 0, 1] = value
    nib.save(nib.Nifti1Image(data, None, image.header), tmp_path / "broken.nii.gz")
    with pytest.raises(InputError, match="broken.nii.gz: expected finite displacements, got 1 NaN or infinite values"):
        read_field(tmp_path / "broken.nii.gz")


@pytest.fixture
def study(tmp_path):
    """A folder with a field, two images whose names differ after a dot, and points in two formats."""
    series = _saved(tmp_path / "in", [_frame(), _frame()])
    _write(series, tmp_path / "out")
    for name in ("scan.t1.nii.gz", "scan.t2.nii.gz"):
        write_image(_frame(), tmp_path / name)
    write_points(np.full((2, 3), 5.0), tmp_path / "p.csv")
    (tmp_path / "p.txt").write_text("1 2 3\n", encoding="utf-8")
    return tmp_path


def test_every_file_that_is_moved_keeps_its_name(study):
    files = [study / name for name in ("scan.t1.nii.gz", "scan.t2.nii.gz", "p.csv")]
    targets = apply_field_to_files(study / "out" / "ddf_01.nii.gz", files, study / "there")
    assert targets == [study / "there" / file.name for file in files]
    assert sorted(path.name for path in (study / "there").iterdir()) == sorted(file.name for file in files)
    assert read_points(targets[2]) == pytest.approx(
        apply_field_to_points(study / "out" / "ddf_01.nii.gz", np.full((2, 3), 5.0))
    )


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_points_of_slicer_keep_their_system_labels_and_properties(study, system):
    points = [{"label": name, "position": [5.0, 5.0, -5.0], "color": 3} for name in ("a", "ü")]
    node = {"type": "Fiducial", "coordinateSystem": system, "controlPoints": points, "display": {"opacity": 0.5}}
    (study / "p.mrk.json").write_text(json.dumps({"@schema": "x", "markups": [node]}), encoding="utf-8")
    field = study / "out" / "ddf_01.nii.gz"
    (target,) = apply_field_to_files(field, [study / "p.mrk.json"], study / "there")
    expected = apply_field_to_points(field, read_points(study / "p.mrk.json"))
    assert target == study / "there" / "p.mrk.json" and read_points(target) == pytest.approx(expected)
    assert np.abs(expected - read_points(study / "p.mrk.json")).max() > 0.1
    content = json.loads(target.read_text(encoding="utf-8"))
    for point, position in zip(points, expected.tolist()):
        point["position"] = pytest.approx([-position[0], -position[1], position[2]] if system == "LPS" else position)
    assert content == {"@schema": "x", "markups": [node]}


def test_no_result_takes_the_place_of_another_or_of_an_input(study):
    field, points = study / "out" / "ddf_01.nii.gz", [study / "p.csv", study / "p.txt"]
    contents = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    (study / "link").symlink_to(study)
    for name, make in (("hard", os.link), ("soft", os.symlink)):
        (study / name).mkdir()
        make(study / "scan.t1.nii.gz", study / name / "scan.t1.nii.gz")
        make(field, study / name / "scan.t2.nii.gz")
    same_name = "p.txt: expected a unique name, got one whose result .*p.csv is also that of .*p.csv"
    replaced = "--output: .* would replace the input"
    for files, output, words in (
        (points, study / "there", same_name),
        ([study / "scan.t1.nii.gz", study / "in" / ".." / "scan.t1.nii.gz"], study / "there", "expected a unique name"),
        ([study / "scan.t1.nii.gz"], study, replaced),
        ([study / "scan.t1.nii.gz"], study / "link", replaced),
        ([study / "p.txt", study / "p.csv"][1:], os.path.relpath(study), replaced),
        ([study / "scan.t1.nii.gz"], study / "hard", replaced),
        ([study / "scan.t1.nii.gz"], study / "soft", replaced),
        ([study / "scan.t2.nii.gz"], study / "hard", f"{replaced} {field}"),
        ([study / "scan.t2.nii.gz"], study / "soft", f"{replaced} {field}"),
    ):
        with pytest.raises(InputError, match=words):
            apply_field_to_files(field, files, output)
    assert not (study / "there").exists()
    assert all(path.read_bytes() == content for path, content in contents.items())


def test_of_several_files_all_are_moved_or_none(study):
    with pytest.raises(InputError, match="gone.nii.gz"):
        apply_field_to_files(study / "out" / "ddf_01.nii.gz", [study / "p.csv", "gone.nii.gz"], study / "there")
    assert not (study / "there").exists()


def test_a_field_that_is_read_knows_no_way_back(tmp_path):
    series = _saved(tmp_path / "in", [_frame(), _frame()])
    _write(series, tmp_path / "out")
    with pytest.raises(ValueError, match="inverse: expected.*; to invert ddf_KK .* read inverse_ddf_KK"):
        _ = read_field(tmp_path / "out" / "ddf_01.nii.gz").inverse


def test_what_is_no_field_is_answered_with_the_name_of_one(tmp_path):
    (tmp_path / "transform_03.h5").write_bytes(b"HDF")
    for path, words in ((tmp_path, "a folder"), (tmp_path / "transform_03.h5", "an ITK transform; use the ddf_KK")):
        with pytest.raises(InputError, match=f"expected a displacement field such as ddf_02.nii.gz, got {words}"):
            read_field(path)


def test_an_image_beside_the_field_is_refused(tmp_path):
    series = _saved(tmp_path / "in", [_frame(), _frame()])
    _write(series, tmp_path / "out")
    far = Frame(series.frames[1].data, series.frames[1].affine + 900 * np.eye(4)[:, :1] @ np.eye(4)[3:], "far.nii")
    with pytest.raises(InputError, match="far.nii.*overlaps"):
        apply_field(tmp_path / "out" / "ddf_01.nii.gz", far)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_images_of_every_type_come_back(tmp_path, dtype):
    data = np.random.default_rng(0).integers(0, 2, SIZE).astype(dtype)
    write_image(Frame(data, _affine("oblique"), ""), tmp_path / "sub" / "x.nii.gz")
    image = nib.load(tmp_path / "sub" / "x.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), data)
    np.testing.assert_allclose(image.affine, _affine("oblique"), atol=1e-5)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.nii.gz"]


def test_points_come_back(tmp_path):
    points = np.random.default_rng(0).normal(size=(5, 3)) * 100
    write_points(points, tmp_path / "points.csv")
    np.testing.assert_array_equal(read_points(tmp_path / "points.csv"), points)
    assert (tmp_path / "points.csv").read_text(encoding="utf-8").splitlines()[0] == "x,y,z"


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the project")
def test_real_series_without_motion_is_written_unchanged_and_with_motion_as_itk_has_it(tmp_path):
    path = DATA / "asl" / "pcasl.nii.gz"
    series = read_series(path)
    grid = _working_grid(series, 5.0)
    _write(series, tmp_path / "still", torch.zeros(10, 3, *grid.shape), grid)
    untransformed, stored = nib.load(tmp_path / "still" / "warped.nii.gz"), nib.load(path)
    np.testing.assert_allclose(untransformed.get_fdata(), stored.get_fdata(), rtol=1e-6, atol=1e-4)
    for key in ("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_z"):
        np.testing.assert_allclose(untransformed.header[key], stored.header[key], rtol=1e-5, atol=1e-6, err_msg=key)
    pair = Series(series.frames[:2], series.frame_time)
    warped = _write(pair, tmp_path / "moved", grid=grid)["warped"]
    write_image(pair.frames[1], tmp_path / "1.nii")
    judged = _by_itk(tmp_path / "moved" / "ddf_01.nii.gz", tmp_path / "1.nii", tmp_path / "1.nii")
    inside = judged > -1e5
    assert inside.mean() > 0.6 and np.abs(judged - warped[1])[inside].max() < 1e-5 * np.ptp(warped[1])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the project")
def test_real_contrasts_of_one_head_stay_aligned_through_a_known_motion(tmp_path):
    folder = DATA / "sepal_multicontrast"
    whole = read_series([folder / "FA2.nii.gz", folder / "FA12.nii.gz"])
    series = Series(tuple(Frame(f.data[40:100, 50:110, 60:100], f.affine, f.path) for f in whole.frames))
    result = _write(series, tmp_path, _constant(2, (60, 60, 40), [3.0, 0.0, 0.0]), series.frames[0].grid)
    for k in range(2):
        np.testing.assert_allclose(result["warped"][k][:-3], series.frames[k].data[3:], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("links", [True, False])
def test_second_names_are_those_of_bids_and_of_the_result(tmp_path, monkeypatch, links):
    def no_link(*_, **options):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    series = _saved(tmp_path / "in", [_frame(), _frame()])
    result = _write(series, tmp_path / "out", products=Products(bids_names=True))
    pairs = {
        "ddf_01.nii.gz": "from-scan01_to-common_mode-image_xfm.nii.gz",
        "inverse_ddf_01.nii.gz": "from-common_to-scan01_mode-image_xfm.nii.gz",
        "warped.nii.gz": "desc-aligned_image.nii.gz",
    }
    for ours, theirs in pairs.items():
        assert (tmp_path / "out" / ours).read_bytes() == (tmp_path / "out" / theirs).read_bytes()
        assert (tmp_path / "out" / ours).samefile(tmp_path / "out" / theirs) == links
    (tmp_path / "out" / "report.json").write_text(json.dumps({"files": result["files"]}), encoding="utf-8")
    assert set(pairs.values()) <= listed_result(tmp_path / "out") == set(result["files"])


def test_images_without_values_and_points_outside_of_any_scanner_are_refused(tmp_path):
    series = _saved(tmp_path / "in", [_frame(), _frame()])
    _write(series, tmp_path / "out")
    field = tmp_path / "out" / "ddf_01.nii.gz"
    for value in (np.nan, np.inf):
        empty = replace(series.frames[1], data=np.full(SIZE, value, np.float32))
        with pytest.raises(InputError, match="expected finite intensities, got none"):
            apply_field(field, empty)
    for value in (np.nan, -np.inf, 1e300):
        with pytest.raises(InputError, match="points: expected finite coordinates within 10 m .* use mm"):
            apply_field_to_points(field, np.array([[0.0, 1.0, 2.0], [0.0, value, 2.0]]))
