"""Timepoints that cannot be aligned are named in a warning, and other series of a good study are not."""

import gzip
import os

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, assert_aligned, dynamic, volumes  # noqa: E402

from groupmorph_monai.data.reading.readers import read_series  # noqa: E402

LOST = 2  # the timepoint that is damaged


def without_position(file, image):
    del image.ImagePositionPatient
    exports.write(image, file)


def cut(size):
    def damage(file, image):
        file.write_bytes(file.read_bytes()[:size])

    return damage


def in_colour(file, image):
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    exports.write(image, file)


def packed(file, image):
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


DAMAGES = {
    "position": (without_position, "no ImagePositionPatient"),
    "header": (cut(700), "no pixels"),
    "colours": (in_colour, "colours"),
    "gzip": (packed, "compression by gzip; unpack it"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("export", [exports.siemens, exports.ge])
def test_a_timepoint_that_cannot_be_read_is_no_silent_loss(tmp_path, damage, export):
    """Neither in a series of its own, nor in the series of all timepoints."""
    spoil, reason = DAMAGES[damage]
    for n, image in enumerate(export(volumes(), AFFINE)):
        file = exports.write(image, tmp_path / f"t{n // SIZE[2]}" / f"{n:02d}.dcm")
        if n // SIZE[2] == LOST:
            spoil(file, image)
    series = read_series(tmp_path)
    assert_aligned(series, np.delete(volumes(), LOST, axis=0))
    (warning,) = series.warnings
    assert warning.startswith(f"{tmp_path / 't2' / '14.dcm'}") and " and 6 more: " in warning and reason in warning


@pytest.mark.parametrize("change", [without_position, in_colour, packed])
@pytest.mark.parametrize(
    "kind",
    [
        {"ImageType": ["DERIVED", "SECONDARY"]},
        {"EchoTime": "90"},
        {"StudyInstanceUID": "1.2.3"},
        {"SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage},
        {"Rows": 5},
    ],
    ids=str,
)
def test_files_of_another_kind_that_cannot_be_read_are_no_doubt(tmp_path, change, kind):
    shared = exports.examination()
    exports.save(dynamic(shared), tmp_path)
    for n, image in enumerate(exports.classic(shared, volumes()[0], AFFINE, **kind)):
        change(exports.write(image, tmp_path / f"{n}.dcm"), image)
    series = read_series(tmp_path)
    assert_aligned(series, volumes())
    assert not series.warnings


def test_spectra_and_protocols_of_the_scanner_are_no_doubt(tmp_path):
    shared = exports.examination()
    exports.save(dynamic(shared), tmp_path)
    for n, private in enumerate(("1.3.12.2.1107.5.9.1", "1.3.46.670589.11.0.0.12.4")):
        image = exports.classic(shared, volumes()[0], AFFINE, SOPClassUID=private)[0]
        del image.PixelData, image.Rows, image.Columns
        exports.write(image, tmp_path / f"{n}.dcm")
    os.mkfifo(tmp_path / "pipe.gz")
    series = read_series(tmp_path)
    assert_aligned(series, volumes())
    assert not series.warnings


def one_by_one(shared, change, data=None):
    """Make a series for each timepoint; the header of the first one is changed."""
    images = []
    for k, volume in enumerate(volumes() if data is None else data):
        header = {"SeriesDescription": f"dyn {k}", "SeriesNumber": 5 + k, "AcquisitionTime": exports.clock(60 * k)}
        images += exports.classic(shared, volume, AFFINE, **(header | (change if k == 0 else {})))
    return images


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize(
    "change",
    [
        {"ImageType": None},
        {"ImageType": ["ORIGINAL", "PRIMARY"]},
        {"ImageType": ["original", "primary", "m", "nd"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "FIL"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "DIS2D"]},
        {"ImageType": ["DERIVED", "PRIMARY", "M", "ND"]},
        {"Modality": None},
        {"ScanningSequence": None},
        {"ScanningSequence": ["GR", "RM"]},
        {"SequenceName": "*fl3d1"},
        {"RepetitionTime": None},
        {"EchoTime": None},
        {"FlipAngle": None},
        {"FlipAngle": "10.5"},
        {"MagneticFieldStrength": "1.494"},
        {"InPlanePhaseEncodingDirection": "COL"},
        {"SeriesDescription": "survey dyn"},
        {"DiffusionBValue": 5.0},
    ],
    ids=str,
)
def test_a_timepoint_whose_header_differs_is_no_silent_loss(tmp_path, change):
    shared = exports.examination(MagneticFieldStrength="1.5")
    series = read_series(exports.save(one_by_one(shared, change), tmp_path))
    assert_aligned(series, volumes()[1:])
    (warning,) = series.warnings
    assert warning.startswith("5 '") and " is not aligned, as " in warning


def test_the_other_series_of_a_good_study_are_no_doubt(tmp_path):
    """A localiser, T2, diffusion, T1 map, subtractions, a filtered copy and a reformatted one, all in one place."""
    shared, (other, *_) = exports.examination(), volumes(seed=6)
    images = one_by_one(shared, {})
    series = [
        {"SeriesDescription": "localizer", "EchoTime": "3", "RepetitionTime": "8"},
        {"SeriesDescription": "t2_tse", "EchoTime": "90", "ScanningSequence": "SE", "RepetitionTime": "4000"},
        {"SeriesDescription": "ep2d_diff", "EchoTime": "60", "ScanningSequence": "EP", "DiffusionBValue": 800.0},
        {"SeriesDescription": "vfa", "FlipAngle": "5"},
        {"SeriesDescription": "vfa", "FlipAngle": "2"},
        {"SeriesDescription": "dyn 2 SUB"},
        {"SeriesDescription": "dyn 1 SUB", "ImageType": ["DERIVED", "PRIMARY", "M", "ND"]},
        {"SeriesDescription": "dyn 1", "ImageType": ["DERIVED", "SECONDARY", "M", "SUB"]},
        {"SeriesDescription": "dyn 1", "ImageType": ["DERIVED", "SECONDARY", "MPR"], "AcquisitionTime": "110000"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "FIL"], "AcquisitionTime": exports.clock(60)},
        {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"], "SeriesDescription": "dyn"},
    ]
    for number, header in enumerate(series):
        header = {"AcquisitionTime": exports.clock(300 + 60 * number), "SeriesNumber": 20 + number} | header
        images += exports.classic(shared, other, AFFINE, **header)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes())
    assert not series.warnings
