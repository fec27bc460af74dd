"""Find DICOM images in folders, regardless of file names, and group them into stacks."""

import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pydicom

from ..reading.signature import check_regular_file, files_below, is_dicom
from .clocks import in_one_zone
from .headers import planes_of
from .plane import Plane, Raster, Source

__all__ = ["find_stacks"]

logger = logging.getLogger(__name__)
_DICOMDIR = "1.2.840.10008.1.3.10"
_HEADER_NOISE = 5e-4  # of components of directions, and mm of spacings


def find_stacks(paths: Sequence[Path]) -> dict[Source, list[Plane]]:
    """Read the headers of all DICOM files in these folders and their sub-folders, or of these files.

    A DICOMDIR stands for its folder, as it may be outdated. Duplicates of images are dropped.

    Returns:
        The slices of each stack.
    """
    found: list[Plane] = []
    names, copies, ignored = set(), 0, 0
    for path in _files(paths):
        planes = _read(path)
        ignored += not planes
        for plane in planes:
            # Some programs give one UID to several images, which differ in position or time.
            file = plane.file
            name = file.uid, file.frame, file.corner, *plane.place.position, *plane.keys.items()
            copies += name in names
            if name not in names:
                found.append(plane)
            names.add(name)
    if copies:
        logger.info("%d images are stored twice; one copy of each is read.", copies)
    if ignored:
        logger.info("Ignored %d DICOM files without a grey-value image and a position in the patient.", ignored)
    geometries: dict[tuple[float, ...], Raster] = {}
    stacks = defaultdict(list)
    for plane in in_one_zone(found):
        stacks[_of_known_geometry(plane.source, geometries)].append(plane)
    return dict(stacks)


def _of_known_geometry(source: Source, known: dict[tuple[float, ...], Raster]) -> Source:
    """Take the spacing and orientation of an earlier slice from which they differ only by the noise of a header.

    Args:
        known: rasters of the earlier slices by spacing and orientation, to which those of the source are added.
    """
    own = source.raster
    numbers = (*own.spacing_mm, *own.orientation)
    if numbers not in known:
        near = (r for n, r in known.items() if all(abs(a - b) <= _HEADER_NOISE for a, b in zip(n, numbers)))
        known[numbers] = next(near, own)
    return replace(source, raster=replace(known[numbers], shape=own.shape))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        folder = path.parent if path.name.upper() == "DICOMDIR" else path
        candidates = sorted(files_below(folder)) if folder.is_dir() else [folder]
        for file in candidates:
            if _is_unreadable(file):
                check_regular_file(file)  # explains why
            if is_dicom(file):
                yield file


def _is_unreadable(file: Path) -> bool:
    """Check for a broken link or a file without read permission, which may be a slice."""
    return not os.access(file, os.R_OK) and (file.is_symlink() or not file.name.startswith("."))


def _read(path: Path) -> list[Plane]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about invalid values of unused attributes
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
                return []
            return list(planes_of(dataset, str(path)))
    except Exception as error:  # damaged files make pydicom raise many types
        logger.warning("%s: ignored, as its header cannot be read (%s)", path, error)
        return []
