"""Real DICOM files that other packages ship for their own tests: their images are read with the values that pydicom
shows, and everything that is no series is refused in one line."""

from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402

from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.errors import InputError  # noqa: E402


def shipped():
    """List the DICOM files of the packages that are installed."""
    specs = filter(None, map(find_spec, ("pydicom", "pynetdicom", "nibabel", "highdicom")))
    return [path for spec in specs for path in sorted(Path(spec.origin).parent.rglob("*.dcm"))]


def is_a_grey_image_of_a_patient(path):
    image = pydicom.dcmread(path, force=True)
    asked = ("SOPClassUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "PixelData")
    whole = path.stem not in ("MR_truncated", "MR_small_padded") and "DIFFUSION" not in image.get("ImageType", [])
    return whole and all(image.get(name) is not None for name in asked) and image.get("NumberOfFrames") is None


IMAGES = list(filter(is_a_grey_image_of_a_patient, shipped()))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.name)
def test_a_file_alone_is_refused_in_one_line(path):
    with pytest.raises(InputError) as caught:
        read_series(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_scans_of_a_real_image_have_its_values_and_place(path, tmp_path):
    """Two scans of four slices are copies of the image at other positions and times."""
    real = pydicom.dcmread(path)
    row, column = np.reshape(np.array(real.ImageOrientationPatient, float), (2, 3))
    corner, normal = np.array(real.ImagePositionPatient, float), np.cross(row, column)
    for number in range(8):
        scan, k = divmod(number, 4)
        copy = deepcopy(real)
        copy.ImagePositionPatient = [f"{value:.10g}" for value in corner + 4 * k * normal]
        copy.SOPInstanceUID, copy.AcquisitionTime = pydicom.uid.generate_uid(), exports.clock(60 * scan)
        exports.write(copy, tmp_path / str(number), real.file_meta.TransferSyntaxUID)
    first, second = read_series(tmp_path).frames
    expected = real.pixel_array.T * float(real.get("RescaleSlope", 1)) + float(real.get("RescaleIntercept", 0))
    measured = np.ones(first.data.shape, bool) if first.valid is None else first.valid  # without padding
    expected = np.repeat(expected[..., None], 4, axis=2).astype(np.float32)
    assert measured.mean() > 0.2
    np.testing.assert_array_equal(first.data[measured], expected[measured])
    np.testing.assert_array_equal(second.data, first.data)
    np.testing.assert_allclose(first.affine[:3, 3], np.diag(exports.LPS)[:3] * corner, atol=1e-6)


def test_there_are_images_of_three_packages():
    assert len(IMAGES) >= 10 and len({path.parent for path in IMAGES}) >= 3
