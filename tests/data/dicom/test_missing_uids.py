"""Sources whose headers lack a unique identifier, to which results would refer."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, volumes  # noqa: E402

from groupmorph_monai.data.dicom import write_dicom  # noqa: E402
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


def test_results_refer_to_the_uid_in_the_meta_information_or_are_refused(tmp_path):
    """They must not contain the path of a file."""
    paths = [
        exports.write(image, tmp_path / "in" / f"{number}.dcm")
        for number, image in enumerate(exports.siemens(volumes(), AFFINE))
    ]
    uids = set()
    for path in paths:
        image = pydicom.dcmread(path)
        uids.add(image.SOPInstanceUID)
        del image.SOPInstanceUID, image.SOPClassUID
        image.save_as(path)
    series = read_series(tmp_path / "in")
    write_dicom(series, np.stack([frame.data for frame in series.frames]), 0, tmp_path / "out")
    (reference,) = pydicom.dcmread(tmp_path / "out" / "00_0000.dcm").SourceImageSequence
    assert reference.ReferencedSOPInstanceUID in uids
    assert reference.ReferencedSOPClassUID == exports.MR
    image = pydicom.dcmread(paths[0])
    del image.file_meta.MediaStorageSOPInstanceUID
    image.save_as(paths[0])
    with pytest.raises(InputError, match=r"0\.dcm: expected SOPInstanceUID, to which"):
        Products(exports=Exports(dicom=True)).check(read_series(tmp_path / "in"), 0)
