"""Find DICOM images in folders, regardless of file names, and group their slices by source."""

import gzip
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

import pydicom
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import UID

from ..reading.signature import check_regular_file, files_below, is_dicom
from .clocks import in_one_zone
from .headers import missing_slices, planes_of
from .order import ORDER
from .plane import Plane, Raster, Source

logger = logging.getLogger(__name__)
_DICOMDIR = "1.2.840.10008.1.3.10"
_SERIES = 0x0020000E  # tag of the series instance UID
_FEWEST_RENAMED = 3  # minimum number of images that each have a UID of their own where they should share one
_HEADER_NOISE = 5e-4  # maximum rounding error in headers, of direction components and of spacings in mm
Numbers = TypeVar("Numbers", bound=tuple[float, ...])


class Unread(NamedTuple):
    """A DICOM file without a readable slice, which may be damaged.

    Args:
        path: the file.
        series, uid: its series and its SOP instance UID; empty if these cannot be read.
        reason: what is wrong with it.
        image: whether it may be an image, by its class.
        header: its header, as far as it can be read.
    """

    path: Path
    series: str
    uid: str
    reason: str
    image: bool
    header: Dataset


def find_planes(paths: Sequence[Path]) -> tuple[dict[Source, list[Plane]], list[Unread]]:
    """Read the headers of all DICOM files in these folders and their sub-folders, or of these files.

    A DICOMDIR stands for its folder, as it may be outdated. Copies of an image are kept with it.

    Returns:
        The slices by their source, and the files without slices of which there is no other copy.
    """
    planes: list[Plane] = []
    unread: list[Unread] = []
    for path in {os.path.realpath(file): file for file in _files(paths)}.values():  # each once, if folders are nested
        content = _read(path)
        if isinstance(content, Unread):
            unread.append(content)
        else:
            planes += content
    unread += _compressed(paths)
    unique = _without_copies(planes)
    if len(unique) < len(planes):
        logger.info("%d images are stored twice; one copy of each is read.", len(planes) - len(unique))
    if unread:
        logger.info("Ignored %d DICOM files without a grey-value image and a position in the patient.", len(unread))
    spacings: dict[tuple[float, float], tuple[float, float]] = {}
    orientations: dict[tuple[float, ...], tuple[float, ...]] = {}
    by_source = defaultdict(list)
    for plane in in_one_zone(_with_shared_uids(unique)):
        own = plane.source.raster
        spacing_mm, orientation = _unified(own.spacing_mm, spacings), _unified(own.orientation, orientations)
        source = replace(plane.source, raster=Raster(own.shape, spacing_mm, orientation))
        by_source[source].append(replace(plane, source=source))
    instances = {plane.file.uid for plane in planes}
    return dict(by_source), [file for file in unread if file.uid not in instances]


def unread_of(planes: Sequence[Plane], unread: Iterable[Unread]) -> list[Unread]:
    """Find the files that may be images of the series of these slices, by their series or else their folder."""
    series, folders = {plane.source.series for plane in planes}, {Path(plane.file.path).parent for plane in planes}
    return [
        file
        for file in unread
        if file.image and (file.series in series or (not file.series and file.path.parent in folders))
    ]


def _without_copies(planes: Sequence[Plane]) -> list[Plane]:
    """Join the copies of each image. Some programs give one UID to several images, which differ in position or time."""
    copies: defaultdict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        file = plane.file
        copies[file.uid, file.frame, file.corner, *plane.place.position, *map(plane.keys.get, ORDER)].append(plane)
    return [replace(first, copies=tuple(copy.file for copy in others)) for first, *others in copies.values()]


def _with_shared_uids(planes: Sequence[Plane]) -> list[Plane]:
    """Restore the UIDs of studies, frames of reference and series that an anonymiser or archive replaced by a new one
    for every image: one of them stands for all.

    Images of one series number and description are of one series.
    """
    study, space = (
        _shared([getattr(plane.source.examination, name) for plane in planes], planes) for name in ("study", "space")
    )
    members: defaultdict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        members[plane.source.examination.patient, plane.source.number, plane.source.description].append(plane)
    restored = []
    for group in members.values():
        series = _shared([plane.source.series for plane in group], group)
        for plane in group:
            examination = plane.source.examination
            examination = replace(examination, study=study or examination.study, space=space or examination.space)
            source = replace(plane.source, examination=examination, series=series or plane.source.series)
            restored.append(replace(plane, source=source))
    return restored


def _shared(uids: Sequence[str], planes: Sequence[Plane]) -> str:
    """Return the first UID if each image has a UID and file of its own; an empty string otherwise."""
    number = len(planes)
    unique = len(set(uids)) == len({plane.file.path for plane in planes}) == number
    return uids[0] if unique and number >= _FEWEST_RENAMED else ""


def _unified(numbers: Numbers, earlier: dict[Numbers, Numbers]) -> Numbers:
    """Replace the spacing or orientation of a slice by that of an earlier one from which it differs only by rounding.

    Args:
        earlier: those of the earlier slices and what replaces them, to which those of this slice are added.
    """
    if numbers not in earlier:
        near = (r for n, r in earlier.items() if all(abs(a - b) <= _HEADER_NOISE for a, b in zip(n, numbers)))
        earlier[numbers] = next(near, numbers)
    return earlier[numbers]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        folder = path.parent if path.name.upper() == "DICOMDIR" and path.is_file() else path
        candidates = sorted(files_below(folder)) if folder.is_dir() else [folder]
        for file in candidates:
            if _is_unreadable(file):
                check_regular_file(file)  # explains why
            if is_dicom(file):
                yield file


def _is_unreadable(file: Path) -> bool:
    """Check for a broken link or a file without read permission, which may be a slice."""
    return not os.access(file, os.R_OK) and (file.is_symlink() or not file.name.startswith("."))


def _read(path: Path) -> list[Plane] | Unread:
    dataset = Dataset()
    try:
        with warnings.catch_warnings(action="ignore"):  # about invalid values of unused attributes
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if dataset.file_meta.get("MediaStorageSOPClassUID") == _DICOMDIR:
                return []
            planes = list(planes_of(dataset, str(path)))
            reason = "" if planes else missing_slices(dataset)
    except Exception as error:  # damaged files make pydicom raise many types
        logger.warning("%s: ignored, as its header cannot be read (%s)", path, error)
        planes, reason = [], f"a header that cannot be read ({error})"
    return planes or _unread(path, dataset or _readable_part(path), reason)


def _unread(path: Path, header: Dataset, reason: str) -> Unread:
    series = uid = ""
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # a damaged header
        series, uid = (str(header.get(name, "")) for name in ("SeriesInstanceUID", "SOPInstanceUID"))
    return Unread(path, series, uid, reason, not _is_no_image(header), header)


def _compressed(paths: Iterable[Path]) -> Iterator[Unread]:
    """Find DICOM files that were compressed by gzip, which are not read, in these folders."""
    files = (file for path in paths if path.is_dir() for file in files_below(path))
    named = (file for file in files if file.suffix.lower() == ".gz" and not file.name.startswith("."))
    for file in filter(Path.is_file, named):  # no pipe
        with suppress(Exception), warnings.catch_warnings(action="ignore"), gzip.open(file) as content:
            header = pydicom.dcmread(cast(BinaryIO, content), stop_before_pixels=True)
            yield _unread(file, header, "compression by gzip; unpack it")


def _is_no_image(dataset: Dataset) -> bool:
    """Check for objects of standard classes other than images, such as the raw data that Philips adds to its series."""
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # a damaged header
        sop_class = UID(str(dataset.get("SOPClassUID", "")))
        return sop_class.type == "SOP Class" and not sop_class.name.endswith("Image Storage")
    return False


def _readable_part(path: Path) -> Dataset:
    """Read the header up to the UIDs of its study and series, which precede most of it, as far as possible."""
    with suppress(Exception), warnings.catch_warnings(action="ignore"), open(path, "rb") as file:
        return read_partial(file, lambda tag, *_: tag > _SERIES, force=True)
    return Dataset()
