"""Split slices into volumes, put these in the order of time, and tell their times."""

from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from .geometry import depth
from .headers import Plane

__all__ = ["Volume", "in_order", "split_volumes", "times_s"]

Volume = tuple[Plane, ...]  # in the order of depth
# By the first of these that tells all volumes apart they are ordered.
_ORDER = (
    "temporal offset",
    "acquisition time",
    "trigger time",
    "dynamic scan begin",
    "frame reference time",
    "temporal position",
    "acquisition number",
    "content time",
    "series number",
    "instance number",
    "frame number",
)
# Those of them that are times. The content time comes last, as it may be that of the reconstruction.
_TIMES = (*_ORDER[:5], "content time")
_SAME_PLACE_MM = 0.01


def split_volumes(planes: Sequence[Plane]) -> tuple[list[Volume], str]:
    """Split the slices of a stack into its timepoints: the k-th image at every slice position makes volume k.

    Slices of one volume may have been acquired one after the other, so that only images at the same position are
    compared: by the first attribute, of those in ``_ORDER``, that tells them apart at every position.

    Returns: the volumes in the order of time, and the attribute.
    Raises: InputError where slices are missing, or nothing tells two images at one position apart.
    """
    positions = _by_position(planes)
    number = max(len(images) for images in positions)
    short = [images for images in positions if len(images) < number]
    if short:
        raise InputError(_missing(positions, short, number))
    if number == 1:
        return [tuple(plane for (plane,) in positions)], "its one timepoint"
    key = _telling(positions)
    if key is None:
        first, second = (plane.path for plane in positions[0][:2])
        raise InputError(
            f"{first}: expected an acquisition, trigger or content time that tells it from {second} at the same place, "
            "got none; leave one of them out, if the slice was exported twice"
        )
    ordered = [sorted(images, key=lambda plane: plane.keys[key]) for images in positions]
    return list(zip(*ordered)), key


def _by_position(planes: Sequence[Plane]) -> list[list[Plane]]:
    positions: list[list[Plane]] = []
    for plane in sorted(planes, key=depth):
        if positions and depth(plane) - depth(positions[-1][0]) < _SAME_PLACE_MM:
            positions[-1].append(plane)
        else:
            positions.append([plane])
    return positions


def _telling(groups: Sequence[Sequence[Plane]]) -> str | None:
    """The first key by which the members of each group differ."""
    for key in _ORDER:
        if all(len({p.keys.get(key) for p in group} - {None}) == len(group) for group in groups):
            return key
    return None


def _missing(positions: Sequence[Sequence[Plane]], short: Sequence[Sequence[Plane]], number: int) -> str:
    """Say which slices are missing, and of which timepoint where an attribute tells it."""
    first, full = short[0][0], next(images for images in positions if len(images) == number)
    lacking = ""
    for key in _ORDER:
        numbers, rest = ({p.keys.get(key) for p in images} - {None} for images in (full, short[0]))
        if len(numbers) == number and rest < numbers:
            timepoint = sorted(numbers).index(min(numbers - rest))
            lacking = f" (timepoint {timepoint} by its {key})"
            break
    return (
        f"{first.path}: expected {number} images at each of the {len(positions)} slice positions of "
        f"{first.source.description!r}, got {len(short[0])} at {depth(first):.4g} mm{lacking}, and {len(short)} such "
        "positions; export the series again, or take the incomplete timepoint out of the folder"
    )


def _earliest(volume: Volume, key: str) -> float | None:
    values = [plane.keys[key] for plane in volume if key in plane.keys]
    return min(values) if len(values) == len(volume) else None


def in_order(volumes: Sequence[Volume]) -> tuple[list[Volume], str]:
    """Sort the volumes of several series in time; the name of the attribute that tells it comes with them."""
    for key in _ORDER:
        values = [_earliest(volume, key) for volume in volumes]
        if None not in values and len(set(values)) == len(volumes):
            return [volumes[k] for k in np.argsort(values)], key
    return list(volumes), "order of the files"


def times_s(volumes: Sequence[Volume]) -> tuple[list[float] | None, str]:
    """Times of volumes in order, in seconds from the first one, and the attribute that tells them.

    A volume's time is that of its first slice. Where the acquisition times are whole seconds, as GE writes them,
    trigger times in milliseconds that span the same time are more exact. Where no time but that of the content rises
    from volume to volume, temporal position and resolution are preferred.

    Returns: None where no attribute tells the times.
    """
    times = {key: _rising(volumes, key) for key in (*_TIMES[:-1], "temporal position", _TIMES[-1])}
    position, resolution = times.pop("temporal position"), volumes[0][0].keys.get("temporal resolution", 0.0)
    if position and resolution > 0:
        content = times.pop("content time")
        times |= {"temporal resolution": [resolution * number for number in position], "content time": content}
    rising = {key: values for key, values in times.items() if values}
    if not rising:
        return None, ""
    key = next(iter(rising))
    span = {key: values[-1] - values[0] for key, values in rising.items()}
    whole = all(value == int(value) for value in rising[key])
    if key == "acquisition time" and whole and abs(span.get("trigger time", np.inf) - span[key]) <= 1:
        key = "trigger time"
    return [round(value - rising[key][0], 6) for value in rising[key]], key


def _rising(volumes: Sequence[Volume], key: str) -> list[float] | None:
    values = [_earliest(volume, key) for volume in volumes]
    return values if None not in values and all(np.diff(values) > 0) else None
