"""Find the DICOM images in folders, whatever their files are called, and sort them into stacks."""

import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pydicom

from ..signature import is_dicom
from .headers import Plane, Source, planes_of

__all__ = ["find_stacks"]

logger = logging.getLogger(__name__)
_DICOMDIR = "1.2.840.10008.1.3.10"


def find_stacks(paths: Sequence[Path]) -> dict[Source, list[Plane]]:
    """Read the headers of all DICOM files in these folders and their sub-folders, or of these files.

    A DICOMDIR stands for its folder, as it may be older than the files beside it. A second copy of an image is dropped.

    Returns: the slices of each stack.
    """
    stacks, seen, copies, others = defaultdict(list), set(), 0, 0
    for path in _files(paths):
        planes = _read(path)
        others += not planes
        for plane in planes:
            name = plane.uid, plane.frame, plane.corner
            copies += name in seen
            if name not in seen:
                stacks[plane.source].append(plane)
            seen.add(name)
    if copies:
        logger.info("%d images are stored twice; one copy of each is read.", copies)
    if others:
        logger.info("%d DICOM files hold no grey-value image with a place in the patient; they are left aside.", others)
    return dict(stacks)


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        folder = path.parent if path.name.upper() == "DICOMDIR" else path
        candidates = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
        yield from (file for file in candidates if is_dicom(file))


def _read(path: Path) -> list[Plane]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of values that break DICOM's rules and that nobody asks for
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
                return []
            return list(planes_of(dataset, str(path)))
    except Exception as error:  # pydicom raises whatever a damaged file makes its parts raise
        logger.warning("%s: left aside, as its header cannot be read (%s)", path, error)
        return []
