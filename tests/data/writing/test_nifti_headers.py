"""Headers and types of written NIfTI files."""

from dataclasses import replace

import itk
import nibabel as nib
import numpy as np
import pytest
from image_files import affine_by_itk
from written_series import AXES, SIZE, SPACING, affine_of, save_frames, smooth_frame, write_result

from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.writing.nifti import write_image
from groupmorph_monai.data.writing.products import Products
from groupmorph_monai.errors import InputError


def test_frame_time_units_and_codes_of_the_input_are_kept_and_integers_round_by_a_fraction_of_one(tmp_path):
    data = np.stack([smooth_frame(phase=p).data for p in (0, 0.5, 1.0)], axis=-1).astype(np.int16)
    image = nib.Nifti1Image(data, affine_of("oblique"))
    image.header.set_zooms((*image.header.get_zooms()[:3], 2540.0))
    image.header.set_xyzt_units("mm", "msec")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=2)
    image.header["descrip"] = b"scanner 7"
    nib.save(image, tmp_path / "in.nii.gz")
    result = write_result(read_series(tmp_path / "in.nii.gz"), tmp_path / "out")
    warped, mean = (nib.load(tmp_path / "out" / f"{name}.nii.gz") for name in ("warped", "mean"))
    assert warped.header.get_zooms()[3] == 2540.0 and warped.header.get_xyzt_units() == ("mm", "msec")
    assert int(warped.header["qform_code"]) == int(warped.header["sform_code"]) == 2  # code of the form that was read
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
        np.testing.assert_allclose(image.affine, affine_of("oblique"), atol=1e-5)


@pytest.mark.parametrize("outside", ["nan", "border"])
def test_only_scans_of_integers_are_stored_as_integers(tmp_path, outside):
    """NaN needs a floating-point type; values outside the field of view are integers like those inside."""
    frames = [smooth_frame(phase=phase) for phase in (0, 0.5)]
    whole = [replace(frame, data=frame.data.round()) for frame in frames]
    for name, scans in (("fractions", frames), ("whole", whole)):
        write_result(save_frames(tmp_path / name, scans), tmp_path / f"{name}_out", products=Products(outside=outside))
    types = [nib.load(tmp_path / f"{name}_out" / "warped.nii.gz").get_data_dtype() for name in ("fractions", "whole")]
    assert types == [np.float32, np.float32 if outside == "nan" else np.int16]


@pytest.mark.parametrize("home", [0, 1])
def test_the_header_is_that_of_the_home_scan(tmp_path, home):
    files = [str(tmp_path / f"{k}.nii") for k in range(2)]
    for k, file in enumerate(files):
        image = nib.Nifti1Image(smooth_frame(phase=k).data, affine_of("oblique"))
        image.header["descrip"] = f"scanner {k}".encode()
        image.set_sform(image.affine, code=2 + k)
        nib.save(image, file)
    write_result(read_series(files), tmp_path / "out", home=home)
    for name in ("warped", "mean"):
        header = nib.load(tmp_path / "out" / f"{name}.nii.gz").header
        assert bytes(header["descrip"]).rstrip(b"\0") == f"scanner {home}".encode()
        assert int(header["qform_code"]) == int(header["sform_code"]) == 2 + home


def test_frame_time_of_a_series_that_is_no_nifti_is_written_in_seconds(tmp_path):
    write_result(Series((smooth_frame(), smooth_frame(phase=0.5)), 4.5), tmp_path / "out")
    warped = nib.load(tmp_path / "out" / "warped.nii.gz").header
    assert warped.get_zooms() == pytest.approx((*SPACING, 4.5)) and warped.get_xyzt_units() == ("mm", "sec")
    assert int(warped["qform_code"]) == int(warped["sform_code"]) == 1


@pytest.mark.parametrize("stored", ["4D", "3D"])
def test_a_frame_time_that_nobody_gave_is_not_written(tmp_path, stored):
    frames = [smooth_frame(), smooth_frame(phase=0.5)]
    if stored == "3D":
        series = save_frames(tmp_path / "in", frames)
    else:
        image = nib.Nifti1Image(np.stack([frame.data for frame in frames], axis=-1), frames[0].affine)
        image.header["pixdim"][4] = 0
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, tmp_path / "in.nii")
        series = read_series(tmp_path / "in.nii")
    write_result(series, tmp_path / "out")
    for name in ("warped", "mean", "ddf_01"):
        header = nib.load(tmp_path / "out" / f"{name}.nii.gz").header
        assert header["pixdim"][4] == 0 and header.get_xyzt_units() == ("mm", "unknown"), name
    assert itk.array_from_image(itk.imread(str(tmp_path / "out" / "warped.nii.gz"))).shape == (2, *SIZE[::-1])


@pytest.mark.parametrize("unit", ["sec", "msec", "usec"])
def test_frame_time_keeps_its_unit_when_that_of_space_becomes_mm(tmp_path, unit):
    affine = affine_of("oblique")
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine
    image = nib.Nifti1Image(np.stack([smooth_frame(phase=p).data for p in (0, 0.5)], axis=-1), metres)
    image.header.set_zooms((*image.header.get_zooms()[:3], 2540.0))
    image.header.set_xyzt_units("meter", unit)
    nib.save(image, tmp_path / "in.nii")
    write_result(read_series(tmp_path / "in.nii"), tmp_path / "out")
    warped = nib.load(tmp_path / "out" / "warped.nii.gz")
    assert warped.header.get_xyzt_units() == ("mm", unit) and warped.header.get_zooms()[3] == 2540
    np.testing.assert_allclose(warped.affine, affine, atol=1e-4)


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
        image = nib.Nifti1Image(smooth_frame(phase=phase).data, None)
        image.set_qform(qform, codes[0])
        image.set_sform(sform, codes[1])
        nib.save(image, tmp_path / f"{k}.nii")
    read = nib.load(tmp_path / "0.nii").affine
    series = read_series([tmp_path / "0.nii", tmp_path / "1.nii"])
    write_result(series, tmp_path / "out", products=Products("full", jacobian=True))
    place = series.frames[0].affine
    if forms != "sheared sform":
        np.testing.assert_allclose(place, read, atol=1e-5)
    corners = np.array([[i, j, k, 1] for i in (0, 40) for j in (0, 40) for k in (0, 40)])
    for name in ("warped", "mean", "ddf_01", "inverse_ddf_01", "jacobian_01"):
        path = tmp_path / "out" / f"{name}.nii.gz"
        header = nib.load(path).header
        np.testing.assert_array_equal(nib.load(path).affine, place, err_msg=name)
        # nibabel rounds quaternions of almost half a turn to 1e-3 radians: 1e-3 * 40 voxels * 2.5 mm.
        atol = 0.1 if axes == "half turn" else 1e-3
        np.testing.assert_allclose(corners @ (header.get_qform() - place).T, 0, atol=atol, err_msg=name)
        np.testing.assert_allclose(corners @ (affine_by_itk(path) - place).T, 0, atol=1e-3, err_msg=name)
        np.testing.assert_allclose(header["pixdim"][1:4], np.linalg.norm(place[:3, :3], axis=0), rtol=1e-5)
        assert int(header["qform_code"]) == int(header["sform_code"]) > 0
    code = next((code for code in codes[::-1] if code), 1)
    assert int(nib.load(tmp_path / "out" / "mean.nii.gz").header["sform_code"]) == code


def test_a_sheared_grid_is_not_written(tmp_path):
    affine = affine_of("oblique") @ np.array([[1, 0.05, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(InputError, match="orthogonal axes"):
        write_image(Frame(smooth_frame().data, affine, ""), tmp_path / "x.nii.gz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_images_of_every_type_come_back(tmp_path, dtype):
    data = np.random.default_rng(0).integers(0, 2, SIZE).astype(dtype)
    write_image(Frame(data, affine_of("oblique"), ""), tmp_path / "sub" / "x.nii.gz")
    image = nib.load(tmp_path / "sub" / "x.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), data)
    np.testing.assert_allclose(image.affine, affine_of("oblique"), atol=1e-5)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.nii.gz"]
