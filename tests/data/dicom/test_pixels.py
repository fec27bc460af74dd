"""Pixels in every encoding, tilted gantries and real files have the values and positions that other programs read."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_erosion

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless  # noqa: E402

from groupmorph_monai.data.dicom import order  # noqa: E402
from groupmorph_monai.data.dicom.pixels import stored_values  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.errors import InputError  # noqa: E402

SCANS = Path(__file__).parents[2] / "real_scans"
PHILIPS = Path(__file__).parents[4] / "shared" / "data" / "dicom" / "philips_enhanced"


def series_of(data, affine=exports.AFFINE, **attributes):
    headers = [{"AcquisitionTime": exports.clock(60 * k)} for k in range(len(data))]
    return exports.one_series(data, headers, affine, **attributes)


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
@pytest.mark.parametrize("syntax", ["little", ExplicitVRBigEndian, RLELossless])
def test_signed_and_unsigned_pixels_in_any_encoding(tmp_path, kind, syntax):
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    data = np.random.default_rng(0).integers(low, high, (2, *exports.SIZE), endpoint=True).astype(kind)
    data[:, 0, 0, 0], data[:, 1, 0, 0] = low, high
    for number, image in enumerate(series_of(data, RescaleSlope="0.5", RescaleIntercept="-10")):
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
        path = exports.write(
            image, tmp_path / f"{number}", syntax if syntax == ExplicitVRBigEndian else ExplicitVRLittleEndian
        )
        if syntax == RLELossless:
            packed = pydicom.dcmread(path)
            packed.compress(RLELossless)
            packed.save_as(path)
    frames = read_series(tmp_path).frames
    np.testing.assert_array_equal(np.stack([frame.data for frame in frames]), (0.5 * data - 10).astype(np.float32))


def test_bits_that_pixels_do_not_use_are_cleared(tmp_path):
    """Old exports keep an overlay in the upper four of 16 bits."""
    data = np.random.default_rng(0).integers(0, 4096, (2, *exports.SIZE)).astype(np.uint16)
    with_overlay = data | np.uint16(0b1010 << 12)
    images = series_of(with_overlay, BitsStored=12, HighBit=11)
    frames = read_series(exports.save(images, tmp_path)).frames
    np.testing.assert_array_equal(np.stack([frame.data for frame in frames]), data)


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "expb"])
def test_every_encoding_of_pydicoms_scan_gives_the_same_values(name):
    pytest.importorskip("gdcm")
    plain = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    expected = np.frombuffer(plain.PixelData, "<i2").reshape(1, plain.Rows, plain.Columns)
    np.testing.assert_array_equal(stored_values(get_testdata_file(f"MR_small_{name}.dcm")), expected)


def test_pixels_that_cannot_be_decoded_name_the_cure(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError("no decoder\nfor this")

    for syntax, cure in (
        (ExplicitVRLittleEndian, "copy or export"),
        (RLELossless, "pip install 'groupmorph-monai[dicom]'"),
    ):
        path = get_testdata_file("MR_small_RLE.dcm" if syntax == RLELossless else "MR_small.dcm")
        with monkeypatch.context() as patch:
            patch.setattr(pydicom.dataset.Dataset, "pixel_array", property(fail))
            with pytest.raises(InputError, match="no decoder for this") as caught:
                stored_values(path)
        assert cure in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("stored", ["table", "upper bits"])
def test_values_that_slope_and_intercept_do_not_convert_are_refused(tmp_path, stored):
    images = series_of(np.ones((2, *exports.SIZE), np.uint16))
    for image in images:
        if stored == "table":
            table = pydicom.Dataset()
            table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "US", [0, 10, 40, 90]
            table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
            image.ModalityLUTSequence = [table]
        else:
            image.BitsStored, image.HighBit = 12, 15
    with pytest.raises(InputError, match="expected values in the lowest bits and a rescale slope, got .*; export"):
        read_series(exports.save(images, tmp_path))


def test_a_cut_file_is_refused(tmp_path):
    data = np.random.default_rng(0).integers(0, 4096, (2, *exports.SIZE)).astype(np.uint16)
    exports.save(series_of(data), tmp_path)
    cut = next(path for path in sorted(tmp_path.rglob("*")) if path.is_file())
    cut.write_bytes(cut.read_bytes()[:-50])
    with pytest.raises(InputError, match="complete pixel data.*copy or export"):
        read_series(tmp_path)


def test_a_tilted_gantry_is_interpolated_onto_right_angles(tmp_path):
    """Slices shifted along their columns; intensities are linear in space, which linear interpolation keeps."""
    lps = np.array([[1.5, 0, 0, -8], [0, 1.5, -0.9, -6], [0, 0, 3, 20], [0, 0, 0, 1.0]])
    affine, size = exports.LPS @ lps, (16, 18, 9)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in size], indexing="ij"), axis=-1)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    values = np.round(4 * points @ [3, -5, 7]).astype(np.int16)
    series = read_series(exports.save(series_of(np.stack([values, values]), affine), tmp_path))
    assert len(series.warnings) == 1 and "and 1 more are sheared by up to 16.7 degrees" in series.warnings[0]
    frame = series.frames[0]
    axes = frame.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag([1.5**2, 1.5**2, 9]), atol=1e-4)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in frame.data.shape], indexing="ij"), axis=-1)
    points = index @ axes.T + frame.affine[:3, 3]
    # The outermost half voxel inside the field of view repeats the border's value.
    inside = binary_erosion(frame.valid, np.ones((1, 3, 1)))
    assert inside.mean() > 0.5
    np.testing.assert_allclose(frame.data[inside], (4 * points @ [3, -5, 7])[inside], atol=1.5)


def same_place(frame, image, volume=None):
    """Compare with a file of dcm2niix, which flips rows: values at the same world coordinates are equal."""
    to_theirs = np.linalg.inv(image.affine) @ frame.affine
    whole = np.round(to_theirs).astype(int)
    np.testing.assert_allclose(to_theirs, whole, atol=1e-3)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in frame.data.shape], indexing="ij"), axis=-1)
    index = index @ whole[:3, :3].T + whole[:3, 3]
    theirs = np.asarray(image.dataobj if volume is None else image.dataobj[..., volume])
    return theirs[tuple(np.moveaxis(index, -1, 0))]


def test_a_real_siemens_mosaic_is_what_dcm2niix_makes_of_it():
    image = nibabel.load(SCANS / "siemens_mosaic.nii.gz")
    series = read_series(SCANS / "siemens_mosaic")
    for k, frame in enumerate(series.frames):
        np.testing.assert_array_equal(frame.data, same_place(frame, image, k))
    assert series.frame_time == pytest.approx(image.header.get_zooms()[3], abs=1e-3)
    assert series.description == "EPI PE=AP"


@pytest.mark.skipif(not PHILIPS.is_dir(), reason="needs the data beside the project")
def test_a_real_enhanced_philips_file_is_what_dcm2niix_makes_of_it(monkeypatch):
    """Its magnitude and field map are of one moment, thus no timepoints; without this check, both are read."""
    with pytest.raises(InputError, match="expected an acquisition or trigger time that differs"):
        read_series(PHILIPS / "IM_0027_fMAP.dcm", description="B0*")
    monkeypatch.setattr(order, "_check_distinct_moments", lambda volumes: None)
    series = read_series(PHILIPS / "IM_0027_fMAP.dcm", description="B0*")
    magnitude, field = series.frames
    # dcm2niix divides the magnitude by the private scale slope, which is unnecessary for a single volume.
    theirs = same_place(magnitude, nibabel.load(PHILIPS / "Philips_WIP_B0_NS_801_e1.nii"))
    np.testing.assert_allclose(magnitude.data, theirs * (magnitude.data.max() / theirs.max()), rtol=1e-5)
    # Its slope of the field map, -500 to 500 Hz, differs from the stored one in its sixth digit.
    theirs = same_place(field, nibabel.load(PHILIPS / "Philips_WIP_B0_NS_801_e2_fieldmaphz.nii"))
    measured = slice(None) if field.valid is None else field.valid
    np.testing.assert_allclose(field.data[measured], theirs[measured], rtol=1e-6, atol=0.01)


def test_pydicoms_study_of_several_patients_is_refused():
    folder = Path(get_testdata_file("DICOMDIR-nooffset")).parent
    with pytest.raises(InputError) as caught:
        read_series(folder)
    assert "\n" not in str(caught.value)
