"""Points in 3D Slicer's Markups format, ``.mrk.json``: a JSON file with positions, labels and properties."""

import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from .signature import read_json

_LARGEST = 1e300  # maximum absolute coordinate; the comparison is also False for NaN
_TO_RAS = {"RAS": np.array([1.0, 1.0, 1.0]), "LPS": np.array([-1.0, -1.0, 1.0])}


def is_markups(path: str | Path) -> bool:
    return str(path).lower().endswith(".json")


def read_markups(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Read the control points, ``(P, 3)`` in RAS mm, and their labels.

    Raises:
        InputError: If the file does not have exactly one node whose points all have a position in mm.
    """
    _, node, to_ras = _load(path)
    return _positions(node, to_ras, path), [str(point.get("label", "")) for point in node["controlPoints"]]


def map_markups(source: str | Path, transform: Callable[[np.ndarray], np.ndarray], path: str | Path) -> None:
    """Write a copy of a markups file whose points are mapped by a transform.

    Args:
        source: the file to copy.
        transform: maps positions ``(P, 3)`` in RAS mm.
        path: the copy.

    Raises:
        InputError: If `read_markups` refuses the file.
    """
    content, node, to_ras = _load(source)
    mapped = transform(_positions(node, to_ras, source)) * to_ras
    for point, position in zip(node["controlPoints"], mapped.tolist(), strict=True):
        point["position"] = position
    node.pop("measurements", None)  # lengths and angles before the mapping; 3D Slicer recomputes them
    Path(path).write_text(json.dumps(content, indent=4), encoding="utf-8")


def _load(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:
    """Return the file's content, its node, and the signs of its axes in RAS."""
    try:
        content = read_json(path)
        nodes = content["markups"]
        points = [point for node in nodes for point in node["controlPoints"]]
        node = nodes[0] if nodes else {}
        system = node.get("coordinateSystem", "LPS")
        units = node.get("coordinateUnits", "mm")  # or a list: symbol, code system, meaning
        units = units[0] if isinstance(units, list) else units
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: expected a file of points, got none ({reason}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected points of 3D Slicer (.mrk.json), got invalid JSON ({error}); save them again"
        ) from error
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected points of 3D Slicer (.mrk.json), got JSON without markups and their controlPoints; save "
            "the points in 3D Slicer"
        ) from error
    if len(nodes) != 1 or not points:
        raise InputError(
            f"{path}: expected the points of one markups node, got {len(points)} points of {len(nodes)}; save the node "
            "alone"
        )
    if not isinstance(system, str) or system not in _TO_RAS:
        raise InputError(f"{path}: expected coordinates in RAS or LPS, got {system!r}; save the points in LPS")
    if node.get("type") in ("Plane", "ROI"):
        raise InputError(
            f"{path}: expected points, a line, a curve or an angle, got {node['type']}, which has its own position; "
            "save its points"
        )
    if units not in ("mm", ""):
        raise InputError(f"{path}: expected coordinates in mm, got {units!r}; save the points in mm")
    return content, node, _TO_RAS[system]


def _positions(node: dict[str, Any], to_ras: np.ndarray, path: str | Path) -> np.ndarray:
    points = enumerate(node["controlPoints"], start=1)
    return np.array([_position(point, number, path) for number, point in points]).reshape(-1, 3) * to_ras


def _position(point: Any, number: int, path: str | Path) -> list[float]:
    entry = point if isinstance(point, dict) else {"label": point}
    label = entry.get("label") or entry.get("id")
    name = reprlib.repr(label) if label else f"point {number}"
    position, status = entry.get("position"), entry.get("positionStatus", "defined")
    if status != "defined":
        raise InputError(
            f"{path}: expected points with a defined position, got {name} with the positionStatus "
            f"{reprlib.repr(status)}; place or delete the point"
        )
    if isinstance(position, list) and len(position) == 3:
        numbers = [value for value in position if isinstance(value, (int, float)) and not isinstance(value, bool)]
        if len(numbers) == 3 and all(abs(value) < _LARGEST for value in numbers):
            return [float(value) for value in numbers]
    raise InputError(
        f"{path}: expected three finite numbers as the position of {name}, got {reprlib.repr(position)}; place or "
        "delete the point"
    )
