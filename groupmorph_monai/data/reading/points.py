"""Read and write landmarks in the formats of ITK, Elastix, 3D Slicer and spreadsheets."""

import csv
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...errors import InputError
from ...space.grid import Grid
from ..series import LPS_TO_RAS
from ..writing.output_folder import atomic_folder
from .dirlab import is_dirlab, read_dirlab_landmarks
from .markups import is_markups, read_markups
from .signature import read_text

logger = logging.getLogger(__name__)
_ENDINGS = (".csv", ".txt", ".fcsv", ".pts")
_Lines = list[tuple[int, str]]  # line number in the file, from 1, and text
_Rows = list[tuple[int, list[str]]]  # line number, and the cells of the coordinates
_NUMBER = re.compile(r"[-+.0-9a-zA-Z]*")  # float() also accepts 1_0, often a typo, and digits of other scripts
_NUMBER_START = re.compile(r"[-+.]*\d|nan|[-+]?inf", re.IGNORECASE)
_COLUMNS = (("x", "y", "z"), ("r", "a", "s"), ("l", "p", "s"))
_NAMES = ("label", "name", "id")  # columns of names
_FCSV_LABEL = 11  # index of the label column in a .fcsv


def is_points(path: str | Path) -> bool:
    """Check whether the ending of a name is that of a point file."""
    return is_markups(path) or str(path).lower().endswith(_ENDINGS)


class _PointTable(NamedTuple):
    """Points of a file as text.

    Args:
        rows: line number, and the cells of the coordinates, of each point.
        lps: whether the coordinates are LPS mm; otherwise RAS mm.
        names: names of the points; empty if the file has none.
    """

    rows: _Rows
    lps: bool
    names: list[str]


def read_points(path: str | Path) -> np.ndarray:
    """Read landmarks, ``(P, 3)`` in RAS mm.

    - ``.csv``: columns x, y, z or r, a, s in RAS mm, columns l, p, s in LPS mm, or three columns in RAS mm without
      header; separated by commas, semicolons or tabs. Cells may be in double quotes.
    - ``.mrk.json`` and ``.fcsv`` of 3D Slicer: RAS or LPS mm, as their headers state.
    - Other files are read as by ITK, Elastix and Transformix, in LPS mm: ``point``, a count, and coordinates;
      coordinates alone; or the output points of ``outputpoints.txt``.

    Args:
        path: the file, whose ending determines the format.

    Raises:
        InputError: If the file has no points in one of these formats.
    """
    return read_named_points(path)[0]


def read_named_points(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Read points as `read_points` does, and their names, from a column label, name or id; an empty list without."""
    if is_markups(path):
        return read_markups(path)
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected points as text in UTF-8, got other bytes; save them in UTF-8") from None
    except (OSError, ValueError) as error:  # also of names with a null character
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: expected a file of points, got none ({reason}); check the path") from error
    kind = Path(path).suffix.lower()
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    table = {".csv": _csv, ".fcsv": _fcsv}.get(kind, _itk_points)(lines, str(path))
    if not table.rows:
        raise InputError(f"{path}: expected points, got a file without any; check the path")
    points = np.array([_coordinates(cells, number, path) for number, cells in table.rows], dtype=np.float64)
    return points @ LPS_TO_RAS[:3, :3] if table.lps else points, table.names


def read_landmarks(files: Sequence[str | Path], grids: Sequence[Grid]) -> np.ndarray:
    """Read landmarks of a series, ``(K, P, 3)`` in RAS mm, from one file per scan, or from a DIR-Lab case.

    Raises:
        InputError: If files or points are missing, or if most points of a scan are outside of it.
    """
    if len(files) == 1 and is_dirlab(files[0]):
        return read_dirlab_landmarks(files[0])
    if len(files) != len(grids):
        raise InputError(
            f"{files[0]}: expected one landmark file for each of the {len(grids)} scans, got {len(files)}; "
            + (f"add {', '.join(missing)}" if (missing := _missing(files, len(grids))) else "list one file per scan")
        )
    landmarks, names = zip(*map(read_named_points, files))
    for file, points, order, grid in zip(files, landmarks, names, grids):
        if len(points) != len(landmarks[0]):
            raise InputError(
                f"{file}: expected the {len(landmarks[0])} points of {files[0]}, got {len(points)}; use the same points"
            )
        if order != names[0] and len(set(order)) == len(order) and set(order) == set(names[0]):
            first = next(n for n, pair in enumerate(zip(order, names[0])) if pair[0] != pair[1])
            raise InputError(
                f"{file}: expected the points in the order of {files[0]}, with {names[0][first]!r} as number "
                f"{first + 1}, got {order[first]!r}; sort them"
            )
        outside = int((~grid.contains(torch.from_numpy(points))).sum())
        if outside > len(points) / 2:
            raise InputError(
                f"{file}: expected points inside their scan, got {outside} of {len(points)} outside; use mm, and list "
                "the files in the order of the scans"
            )
        if outside:
            logger.warning("%s: %d of %d points lie outside of their scan", file, outside, len(points))
    return np.stack(landmarks)


def _missing(files: Sequence[str | Path], count: int) -> list[str]:
    """Name the files missing from a set numbered from 0 or 1; empty if the other names do not determine them."""
    names = [Path(file).name for file in files]
    parts = [match.groups() for name in names if (match := re.fullmatch(r"(.*?)(\d{1,6})(\D*)", name, re.ASCII))]
    if len(parts) < len(names) or len({(before, after) for before, _, after in parts}) != 1:
        return []
    numbers, (before, digits, after) = {int(number) for _, number, _ in parts}, parts[0]
    first = 0 if 0 in numbers else 1
    expected = range(first, first + count)
    if not numbers < set(expected) or numbers.isdisjoint({0, count}):  # may be numbered from 0 or from 1
        return []
    width = len(digits) if digits.startswith("0") else 1
    return [name for k in expected if (name := f"{before}{k:0{width}d}{after}") not in names]


def _coordinates(cells: Sequence[str], number: int, path: str | Path) -> list[float]:
    wanted = f"{path}: expected three finite numbers per line, got"
    if len(cells) != 3:
        raise InputError(f"{wanted} {len(cells)} in line {number}; correct the file")
    values = []
    for cell in cells:
        try:
            values.append(float(cell) if _NUMBER.fullmatch(cell.strip()) else math.nan)
        except ValueError:
            values.append(math.nan)
        if not math.isfinite(values[-1]):
            raise InputError(f"{wanted} {cell[:40]!r} in line {number}; correct the file")
    return values


def _csv(lines: _Lines, path: str) -> _PointTable:
    lines = [(number, line) for number, line in lines if not line.startswith("#")]
    first = re.sub('"[^"]*"', "", lines[0][1]) if lines else ""
    separator = next((mark for mark in (";", ",", "\t") if mark in first), ",")
    rows = [(number, _cells(line, separator, f"{path}: line {number}")) for number, line in lines]
    header = [cell.lower().removesuffix("_mm") for cell in rows[0][1]] if rows else []
    for names in _COLUMNS:
        if set(names) <= set(header):
            return _columns(rows[1:], header, names, path)
    if rows and not any(_NUMBER_START.match(cell) for cell in rows[0][1]):
        raise InputError(
            f"{path}: expected the columns x, y, z (or r, a, s; or l, p, s), all in mm, got {lines[0][1][:60]!r}; "
            "correct the header"
        )
    return _PointTable(rows, lps=False, names=[])


def _cells(line: str, separator: str, name: str) -> list[str]:
    """Split a line at its separators, except those inside of double quotes."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    except csv.Error as error:
        raise InputError(f"{name}: expected cells separated by {separator!r}, got {error}; correct the file") from None


def _columns(rows: _Rows, header: Sequence[str], names: Sequence[str], path: str) -> _PointTable:
    """Take the columns ``names`` of a table with a header as coordinates."""
    if repeated := [name for name in names if header.count(name) > 1]:
        raise InputError(f"{path}: expected one column {repeated[0]}, got {header.count(repeated[0])}; remove one")
    if long := [(number, row) for number, row in rows if any(row[len(header) :])]:
        number, row = long[0]
        raise InputError(
            f"{path}: expected {len(header)} cells per line, as in the header, got {len(row)} in line {number}; "
            "correct the file, and use decimal points rather than decimal commas"
        )
    label_columns = [header.index(name) for name in _NAMES if name in header]
    labels = ([row[column].strip("'") for _, row in rows if column < len(row)] for column in label_columns)
    columns = [header.index(name) for name in names]
    cells = [(number, [row[c] for c in columns if c < len(row)]) for number, row in rows]
    return _PointTable(cells, names[0] == "l", next(filter(any, labels), []))


def _fcsv(lines: _Lines, path: str) -> _PointTable:
    header = " ".join(line for _, line in lines if line.startswith("#"))
    match = re.search(r"CoordinateSystem\s*=\s*(\w+)", header)
    system = {"0": "RAS", "1": "LPS"}.get(match[1], match[1]) if match else "RAS"
    if system not in ("RAS", "LPS"):
        raise InputError(f"{path}: expected coordinates in RAS or LPS, got {system}; save the points in RAS")
    rows = [(number, line.split(",")) for number, line in lines if not line.startswith("#")]
    labels = [row[_FCSV_LABEL] for _, row in rows if _FCSV_LABEL < len(row)]
    return _PointTable([(number, row[1:4]) for number, row in rows], system == "LPS", labels)


def _itk_points(lines: _Lines, path: str) -> _PointTable:
    output = [(n, match) for n, line in lines if (match := re.search(r"OutputPoint\s*=\s*\[([^\]]*)\]", line))]
    if lines and len(output) == len(lines):
        return _PointTable([(number, match[1].split()) for number, match in output], lps=True, names=[])
    first = lines[0][1].lower() if lines else ""
    if first == "index":
        raise InputError(f"{path}: expected points in mm, got voxel indices ('index'); convert them with their image")
    rows = lines[2:] if first == "point" else lines
    count = lines[1][1] if first == "point" and len(lines) > 1 else str(len(rows))
    if count != str(len(rows)):
        raise InputError(
            f"{path}: expected {len(rows)} in the second line, the number of points, got {count[:40]!r}; correct the "
            "file"
        )
    return _PointTable([(number, re.split(r"[\s,;]+", row)) for number, row in rows], lps=True, names=[])


def write_points(points_mm: np.ndarray, path: str | Path, names: Sequence[str] = ()) -> None:
    """Write ``(P, 3)`` points in RAS mm as CSV with the columns x, y, z and, with names, label, atomically."""
    path = Path(path)
    with atomic_folder(path.parent) as folder, open(folder / path.name, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        rows: list[list[object]] = np.asarray(points_mm, dtype=np.float64).tolist()
        table.writerow(["x", "y", "z", "label"] if names else "xyz")
        table.writerows([[*row, name] for row, name in zip(rows, names, strict=True)] if names else rows)
