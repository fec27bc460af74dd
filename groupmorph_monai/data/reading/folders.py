"""Find the scans of one series in a folder."""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from ...errors import InputError
from .names import IMAGE_ENDINGS, matches, natural_order
from .nifti_voxels import open_nifti
from .sidecars import sidecar, times_of_files
from .signature import check_regular_file, files_below, is_dicom

logger = logging.getLogger(__name__)
_RESULT = ("warped.nii.gz", "report.json")  # written by every registration
# Part of a name that differs between the scans of one series: in BIDS names, and in other names.
_BIDS_INDEX, _INDEX = re.compile(r"_(run|ses)-[a-zA-Z0-9]+"), re.compile(r"\d+(?![a-zA-Z])")


def dicom_paths(files: Sequence[str | Path]) -> list[Path]:
    """Return the paths if all are DICOM files or folders of DICOM files without other images; else an empty list."""
    paths = [Path(path) for path in files]
    return paths if all(_contains_dicom(path) if path.is_dir() else is_dicom(path) for path in paths) else []


def _contains_dicom(folder: Path) -> bool:
    return not images(folder) and any(map(is_dicom, files_below(folder)))


def images(folder: Path) -> list[Path]:
    """List the image files at the top level of a folder, except DICOM.

    Raises:
        InputError: If a link leads to a missing file, as git-annex leaves, since the series would lack a scan.
    """
    named = [p for p in folder.iterdir() if p.name[0] != "." and (p.name.lower().endswith(IMAGE_ENDINGS) or _pair(p))]
    files = [p for p in named if not p.is_dir()]
    for path in files:
        check_regular_file(path)
    return files


def _pair(header: Path) -> bool:
    """Check whether this is the header of a NIfTI pair, .hdr with .img."""
    return header.suffix.lower() == ".hdr" and any(header.with_suffix(end).exists() for end in (".img", ".IMG"))


def dicom_reader(path: Path) -> ModuleType:
    """Import the DICOM reader, which needs pydicom.

    Raises:
        InputError: If pydicom is not installed.
    """
    try:
        from .. import dicom
    except ImportError as error:
        raise InputError(
            f"{path}: expected pydicom to be installed for DICOM, got {error}; pip install 'groupmorph-monai[dicom]'"
        ) from error
    return dicom


def list_series(files: Sequence[str | Path], description: str | None = None) -> tuple[str, InputError | None]:
    """Describe the series of a DICOM study, one per line, and why none can be aligned; see `list_dicom`.

    Raises:
        InputError: If there is no DICOM file.
    """
    paths = dicom_paths(files)
    if not paths:
        for path in files:
            if not Path(path).is_dir():
                check_regular_file(path)
        _check_hidden_dicom([Path(path) for path in files])
        raise InputError(
            f"{files[0]}: expected a DICOM study, whose series --list shows, got no DICOM file; omit --list for "
            "other files"
        )
    listing: tuple[str, InputError | None] = dicom_reader(paths[0]).list_dicom(paths, description)
    return listing


def _check_hidden_dicom(paths: Sequence[Path]) -> None:
    for folder in paths:
        files = sorted(images(folder), key=natural_order) if folder.is_dir() else []
        if files and any(map(is_dicom, files_below(folder))):
            raise InputError(
                f"{folder}: expected a DICOM study, whose series --list shows, got NIfTI or other image files at its "
                f"top level ({files[0].name}), which are read instead; specify the folder of the DICOM files alone"
            )


def folder_files(folder: Path, description: str | None = None) -> list[Path]:
    """List the scans of a folder in temporal order, or else in natural order of their names (scan2 before scan10).

    The scans are the images at the top level of the folder. If there are none, as in a BIDS data set, its sub-folders
    are searched for NIfTI: a 4D file, or files whose names differ only in numbers, make a series.

    Args:
        description: pattern that selects scans by their names, or by the series descriptions in their sidecars.

    Raises:
        InputError: If there are no images, or several series, or the result of a registration.
    """
    if all((folder / name).is_file() for name in _RESULT):
        raise InputError(
            f"{folder}: expected the scans of a series, got the result of a registration; use the original scans, or "
            f"the file {folder / _RESULT[0]}"
        )
    files = [path for path in images(folder) if _matches(path, description)] or _nested(folder, description)
    if not files:
        named = f" named {description!r}" if description else ""
        raise InputError(
            f"{folder}: expected image files (DICOM, NIfTI, MHA, NRRD){named}, found none; check the path and its files"
        )
    files = sorted(files, key=natural_order)
    times = times_of_files([sidecar(path) for path in files]) if len(files) > 1 else None
    return files if times is None else [files[k] for k in np.argsort(times)]


def _matches(path: Path, description: str | None) -> bool:
    if not description:
        return True
    texts = (path.name, str(sidecar(path).get("SeriesDescription", "")))
    return any(matches(text, description) for text in texts)


def _nested(folder: Path, description: str | None) -> list[Path]:
    """Find the one series among the NIfTI files in sub-folders; empty if there are no files."""
    files = [p for p in files_below(folder) if p.name.lower().endswith((".nii", ".nii.gz"))]
    files = [p for p in files if _matches(p, description) and "derivatives" not in p.relative_to(folder).parts]
    for path in files:
        check_regular_file(path)
    groups = defaultdict(list)
    for path in files:
        index = _BIDS_INDEX if path.name.startswith("sub-") else _INDEX
        groups[path.parent.name, index.sub("", path.name)].append(path)
    series = [group for group in groups.values() if len(group) > 1 or _volumes(group[0]) > 1]
    if len(series) > 1:
        firsts = sorted((group[0].relative_to(folder), len(group)) for group in series)
        names = "; ".join(f"{first} ({number} files)" for first, number in firsts[:6])
        raise InputError(
            f"{folder}: expected one series, got {len(series)}: {names}; choose one with --series-description PATTERN, "
            "or list its files"
        )
    if files and not series:
        raise InputError(
            f"{folder}: expected a 4D NIfTI or several 3D ones with one name, got {len(files)} single files; list the "
            "scans in temporal order"
        )
    return series[0] if series else []


def _volumes(path: Path) -> int:
    try:
        shape = open_nifti(path).shape
    except Exception:  # errors of damaged files are reported when they are read
        return 1
    return shape[3] if len(shape) > 3 else 1
