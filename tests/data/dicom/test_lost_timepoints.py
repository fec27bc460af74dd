"""Timepoints that cannot be aligned are named in a warning, and other series of a good study are not."""

import gzip

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
