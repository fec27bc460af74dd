"""The result that an output folder already contains: list its files, and check that a run may replace them."""

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ...errors import InputError
from ..contrast.kinetics import ToftsFit
from ..reading.names import is_bids_name
from ..reading.signature import read_text
from .output_folder import check_contains_no_input
from .products import ALWAYS_WRITTEN, DICOM_FOLDER, REPORTS, Exports, Products
from .replacement import REPORT, check_names, check_ownership, journals

logger = logging.getLogger(__name__)
_OF_DESKTOPS = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")  # files that a look at a folder makes
_EXPORTS = Exports(itk_transforms=True, sequence=True, dicom=True)
_ALL = Products(exports=_EXPORTS, kinetics=ToftsFit(), jacobian=True).names(std=True)


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name).replace(r"\{\}", r"\d+") for name in names))


_OUTPUT, _NUMBERED = _pattern(_ALL), _pattern(name for name in _ALL if "{}" in name)


def listed_result(output_dir: Path) -> set[str]:
    """List the outputs of an earlier registration that are in ``output_dir``; empty if there is no such folder."""
    return {name for name in names_of_result(output_dir) if os.path.lexists(output_dir / name)}


def names_of_result(output_dir: Path) -> set[str]:
    """List the outputs of an earlier registration according to its report, which may still be in a journal."""
    try:
        listed = {name for folder in (output_dir, *journals(output_dir)) for name in _listed(folder) or ()}
    except OSError:
        return set()
    return {name for name in listed if _is_output(name)}


def _check_dicom_folder(folder: Path) -> None:
    """Check that the DICOM folder of an earlier result, which is replaced, has no other files."""
    for path in sorted(path for path in folder.iterdir() if not _OF_DESKTOPS.fullmatch(path.name)):
        stem, ending = path.stem, path.suffix
        if ending != ".dcm" or not (re.fullmatch(r"[0-9]{2,}_[0-9]{4,}|motion", stem) or _is_output(f"{stem}.nii.gz")):
            raise InputError(
                f"{path}: expected only files of the earlier result, whose folder is replaced, got another one; move "
                "it, or choose another output folder"
            )


def _is_output(name: str) -> bool:
    return _OUTPUT.fullmatch(name) is not None or is_bids_name(name)


def _listed(folder: Path) -> list[str] | None:
    """Read the files that the report of a registration lists; None if there is no such report."""
    try:
        return [str(name) for name in json.loads(read_text(folder / REPORT))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_result_folder(
    output_dir: Path, inputs: Iterable[str | Path], written: Iterable[str] = ALWAYS_WRITTEN
) -> None:
    """Check that the result of a registration can be written to ``output_dir``.

    Args:
        output_dir: the folder, which may not exist yet.
        inputs: files and folders that the run reads.
        written: names of its outputs, as far as they are known.

    Raises:
        InputError: If an input could be overwritten or removed, if a folder, a file that the run writes, or one in the
            earlier result's DICOM folder, is there but not part of an earlier result, or if that result is protected.
    """
    results = listed_result(output_dir)
    check_contains_no_input(output_dir, inputs, results)
    if output_dir.is_dir():
        check_ownership(output_dir, results)
        if DICOM_FOLDER in results and (output_dir / DICOM_FOLDER).is_dir():
            _check_dicom_folder(output_dir / DICOM_FOLDER)
        names = {path.name for path in output_dir.iterdir() if _is_output(path.name) or path.name in REPORTS} - results
        check_names(output_dir, names)
        foreign = sorted(names.intersection(written))
        if REPORT in names and _listed(output_dir) is None:
            foreign.append(REPORT)
        if foreign:
            raise InputError(
                f"{output_dir / foreign[0]}: expected no file that a registration would replace, got one that no "
                f"{REPORT} of a registration lists; move it, or choose another output folder"
            )


def earlier_result(output_dir: Path) -> set[str]:
    """List the files of the earlier result, to be replaced. Other files that look like outputs are kept with a warning,
    as only the user may decide to delete them."""
    results = listed_result(output_dir)
    unlisted = sorted(p.name for p in output_dir.iterdir() if _NUMBERED.fullmatch(p.name) and p.name not in results)
    if unlisted:
        logger.warning("%s also has %d files of an earlier run, such as %s", output_dir, len(unlisted), unlisted[0])
    return results
