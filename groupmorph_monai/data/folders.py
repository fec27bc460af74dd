"""Which files of a folder are the scans of one series."""

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np

from ..errors import InputError
from .names import IMAGE_ENDINGS, natural_order
from .sidecars import sidecar, times_of_files
from .signature import is_dicom

__all__ = ["dicom_paths", "dicom_reader", "folder_files", "images", "list_series"]

logger = logging.getLogger(__name__)
# What tells the scans of one series apart: in a BIDS name, and in any other.
_BIDS_INDEX, _INDEX = re.compile(r"_(run|ses)-[a-zA-Z0-9]+"), re.compile(r"\d+(?![a-zA-Z])")


def dicom_paths(given: Sequence[str | Path]) -> list[Path]:
    """These paths, where each is a DICOM file, or a folder that holds some and no other images right in it; else
    none."""
    paths = [Path(path) for path in given]
    return paths if all(_holds_dicom(path) if path.is_dir() else is_dicom(path) for path in paths) else []


def _holds_dicom(folder: Path) -> bool:
    return not images(folder) and any(is_dicom(path) for path in folder.rglob("*"))


def images(folder: Path) -> list[Path]:
    """The image files right in a folder, DICOM aside."""
    return [p for p in folder.iterdir() if p.is_file() and p.name[0] != "." and p.name.lower().endswith(IMAGE_ENDINGS)]


def dicom_reader(path: Path) -> ModuleType:
    """The reader of DICOM, for which pydicom has to be installed."""
    try:
        from . import dicom
    except ImportError as error:
        raise InputError(
            f"{path}: expected pydicom, which reads DICOM, got {error}; pip install 'groupmorph-monai[dicom]'"
        ) from error
    return dicom


def list_series(given: Sequence[str | Path], description: str | None = None) -> str:
    """Describe every series of a DICOM study in a line; see `list_dicom`."""
    paths = dicom_paths(given)
    if not paths:
        raise InputError(f"{given[0]}: expected a DICOM study, found no DICOM file; check the path")
    return dicom_reader(paths[0]).list_dicom(paths, description)


def folder_files(folder: Path, description: str | None = None) -> list[Path]:
    """The scans of a folder in the order of time, or else of their names (scan2 before scan10).

    Images right in the folder are the scans. Without any, as in a BIDS data set, its sub-folders are searched for
    NIfTI, and files whose names differ in numbers only, or a 4D file, make a series.

    Args:
        description: pattern of the names, or of the series' descriptions in the side-cars, of those that count.
    Raises: InputError where there are no images, or several series.
    """
    files = [path for path in images(folder) if _matches(path, description)] or _nested(folder, description)
    if not files:
        named = f" named {description!r}" if description else ""
        raise InputError(
            f"{folder}: expected image files (DICOM, NIfTI, MHA, NRRD){named}, found none; check the path and its files"
        )
    files = sorted(files, key=natural_order)
    times = times_of_files(files) if len(files) > 1 else None
    return files if times is None else [files[k] for k in np.argsort(times)]


def _matches(path: Path, description: str | None) -> bool:
    texts = (path.name, str(sidecar(path).get("SeriesDescription", ""))) if description else ()
    patterns = (description, f"*{description}*")
    return not description or any(fnmatch(t.lower(), p.lower()) for t in texts for p in patterns)


def _nested(folder: Path, description: str | None) -> list[Path]:
    """The one series among the NIfTI files in sub-folders; empty where there are none."""
    found = [p for p in folder.rglob("*.nii*") if p.name.lower().endswith((".nii", ".nii.gz")) and p.is_file()]
    found = [p for p in found if _matches(p, description) and "derivatives" not in p.relative_to(folder).parts]
    groups = defaultdict(list)
    for path in found:
        index = _BIDS_INDEX if path.name.startswith("sub-") else _INDEX
        groups[path.parent.name, index.sub("", path.name)].append(path)
    series = [group for group in groups.values() if len(group) > 1 or _volumes(group[0]) > 1]
    if len(series) > 1:
        names = "; ".join(sorted(f"{group[0].name} ({len(group)} files)" for group in series)[:6])
        raise InputError(
            f"{folder}: expected one series, got {len(series)}: {names}; choose one with --series-description PATTERN, "
            "or give its files"
        )
    if found and not series:
        raise InputError(
            f"{folder}: expected a 4D NIfTI or several 3D ones of one name, got {len(found)} single files; name the "
            "scans in the order of time"
        )
    return series[0] if series else []


def _volumes(path: Path) -> int:
    try:
        shape = nib.load(path).shape
    except Exception:  # whatever a damaged file raises is explained when it is read
        return 1
    return shape[3] if len(shape) > 3 else 1
