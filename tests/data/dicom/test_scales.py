"""Values of different scans are comparable, or a warning says that they may not be."""

import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import dynamic, refused  # noqa: E402


@pytest.mark.parametrize("slope", ["0", "0.0"])
def test_a_slope_of_zero_is_refused(tmp_path, slope):
    """It would make one slice black."""
    images = dynamic()
    images[9].RescaleSlope, images[9].RescaleIntercept = slope, "0"
    refused(exports.save(images, tmp_path), "expected a rescale slope other than 0")
