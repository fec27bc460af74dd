"""Checks of the series of a study before any of them is processed."""

import argparse
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...data.reading.folders import dicom_paths
from ...data.reading.readers import header_grids, states_times
from ...errors import InputError
from ...space.alignment import check_reference
from ..places import check_place
from ..run import split_overlays
from .folders import PAGE, PROGRESS, TABLE, CohortFolder

_LONGEST_NAME = 150  # characters
_MOST_BYTES = 200  # file systems allow 255, including the endings of locks and temporary files
_NAME = re.compile(rf"[^\W_][\w.+@ -]{{0,{_LONGEST_NAME - 1}}}(?<![. ])")  # valid folder names on every file system


def folder_name(name: str) -> str:
    """Make a folder name from the name of a series, which may be a path."""
    end = re.sub(r"[^\w.+@ -]", "_", name)[-_LONGEST_NAME:].encode()[-_MOST_BYTES:].decode(errors="ignore")
    return end.lstrip("_.+@ -").rstrip(". ")


def check_folder_name(name: str) -> None:
    """Refuse a name that some file systems do not allow for a folder.

    Raises:
        InputError: For such a name.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"name: expected a folder name of at most {_LONGEST_NAME} letters, digits, spaces and . _ - + @, got "
            f"{name!r}"
        )
    if (size := len(name.encode())) > _MOST_BYTES:
        raise InputError(
            f"name: expected a folder name of at most {_MOST_BYTES} bytes, got {name!r} with {size}; shorten it"
        )


def check_exist(column: str, files: Sequence[str]) -> None:
    """Refuse a path that does not exist.

    Args:
        column: name of the column or option that lists the files.
        files: paths to check.

    Raises:
        InputError: If a path does not exist.
    """
    for name in files:
        if not os.path.exists(name):
            raise InputError(f"{column}: expected a file or a folder, got {name}, which does not exist; check the path")


def check_apart(files: Sequence[str], output: str | Path) -> None:
    """Refuse scans inside the output folder and vice versa, as a later run could read results as scans.

    Raises:
        InputError: If a scan or a folder of scans is in the output folder, or the output folder in one of scans.
    """
    check_place(str(output), files)
    check_not_overwritten("scans", files, output)
    root = Path(output).resolve()
    for name in files:
        path = Path(name)
        above = {path.resolve().parent, path.parent.resolve()} if path.is_dir() else set()
        if root in above or root.is_relative_to(path.resolve()):
            raise InputError(f"scans: expected files outside --output {output}, got {name}; choose another folder")


def check_not_overwritten(column: str, files: Iterable[str | Path], output: str | Path) -> None:
    """Refuse inputs that the study could overwrite: its summary, its log, and all in its folders, also through links.

    Args:
        column: name of the column or option that lists the files.
        files: inputs, which may not exist.
        output: folder of the study.

    Raises:
        InputError: If there is such a file.
    """
    folders = [folder.resolve() for folder in CohortFolder(Path(output)).folders]
    written = [os.stat(path) for name in (TABLE, PAGE, PROGRESS) if os.path.exists(path := Path(output, name))]
    for path in map(Path, files):
        places = (path.resolve(), path.parent.resolve() / path.name)
        inside = any(place.is_relative_to(folder) for place in places for folder in folders)
        if inside or (path.exists() and any(os.path.samestat(path.stat(), status) for status in written)):
            raise InputError(
                f"{column}: expected a file that the study does not write, outside series, failed and .work in "
                f"--output, got {path}; move it, or choose another --output"
            )


def check_options_not_overwritten(args: argparse.Namespace, output: str | Path) -> None:
    """Refuse weights and overlays that the study could overwrite.

    Raises:
        InputError: If there are such files.
    """
    check_not_overwritten("--weights", [args.weights] if args.weights else [], output)
    check_not_overwritten("--overlay", split_overlays(args.overlay)[1], output)


def check_scans(files: Sequence[str], description: str | None = None, reference: int | None = None) -> int:
    """Check the number of scans as far as their headers reveal it; broken files are reported during processing.

    Args:
        files: the scans of one series, or a folder of scans.
        description: pattern that selects the series of a folder.
        reference: number of a scan that must be in the series; None if there is none.

    Returns:
        The number of scans; 0 if it is unknown.

    Raises:
        InputError: If there are fewer than two scans, or no scan has the index ``reference``.
    """
    try:
        count = len(header_grids(files, description))
    except InputError as error:
        raise InputError(f"scans: {error}") from None
    if count == 1:
        raise InputError(f"scans: expected at least two scans, got one, {files[0]}; add the others")
    if count:
        check_reference(reference, count)
    return count


def check_outputs(files: Sequence[str], description: str | None, dicom: bool, kinetics: bool) -> None:
    """Refuse outputs that need more than the files of a series contain, as far as their headers reveal it.

    Args:
        files: the scans of one series, or a folder of scans.
        description: pattern that selects the series of a folder.
        dicom: whether the aligned series will be written as DICOM, which needs a series of DICOM.
        kinetics: whether the kinetics of the series will be fitted, which needs acquisition times.

    Raises:
        InputError: For a series without them.
    """
    if dicom and not dicom_paths(files):
        raise InputError(f"--dicom: expected series of DICOM, got {files[0]}; omit the option")
    if kinetics and not states_times(files, description):
        raise InputError(
            f"--kinetics: expected series with acquisition times, got none with {files[0]}; use DICOM, a 4D NIfTI with "
            "a frame time, or sidecars of dcm2niix with AcquisitionTime"
        )
