"""Written registrations agree with ITK and with closed forms, in any orientation."""

import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from json_files import write_json
from written_series import (
    AXES,
    ROTATION,
    SIZE,
    SPACING,
    affine_of,
    constant_fields,
    dense_transforms,
    save_frames,
    smooth_fields,
    smooth_frame,
    working_grid_of,
    world_points,
    write_result,
)

from groupmorph_monai.data.preprocessing.resampling import working_grid
from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.storage import Storage
from groupmorph_monai.data.writing import registration
from groupmorph_monai.data.writing.applying import apply_field
from groupmorph_monai.data.writing.earlier_result import earlier_result, listed_result
from groupmorph_monai.data.writing.nifti import write_image
from groupmorph_monai.data.writing.output_folder import check_output_dir
from groupmorph_monai.data.writing.products import Exports, Products
from groupmorph_monai.data.writing.registration import write_registration
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform, ComposedTransform, DenseTransform, jacobian_determinant
from groupmorph_monai.workflow.registration import ComposeTransformsd

DATA = Path(__file__).parents[4] / "shared" / "data"


def _spread(values, grid):
    return [Frame(x.numpy(), grid.affine.numpy(), "std") for x in values]


def _by_itk(field, image, reference, outside=-1e6):
    """Resample the file ``image`` to the grid of ``reference`` by ITK alone: ``(*S)``."""
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
    second = smooth_frame(axes, phase=0.7)
    if other == "other grid":
        second = smooth_frame("LPS" if axes == "oblique" else "oblique", (30, 27, 31), (1.1, 1.6, 1.3), phase=0.7)
    series = save_frames(tmp_path / "in", [smooth_frame(axes), second])
    warped = write_result(series, tmp_path / "out", products=Products(fields))["warped"]
    stored = np.moveaxis(nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata(), -1, 0)
    number = np.zeros(SIZE)
    for k, frame in enumerate(series.frames):
        judged = _by_itk(tmp_path / "out" / f"ddf_{k:02d}.nii.gz", frame.path, series.frames[0].path)
        inside = judged > -1e5
        assert inside.mean() > 0.6
        assert np.abs(judged - warped[k])[inside].max() < 1e-5 * np.ptp(warped[k])
        # ITK has the same field of view, except for rounding errors at its faces.
        assert ((stored[k] != 0) != inside).mean() < 1e-3
        np.testing.assert_array_equal(stored[k], np.where(stored[k] != 0, warped[k], 0))
        number += stored[k] != 0
        # The image has enough contrast for errors to show
        assert np.abs(frame.data.mean() - judged[inside]).max() > 100
    np.testing.assert_array_equal(nib.load(tmp_path / "out" / "coverage.nii.gz").get_fdata(), number)


def test_itk_takes_the_inverse_field_on_the_timepoints_own_grid(tmp_path):
    frames = [smooth_frame("LAS"), smooth_frame("oblique", (22, 17, 21), (1.3, 1.9, 1.6))]
    series = save_frames(tmp_path / "in", frames)
    write_result(series, tmp_path / "out")
    path = tmp_path / "out" / "inverse_ddf_01.nii.gz"
    resampled = apply_field(path, series.frames[0])
    assert resampled.data.shape == (22, 17, 21)
    np.testing.assert_allclose(resampled.affine, frames[1].affine, atol=1e-5)
    judged = _by_itk(path, series.frames[0].path, series.frames[1].path)
    inside = judged > -1e5
    assert inside.mean() > 0.5 and np.abs(judged - resampled.data)[inside].max() < 1e-5 * np.ptp(resampled.data)


def test_field_file_is_what_itk_writes_itself(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out", products=Products("full"))
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
    """The motion is defined on one working grid; only the storage of the native volumes differs."""
    spacing, size = np.array([1.5, 1.2, 2.5]), np.array([20, 26, 15])
    order = np.abs(AXES[axes]).argmax(axis=0)
    plain = [smooth_frame("RAS", tuple(size), spacing, phase) for phase in (0.0, 0.7)]
    turned = [smooth_frame(axes, tuple(size[order]), spacing[order], phase) for phase in (0.0, 0.7)]
    grid = working_grid([frame.grid for frame in plain], 2.0)
    ddf = smooth_fields(2, grid.shape)
    results = {}
    for name, frames in (("plain", plain), ("turned", turned)):
        series = save_frames(tmp_path / f"{name}_in", frames)
        spread = _spread(ddf[:, 0].abs(), grid)
        write_registration(
            series, dense_transforms(ddf, grid), tmp_path / name, 0, spread, products=Products("full", jacobian=True)
        )
        files = ("warped", "mean", "coverage", "ddf_01", "inverse_ddf_01", "std_mm_01", "jacobian_01")
        images = {file: nib.as_closest_canonical(nib.load(tmp_path / name / f"{file}.nii.gz")) for file in files}
        results[name] = {file: (image.get_fdata(), image.affine) for file, image in images.items()}
    for file, (expected, place) in results["plain"].items():
        got, where = results["turned"][file]
        np.testing.assert_allclose(where, place, atol=1e-4)
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), err_msg=file)


def test_whole_voxel_displacement_takes_the_neighbour_along_each_axis(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame("oblique"), smooth_frame("oblique", phase=0.7)])
    for axis in range(3):
        shift = [1.0 if a == axis else 0.0 for a in range(3)]
        result = write_result(series, tmp_path / "out", constant_fields(2, SIZE, shift), series.frames[0].grid)
        expected = np.roll(series.frames[1].data, -1, axis)
        inner = tuple(slice(0, -1 if a == axis else None) for a in range(3))
        np.testing.assert_allclose(result["warped"][1][inner], expected[inner], atol=2e-3)
        np.testing.assert_allclose(result["native"][1], series.frames[1].data, atol=0)


def test_displacement_of_a_coarse_turned_grid_becomes_millimetres_on_the_native_one():
    """A displacement that is linear in world coordinates remains linear on every grid inside the working grid."""
    size, affine = (12, 15, 11), affine_of("oblique", (4.0, 3.0, 5.0), (12, 15, 11))
    slope, at = np.array([[0.05, 0.02, -0.03], [-0.04, 0.06, 0.01], [0.02, 0.03, -0.05]]), np.array([7.0, -30, 110])

    def move(world):
        return np.einsum("de,eijk->dijk", slope, world - at.reshape(3, 1, 1, 1)) + 1

    voxels = np.einsum("de,eijk->dijk", np.linalg.inv(affine[:3, :3]), move(world_points(affine, size)))
    target = affine_of("LAS", (1.5, 1.2, 2.5), (9, 11, 7))
    (transform,) = dense_transforms(torch.tensor(voxels)[None], Grid(size, affine))
    displacement = transform.displacement(Grid((9, 11, 7), target)).numpy()
    np.testing.assert_allclose(displacement, move(world_points(target, (9, 11, 7))), atol=1e-5)
    determinant = jacobian_determinant(torch.from_numpy(displacement)[None], torch.from_numpy(target))
    np.testing.assert_allclose(determinant[0], np.linalg.det(np.eye(3) + slope), atol=1e-5)


def test_a_frame_is_interpolated_once_from_its_own_finer_grid(tmp_path):
    """White noise on a grid of half the spacing is preserved only without an intermediate resampling."""
    fine = affine_of(spacing=SPACING / 2, size=(39, 51, 29))
    data = np.random.default_rng(0).normal(size=(39, 51, 29)).astype(np.float32)
    series, grid = Series((smooth_frame(), Frame(data, fine, "x"))), Grid(SIZE, affine_of())
    warped = write_result(series, tmp_path, constant_fields(2, SIZE, [0.5, 0.0, 0.0]), grid)["warped"]
    np.testing.assert_allclose(warped[1][:-1], data[1::2, ::2, ::2], atol=1e-5)


def test_an_affine_map_is_exact_far_beyond_the_grid_of_the_deformation(tmp_path):
    """It is not sampled on the working grid and extrapolated."""
    rotation = torch.eye(4, dtype=torch.float64)
    rotation[:3, :3] = torch.from_numpy(ROTATION)
    rotation[:3, 3] = torch.tensor([60.0, -20.0, 35.0])
    second = smooth_frame("LPS", (40, 42, 44), (2.0, 2.0, 2.0), phase=0.7)
    second.affine[:3, 3] += [60, -20, 35]
    series, grid = Series((smooth_frame(), second)), Grid((5, 5, 5), affine_of(size=(5, 5, 5)))
    zero = torch.zeros(3, 5, 5, 5)
    maps = [ComposedTransform(DenseTransform(zero, zero, grid), AffineTransform(m)) for m in (torch.eye(4), rotation)]
    write_registration(series, maps, tmp_path)
    for name, frame, linear, shift in (
        ("ddf_01", series.frames[0], ROTATION, rotation[:3, 3].numpy()),
        ("inverse_ddf_01", second, ROTATION.T, -ROTATION.T @ rotation[:3, 3].numpy()),
    ):
        places = world_points(frame.affine, frame.data.shape)
        expected = np.einsum("de,eijk->dijk", linear, places) + shift.reshape(3, 1, 1, 1) - places
        lps = nib.load(tmp_path / f"{name}.nii.gz").get_fdata()[:, :, :, 0]
        np.testing.assert_allclose(np.moveaxis(lps * [-1, -1, 1], -1, 0), expected, atol=1e-4)


def test_results_lie_on_the_home_scan_which_is_not_interpolated(tmp_path):
    frames = [smooth_frame("LAS"), smooth_frame("oblique", (22, 17, 21), (1.3, 1.9, 1.6), phase=0.7)]
    series = save_frames(tmp_path / "in", frames)
    grid = working_grid_of(series)
    ddf = smooth_fields(2, grid.shape)
    ddf[1] = 0
    result = write_registration(
        series, dense_transforms(ddf, grid), tmp_path / "out", home=1, products=Products("full")
    )
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
def test_unobserved_voxels_have_the_requested_value_and_do_not_count_in_means(tmp_path, outside):
    """Each timepoint is shifted by whole voxels along one axis: layers from outside the field of view are unknown."""
    data = np.random.default_rng(0).uniform(1, 2, size=(3, *SIZE)).astype(np.float32)
    series = Series(tuple(Frame(x, affine_of("oblique"), "x") for x in data))
    shifts = torch.tensor([[2.0, 0, 0], [3.0, 0, 0], [0, -1.0, 0]]).view(3, 3, 1, 1, 1).expand(3, 3, *SIZE)
    result = write_result(series, tmp_path, shifts, series.frames[0].grid, products=Products(outside=outside))
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


def test_comparisons_count_what_is_covered_both_before_and_after(tmp_path):
    valid = np.ones(SIZE, dtype=bool)
    valid[0] = False
    frame = replace(smooth_frame(), valid=valid)
    result = write_result(Series((frame,) * 2), tmp_path, constant_fields(2, SIZE, [1.0, 0.0, 0.0]), frame.grid)
    assert result["covered"][1:-1].all() and not result["covered"][[0, -1]].any()


def test_spread_is_a_length_in_millimetres_and_follows_the_initial_maps_linear_part(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame("oblique"), smooth_frame("oblique")])
    grid = working_grid_of(series, (3.0, 2.0, 4.0))
    initial = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    initial[1, :3, :3] = torch.tensor([[1.2, 0.3, 0], [0, 0.9, -0.2], [0.1, 0, 1.1]], dtype=torch.float64)
    zero = torch.zeros(2, 3, *grid.shape)
    std = constant_fields(2, grid.shape, [0.5, 0.25, 1.0])
    pred = {"lattice_ddf": zero, "lattice_inverse_ddf": zero, "step": 1, "ddf_std": std}
    item = {"image": zero[:, 0], "pred": pred, "affine": grid.affine, "initial": initial}
    composed = ComposeTransformsd()(item)["pred"]
    write_registration(series, composed["transforms"], tmp_path / "out", std_mm=_spread(composed["std_mm"], grid))
    linear = initial[1, :3, :3].numpy() @ grid.affine[:3, :3].numpy()
    covariance = linear @ np.diag([0.5, 0.25, 1.0]) ** 2 @ linear.T
    for k, expected in enumerate((np.sqrt(1.5**2 + 0.5**2 + 4.0**2), np.sqrt(np.trace(covariance)))):
        np.testing.assert_allclose(
            nib.load(tmp_path / "out" / f"std_mm_{k:02d}.nii.gz").get_fdata(), expected, rtol=1e-5
        )


@pytest.mark.parametrize("scans_at_once", [None, 1])
def test_result_names_every_file_and_holds_what_they_hold(scans_at_once, tmp_path, monkeypatch):
    def keep(storage, values):
        assert threading.current_thread() is threading.main_thread()  # threads must not store two arrays in one place
        return kept(storage, values)

    kept, storage = Storage.keep, Storage(scans_at_once, tmp_path)
    monkeypatch.setattr(Storage, "keep", keep)
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame(phase=0.5)])
    grid = working_grid_of(series)
    std = _spread(smooth_fields(2, grid.shape)[:, 0].abs(), grid)
    ddf = smooth_fields(2, grid.shape)
    products = Products(jacobian=True)
    result = write_result(series, tmp_path / "out", ddf, grid, std_mm=std, products=products, storage=storage)
    kinds = ("ddf", "inverse_ddf", "jacobian", "std_mm")
    expected = {"warped.nii.gz", "mean.nii.gz", "coverage.nii.gz"} | {
        f"{kind}_{k:02d}.nii.gz" for kind in kinds for k in range(2)
    }
    assert set(result["files"]) == {p.name for p in (tmp_path / "out").iterdir()} == expected
    for k, transform in enumerate(dense_transforms(ddf, grid)):
        written = nib.load(tmp_path / "out" / f"jacobian_{k:02d}.nii.gz").get_fdata()
        frame = series.frames[0].grid
        expected = jacobian_determinant(transform.displacement(frame)[None], frame.affine)[0]
        np.testing.assert_array_equal(written, expected)


def test_failure_in_the_middle_leaves_what_was_there(tmp_path, monkeypatch):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame(phase=0.5)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ddf_00.nii.gz").write_text("an earlier result", encoding="utf-8")
    for error, expected in ((RuntimeError("crash"), RuntimeError), (OSError(28, "No space left"), InputError)):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(registration._Writer, "_write_series", fail)
        with pytest.raises(expected, match="crash|No space left"):
            write_result(series, tmp_path / "out")
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["ddf_00.nii.gz"]
        assert (tmp_path / "out" / "ddf_00.nii.gz").read_text(encoding="utf-8") == "an earlier result"


def test_the_earlier_result_is_that_of_its_report_and_other_fields_are_reported(tmp_path, caplog):
    names = ["ddf_00.nii.gz", "ddf_02.nii.gz", "inverse_ddf_02.nii.gz", "mean.nii.gz", "notes.txt"]
    for name in names:
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert earlier_result(tmp_path) == set()
    assert "3 files of an earlier run, such as ddf_00.nii.gz" in caplog.text
    caplog.clear()
    write_json(tmp_path / "report.json", {"files": [*names, "gone.nii.gz", "../mean.nii.gz"]})
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
        write_image(smooth_frame(), tmp_path / "a.png")


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the project")
def test_real_series_without_motion_is_written_unchanged_and_with_motion_as_itk_has_it(tmp_path):
    path = DATA / "asl" / "pcasl.nii.gz"
    series = read_series(path)
    grid = working_grid_of(series, 5.0)
    write_result(series, tmp_path / "still", torch.zeros(10, 3, *grid.shape), grid)
    untransformed, stored = nib.load(tmp_path / "still" / "warped.nii.gz"), nib.load(path)
    np.testing.assert_allclose(untransformed.get_fdata(), stored.get_fdata(), rtol=1e-6, atol=1e-4)
    for key in ("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "quatern_b", "qoffset_z"):
        np.testing.assert_allclose(untransformed.header[key], stored.header[key], rtol=1e-5, atol=1e-6, err_msg=key)
    pair = Series(series.frames[:2], series.frame_time)
    warped = write_result(pair, tmp_path / "moved", grid=grid)["warped"]
    write_image(pair.frames[1], tmp_path / "1.nii")
    judged = _by_itk(tmp_path / "moved" / "ddf_01.nii.gz", tmp_path / "1.nii", tmp_path / "1.nii")
    inside = judged > -1e5
    assert inside.mean() > 0.6 and np.abs(judged - warped[1])[inside].max() < 1e-5 * np.ptp(warped[1])


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the project")
def test_real_contrasts_of_one_head_stay_aligned_through_a_known_motion(tmp_path):
    folder = DATA / "sepal_multicontrast"
    whole = read_series([folder / "FA2.nii.gz", folder / "FA12.nii.gz"])
    series = Series(tuple(Frame(f.data[40:100, 50:110, 60:100], f.affine, f.path) for f in whole.frames))
    result = write_result(series, tmp_path, constant_fields(2, (60, 60, 40), [3.0, 0.0, 0.0]), series.frames[0].grid)
    for k in range(2):
        np.testing.assert_allclose(result["warped"][k][:-3], series.frames[k].data[3:], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("links", [True, False])
def test_second_names_are_those_of_bids_and_of_the_result(tmp_path, monkeypatch, links):
    def no_link(*_, **options):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    result = write_result(series, tmp_path / "out", products=Products(exports=Exports(bids_names=True)))
    pairs = {
        "ddf_01.nii.gz": "from-scan01_to-common_mode-image_xfm.nii.gz",
        "inverse_ddf_01.nii.gz": "from-common_to-scan01_mode-image_xfm.nii.gz",
        "warped.nii.gz": "desc-aligned_image.nii.gz",
    }
    for ours, theirs in pairs.items():
        assert (tmp_path / "out" / ours).read_bytes() == (tmp_path / "out" / theirs).read_bytes()
        assert (tmp_path / "out" / ours).samefile(tmp_path / "out" / theirs) == links
    write_json(tmp_path / "out" / "report.json", {"files": result["files"]})
    assert set(pairs.values()) <= listed_result(tmp_path / "out") == set(result["files"])
