"""Volumes of a series whose slices follow the patient, as in prospective motion correction."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .geometry import SAME_PLACE_MM, depth, evenly_spaced
from .plane import Plane

_MOST_TILT_DEGREES = 15  # by which a patient may turn between two volumes
_UNEVEN_STEPS = 0.1  # maximum deviation of distances between slices from multiples of the smallest one
_MOST_MISSING = 10  # maximum number of consecutive missing slices


def volumes_by_shared_attribute(planes: Sequence[Plane], labels: Sequence[str]) -> list[tuple[Plane, ...]]:
    """Split slices whose positions change from volume to volume by an attribute that all slices of a volume share.

    Args:
        labels: names of attributes, any of which may separate the volumes.

    Returns:
        Volumes of equal numbers of evenly spaced, parallel slices; empty if no attribute separates such volumes, or if
        two attributes separate different ones, or if the slices lie in blocks.
    """
    if not is_tilted(planes) and _in_blocks(planes):
        return []
    partitions = {}
    for label in labels:
        volumes = _sharing(planes, label)
        if len(volumes) > 1 and _complete(volumes):
            partitions[frozenset(frozenset(map(id, volume)) for volume in volumes)] = volumes
    return next(iter(partitions.values())) if len(partitions) == 1 else []


def _sharing(planes: Sequence[Plane], label: str) -> list[tuple[Plane, ...]]:
    """Group slices by an attribute, each group sorted by depth; empty if a slice lacks the attribute."""
    groups: defaultdict[float | None, list[Plane]] = defaultdict(list)
    for plane in planes:
        groups[plane.keys.get(label)].append(plane)
    return [] if None in groups else [tuple(sorted(group, key=depth)) for group in groups.values()]


def stacks_apart(planes: Sequence[Plane], labels: Sequence[str]) -> list[Sequence[Plane]]:
    """Find two stacks of parallel slices that show different parts of the body, such as two knees.

    Args:
        labels: names of attributes, any of which the slices of a stack may share.

    Returns:
        The stacks, sorted by depth; empty if no attribute divides the slices into evenly spaced ones that lie apart,
        and if no gap is as wide as the slices on either side.
    """
    for stacks in (_sharing(planes, label) for label in labels):
        largest = max(stacks, key=len, default=())
        apart = [stack for stack in stacks if not may_show_same_anatomy(stack, largest)]
        if apart and all(map(evenly_spaced, stacks)):
            return sorted([largest, apart[0]], key=lambda stack: depth(stack[0]))
    return _beside_a_gap(planes)


def _beside_a_gap(planes: Sequence[Plane]) -> list[Sequence[Plane]]:
    """Divide slices at a gap as wide as the slices on either side; empty if there is none."""
    ordered, gaps = sorted(planes, key=depth), gaps_mm(planes)
    if not len(gaps):
        return []
    depths = np.array([depth(plane) for plane in ordered])
    k = int(np.diff(depths).argmax()) + 1
    longest_mm = max(np.ptp(depths[:k]), np.ptp(depths[k:])) + np.median(gaps)
    return [ordered[:k], ordered[k:]] if depths[k] - depths[k - 1] > longest_mm else []


def is_tilted(planes: Sequence[Plane]) -> bool:
    """Check whether slices have several orientations."""
    return len({plane.source.raster.orientation for plane in planes}) > 1


def largest_tilt_degrees(planes: Sequence[Plane]) -> float:
    """Compute the largest angle between the orientations of slices and that of the first one."""
    places = {plane.source.raster.orientation: plane.place for plane in planes}.values()
    axes = [np.stack([*place.axes, np.cross(*place.axes)]) for place in places]
    return max(_angle_degrees(turned, axes[0]) for turned in axes)


def _angle_degrees(axes: np.ndarray, reference_axes: np.ndarray) -> float:
    """Compute the angle of the rotation between two sets of axes, one per row, whichever way they are counted: rows
    and slices in reversed order are no rotation."""
    cosine = (np.abs(np.diag(axes @ reference_axes.T)).sum() - 1) / 2
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def follows_patient(planes: Sequence[Plane]) -> bool:
    """Check whether slices lie at different positions in every volume: parallel and close together around each slice
    position, or with several orientations. Where slices are merely missing, distances are small multiples of the
    smallest one."""
    if is_tilted(planes):
        return True
    gaps = gaps_mm(planes)
    if np.count_nonzero(gaps > gaps.max(initial=0) / 2) < 2 or _in_blocks(planes):
        return False
    steps = gaps / gaps.min()
    return bool(steps.max() > _MOST_MISSING or (steps.max() > 2 and _uneven(steps).any()))


def slices_at_a_place(planes: Sequence[Plane]) -> int:
    """Estimate the number of volumes if the slices follow the patient, by less than the slice distance; 1 if they do
    not."""
    if not follows_patient(planes):
        return 1
    gaps = gaps_mm(planes)
    return round(len(planes) / (1 + np.count_nonzero(gaps > gaps.max(initial=0) / 2)))


def _in_blocks(planes: Sequence[Plane]) -> bool:
    """Check whether parallel slices lie in several evenly spaced blocks, such as those of two knees or of discs, rather
    than close to each other after small motions."""
    gaps = gaps_mm(planes)
    close = gaps <= gaps.max(initial=0) / 2
    if not (close[1:] & close[:-1]).any() or close.all():
        return False
    spacing = gaps.min()
    return bool(spacing >= min(planes[0].place.spacing_mm) / 2 and not _uneven(gaps[close] / spacing).any())


def _uneven(steps: np.ndarray) -> np.ndarray:
    return np.abs(steps - steps.round()) > _UNEVEN_STEPS


def gaps_mm(planes: Sequence[Plane]) -> np.ndarray:
    """Compute the distances between different positions along the normal, mm."""
    gaps = np.diff(sorted(depth(plane) for plane in planes))
    return gaps[gaps > SAME_PLACE_MM]


def _complete(volumes: Sequence[Sequence[Plane]]) -> bool:
    same_size = len({len(volume) for volume in volumes}) == 1
    return same_size and all(map(evenly_spaced, volumes)) and _overlap(volumes)


def _overlap(volumes: Sequence[Sequence[Plane]]) -> bool:
    """Check whether all volumes may show the same anatomy, directly or by way of others, as motion accumulates."""
    joined, rest = [0], list(range(1, len(volumes)))
    for k in joined:  # grows in the loop
        joined += [n for n in rest if may_show_same_anatomy(volumes[n], volumes[k])]
        rest = [n for n in rest if n not in joined]
    return not rest


def may_show_same_anatomy(planes: Sequence[Plane], reference_planes: Sequence[Plane]) -> bool:
    """Check whether slices may show the same tissue as reference slices after the patient moved: their centre lies
    within those, and they are tilted by no more than a patient turns. Stacks of a spine or of two knees do not qualify.
    """
    (axes, centre, size), (reference_axes, reference_centre, reference_size) = map(_box, (planes, reference_planes))
    tilt = _angle_degrees(axes, reference_axes)
    inside = np.abs(reference_axes @ (centre - reference_centre)) <= reference_size / 2
    return min(size[2], reference_size[2]) > 0 and tilt <= _MOST_TILT_DEGREES and bool(inside.all())


def _box(planes: Sequence[Plane]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the directions ``(3, 3)`` of columns, rows and slices, the centre, and the size along them, LPS mm."""
    place, (rows, columns) = planes[0].place, planes[0].source.raster.shape
    axes = np.stack([*place.axes, np.cross(*place.axes)])
    depths = [depth(plane) for plane in planes]
    size = np.array([columns * place.spacing_mm[1], rows * place.spacing_mm[0], max(depths) - min(depths)])
    corner = np.mean([plane.place.position for plane in planes], axis=0)
    return axes, corner + size[:2] / 2 @ place.axes, size
