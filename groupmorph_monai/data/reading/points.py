"""Read and write landmarks in the formats of ITK, Elastix, 3D Slicer and spreadsheets."""

import csv
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...space.geometry import Grid
from ..writing.output_folder import all_or_nothing
from .dirlab import is_dirlab, read_dirlab_landmarks
from .readers import LPS_TO_RAS

__all__ = ["read_landmarks", "read_points", "write_points"]

logger = logging.getLogger(__name__)
_Rows = list[list[float]]
_COLUMNS = (("x", "y", "z"), ("r", "a", "s"), ("l", "p", "s"))


def read_points(path: str | Path) -> np.ndarray:
    """Read landmarks, ``(P, 3)`` in RAS mm.

    ``.csv``: RAS mm in the columns x, y, z or r, a, s, or in three columns without header; l, p, s is converted.
    ``.fcsv`` of 3D Slicer: according to its header. Other files are read as by ITK, Elastix and Transformix, in LPS mm:
    ``point``, a count, and coordinates; coordinates alone; or the output points of ``outputpoints.txt``.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a file of points, got none ({error}); check the path") from error
    kind = Path(path).suffix.lower()
    try:
        rows, lps = {".csv": _csv, ".fcsv": _fcsv}.get(kind, _itk_points)(lines, str(path))
        points = np.array(rows, dtype=np.float64)
    except (ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        reason = "a line with fewer" if isinstance(error, IndexError) else error
        raise InputError(f"{path}: expected three numbers per line, got {reason}; correct the file") from error
    if not points.size:
        raise InputError(f"{path}: expected points, got a file without any; check the path")
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise InputError(f"{path}: expected points of three finite numbers, got shape {points.shape}; correct the file")
    return points @ LPS_TO_RAS[:3, :3] if lps else points


def read_landmarks(files: Sequence[str | Path], grids: Sequence[Grid]) -> np.ndarray:
    """Read landmarks of a series, ``(K, P, 3)`` in RAS mm, from one file per scan, or from a DIR-Lab case.

    Raises: InputError if files or points are missing, or if most points of a scan are outside of it.
    """
    if len(files) == 1 and is_dirlab(files[0]):
        return read_dirlab_landmarks(files[0])
    if len(files) != len(grids):
        raise InputError(
            f"{files[0]}: expected one landmark file for each of the {len(grids)} scans, got {len(files)}; add the "
            "missing files"
        )
    landmarks = [read_points(file) for file in files]
    for file, points, grid in zip(files, landmarks, grids):
        if len(points) != len(landmarks[0]):
            raise InputError(
                f"{file}: expected the {len(landmarks[0])} points of {files[0]}, got {len(points)}; use the same points"
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


def _csv(lines: list[str], path: str) -> tuple[_Rows, bool]:
    rows = [[cell.strip() for cell in line.split(",")] for line in lines if not line.startswith("#")]
    header = [cell.lower().removesuffix("_mm") for cell in rows[0]] if rows else []
    for names in _COLUMNS:
        if set(names) <= set(header):
            return [[float(row[header.index(n)]) for n in names] for row in rows[1:]], names[0] == "l"
    return [[float(cell) for cell in row] for row in rows], False


def _fcsv(lines: list[str], path: str) -> tuple[_Rows, bool]:
    header = " ".join(line for line in lines if line.startswith("#"))
    match = re.search(r"CoordinateSystem\s*=\s*(\w+)", header)
    system = {"0": "RAS", "1": "LPS"}.get(match[1], match[1]) if match else "RAS"
    if system not in ("RAS", "LPS"):
        raise InputError(f"{path}: expected coordinates in RAS or LPS, got {system}; save the points in RAS")
    return [[float(c) for c in line.split(",")[1:4]] for line in lines if not line.startswith("#")], system == "LPS"


def _itk_points(lines: list[str], path: str) -> tuple[_Rows, bool]:
    output = [match for line in lines if (match := re.search(r"OutputPoint\s*=\s*\[([^\]]*)\]", line))]
    if lines and len(output) == len(lines):
        return [[float(c) for c in match[1].split()] for match in output], True
    first = lines[0].lower() if lines else ""
    if first == "index":
        raise InputError(f"{path}: expected points in mm, got voxel indices ('index'); convert them with their image")
    rows = lines[2:] if first == "point" else lines
    if first == "point" and int(lines[1]) != len(rows):
        raise InputError(f"{path}: expected {lines[1]} points (second line), got {len(rows)}; correct the file")
    return [[float(c) for c in re.split(r"[\s,]+", row)] for row in rows], True


def write_points(points_mm: np.ndarray, path: str | Path) -> None:
    """Write ``(P, 3)`` points in RAS mm as CSV with the header x,y,z, atomically."""
    path = Path(path)
    with all_or_nothing(path.parent) as folder, open(folder / path.name, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow("xyz")
        table.writerows(np.asarray(points_mm, dtype=np.float64).tolist())
