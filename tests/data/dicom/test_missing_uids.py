"""Sources whose headers lack a unique identifier, to which results would refer."""

import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, volumes  # noqa: E402

from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.data.writing.products import Exports, Products  # noqa: E402
from groupmorph_monai.errors import InputError  # noqa: E402


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID"])
def test_sources_without_a_uid_are_refused_before_any_work(tmp_path, name):
    """Archives reject results without a study, and viewers do not overlay those without a frame of reference."""
    scans = exports.siemens(volumes(), AFFINE, SeriesInstanceUID="1.2.3")
    for image in scans:
        delattr(image, name)
    series = read_series(exports.save(scans, tmp_path))
    with pytest.raises(InputError, match=f"expected {name}, to which the results of --dicom refer, got none; omit"):
        Products(exports=Exports(dicom=True)).check(series, 0)
