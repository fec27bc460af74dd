"""References from derived objects to their source images, and writing of new objects."""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from .derived import STORAGE, code_item, item
from .plane import Plane


def sop_reference(plane: Plane) -> Dataset:
    """Refer to the image that contains a slice."""
    return item(ReferencedSOPClassUID=_kind(plane.file.path)[0], ReferencedSOPInstanceUID=plane.file.uid)


def source_reference(plane: Plane) -> Dataset:
    """Refer to a slice as the source of a derived image."""
    source = sop_reference(plane)
    if _kind(plane.file.path)[1]:
        source.ReferencedFrameNumber = plane.file.frame + 1
    source.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.SourceImageForImageProcessingOperation)]
    return source


def referenced_series(planes: Iterable[Plane]) -> list[Dataset]:
    """Refer to the images that contain slices, grouped by series."""
    series: defaultdict[str, dict[str, Plane]] = defaultdict(dict)
    for plane in planes:
        series[plane.source.series][plane.file.uid] = plane
    return [
        item(SeriesInstanceUID=uid, ReferencedInstanceSequence=[sop_reference(plane) for plane in members.values()])
        for uid, members in series.items()
    ]


@lru_cache(maxsize=4096)
def _kind(path: str) -> tuple[str, bool]:
    """Return the SOP class of a file, and whether it is a multi-frame file."""
    header = pydicom.dcmread(path, specific_tags=["SOPClassUID", "NumberOfFrames", "Modality"], force=True)
    stated = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    return stated or STORAGE[header.Modality], "NumberOfFrames" in header


def save(image: Dataset, path: Path) -> None:
    """Write a data set as a DICOM file with pydicom 2 or 3."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), image, file_meta=meta, preamble=b"\0" * 128)
    if pydicom.__version__ < "3":
        file.is_little_endian, file.is_implicit_VR = True, False
        pydicom.dcmwrite(path, file, write_like_original=False)
    else:
        pydicom.dcmwrite(path, file, enforce_file_format=True)
