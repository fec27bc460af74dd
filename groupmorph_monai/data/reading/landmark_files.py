"""Find the landmark files of a series in its folder."""

import logging
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ...errors import InputError
from .dirlab import is_dirlab
from .folders import folder_files, images
from .markups import is_markups
from .names import image_stem, natural_order
from .points import is_points

logger = logging.getLogger(__name__)
_PREFIX = "landmarks_"
_LIKELY_MISSPELT = 0.76  # similarity of the first word of a name to "landmarks", 0 to 1
_Number = tuple[int, ...]  # the numbers of a file's name that differ between the files


def landmark_files(folder: Path, description: str | None) -> list[str]:
    """List the landmark files in ``folder`` in the order of the scans.

    They are called ``landmarks_NAME`` after the scans, or are numbered as the scans are, from 0 or from 1. Files
    without numbers are taken in natural order. A DIR-Lab case is listed itself, as it includes its landmarks.

    Raises:
        InputError: If the names do not tell which file belongs to which scan.
    """
    if is_dirlab(folder):
        return [str(folder)]
    _warn_of_other_names(folder)
    files = sorted(sorted(folder.glob(f"{_PREFIX}*")), key=natural_order)
    scans = [image_stem(scan.name) for scan in (folder_files(folder, description) if files and images(folder) else [])]
    names = [file.stem.removesuffix(".mrk").removeprefix(_PREFIX) for file in files]
    for own, of_scans in ((names, scans), (_digits(names), _digits(scans))):  # the digits of dates
        if len(set(own)) == len(own) and sorted(own) == sorted(of_scans):
            return [str(files[own.index(scan)]) for scan in of_scans]
    if common := [scan for scan in scans if scan in names]:
        raise InputError(
            f"{folder}: expected landmarks_NAME for every scan, as for {common[0]}, got "
            f"{', '.join(file.name for file in files)} for the scans {', '.join(scans)}; correct the names"
        )
    elif len(scans) < 2 or len(scans) == len(files):  # other numbers of files are refused when they are read
        files = _by_number(files, names, scans)
    return [str(file) for file in files]


def _warn_of_other_names(folder: Path) -> None:
    """Warn of point files whose names are nearly those of landmarks, and which are not read."""
    unused = [
        path
        for path in sorted(folder.iterdir(), key=natural_order)
        if is_points(path) and not path.name.startswith((".", _PREFIX)) and _resembles_landmarks(path.name.lower())
    ]
    if unused:
        first, ending = unused[0], ".mrk.json" if is_markups(unused[0]) else unused[0].suffix.lower()
        number = (re.findall(r"[0-9]+", first.name) or ["00"])[-1]
        logger.warning(
            "%s%s: ignored, as landmarks are expected in %s; rename it",
            first,
            f" and {len(unused) - 1} more" if unused[1:] else "",
            f"{_PREFIX}{number}{ending}",
        )


def _resembles_landmarks(name: str) -> bool:
    word = re.match(r"[a-z]*", name)
    return "landmark" in name or bool(word and get_close_matches(word[0], ["landmarks"], 1, _LIKELY_MISSPELT))


def _by_number(files: Sequence[Path], names: Sequence[str], scans: Sequence[str]) -> list[Path]:
    """Sort landmark files by the numbers in their names, if there are any.

    Args:
        files: in natural order.
        names: the part of their names that tells the scan.
        scans: names of the scans; empty, or that of a 4D file, if the files do not tell them.
    """
    numbers = _numbers(names)
    if numbers is None:
        return list(files)
    for number, file in zip(numbers, files):
        if (first := files[numbers.index(number)]) != file:
            raise InputError(
                f"{file}: expected one landmark file per scan, each with its own number, got the number of "
                f"{first.name}; rename or remove one"
            )
    scan_numbers = (_numbers(scans) if len(scans) > 1 else None) or []
    counted = _counted(len(files), 0 if (0,) in numbers else 1)
    orders = [scan_numbers] if _contradict(scan_numbers, counted) else [scan_numbers, counted]
    if len(scans) < 2:  # phases of a cycle in percent
        orders.append(_counted(len(files), 0, step=max(1, *min(filter(any, numbers), default=(1,)))))
    for order in orders:
        if sorted(order) == sorted(numbers):
            return [files[numbers.index(number)] for number in order]
    wrong = next((file for file, number, expected in zip(files, numbers, counted) if number != expected), files[0])
    raise InputError(
        f"{wrong}: expected landmark files numbered as the scans are, or from 0 or 1 without a gap, got "
        f"{', '.join(file.name for file in files)}; rename them, or add the one that is missing"
    )


def _counted(count: int, start: int, step: int = 1) -> list[_Number]:
    return [(start + k * step,) for k in range(count)]


def _contradict(scan_numbers: Sequence[_Number], counted: Sequence[_Number]) -> bool:
    """Check whether a scan with gaps in its numbering has a number that counting gives to another scan."""
    if sorted(scan_numbers) in (_counted(len(counted), 0), _counted(len(counted), 1)):
        return False
    return any(number in scan_numbers and scan_numbers[k] != number for k, number in enumerate(counted))


def _digits(names: Sequence[str]) -> list[str]:
    return [re.sub("[^0-9]", "", name) for name in names]


def _numbers(names: Sequence[str]) -> list[_Number] | None:
    """Return the numbers that differ between names; None if the names differ in their words alone."""
    rows = [tuple(map(int, re.findall(r"[0-9]+", name))) for name in names]
    if len(set(map(len, rows))) > 1:
        return rows
    differing = [column for column in zip(*rows) if len(set(column)) > 1]
    words = {re.sub(r"[0-9]+", "", name) for name in names}
    return list(zip(*differing)) if differing else None if len(words) == len(names) else rows
