"""Sort volumes by time, and determine their times."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import compress, pairwise

import numpy as np

from ...errors import InputError
from .plane import Plane

Volume = tuple[Plane, ...]  # sorted by depth
# Volumes are sorted by the first of these keys that differs between all of them.
ORDER = (
    "temporal offset",
    "acquisition time",
    "trigger time",
    "dynamic scan begin",
    "frame reference time",
    "phase",
    "temporal position",
    "acquisition number",
    "spin label",
    "content time",
    "series time",
    "series number",
    "instance number",
    "dimension index",
    "frame number",
)
# Keys that are times. The content time comes late, as it may be the time of the reconstruction.
_CLOCKS = ORDER[: ORDER.index("phase")]
_TIMES = (*_CLOCKS, "temporal resolution", "content time", "series time")
# Keys that restart in every series, as the numbers in `_COUNTED` do.
_SINCE_START = ("temporal offset", "trigger time", "dynamic scan begin", "frame reference time")
_PHASES = ("phase", "temporal position", "series number")  # keys that order volumes acquired at the same time
_COUNTED = ("acquisition number", "instance number", "dimension index", "frame number")
# Keys that do not describe the acquisition and differ even between images of one moment.
LATE = ORDER[ORDER.index("content time") :]
EARLY = [key for key in ORDER if key not in LATE]  # attributes of the acquisition
IN_FILE = ("dimension index", "frame number")  # numbers that every file counts
_MOMENT_KEYS = [key for key in EARLY if key not in ("acquisition time", *_COUNTED)]
_LONG_PAUSE = 3  # minimum ratio of the time between two runs to that between their volumes
_ECHOES_S = 0.05  # maximum time between the first echoes of a shot; no volume is acquired in less


def earliest(volumes: Sequence[Volume], key: str) -> list[float] | None:
    """Return the smallest value of each volume; None unless all slices have one."""
    if not all(key in plane.keys for volume in volumes for plane in volume):
        return None
    starts = _starts(volumes) if key in _SINCE_START else {}
    return [min(plane.keys[key] for plane in volume) + starts.get(_series(volume), 0.0) for volume in volumes]


def _series(volume: Volume) -> str:
    return volume[0].source.series


def _kind(volume: Volume) -> tuple[str, tuple[str, ...], float]:
    """Return what volumes of one scan share: series, image type and echo time."""
    source = volume[0].source
    return source.series, source.image_type, source.echo_time_ms


def _starts(volumes: Sequence[Volume]) -> dict[str, float]:
    """Compute the acquisition times of series since the first; empty if all volumes differ in them or one has none."""
    times = earliest(volumes, "acquisition time")
    if times is None or _differs(volumes, "acquisition time"):
        return {}
    starts: dict[str, float] = {}
    for volume, time in zip(volumes, times):
        starts[_series(volume)] = min(time, starts.get(_series(volume), time))
    return {series: start - min(times) for series, start in starts.items()}


def _preferred(volumes: Sequence[Volume], keys: Sequence[str]) -> list[str]:
    """Reorder keys for volumes of several series: acquisition times first, and no numbers that each series counts; for
    the phases of a gated scan, which have no times, only ``_PHASES``."""
    if len({_series(volume) for volume in volumes}) == 1:
        return list(keys)
    if at_the_same_time(volumes) or (_differs(volumes, "phase") and not _differs(volumes, "acquisition time")):
        return [key for key in keys if key in _PHASES]
    return ["acquisition time", *(key for key in keys if key not in _COUNTED)]


def _differs(volumes: Sequence[Volume], key: str) -> bool:
    """Check whether all volumes differ in an attribute."""
    values = earliest(volumes, key)
    return values is not None and len(set(values)) == len(values)


def at_the_same_time(volumes: Sequence[Volume]) -> bool:
    """Check whether any volume begins in the first half of another, as in a gated scan. Consecutive volumes may overlap
    slightly, as times are rounded.

    Equal acquisition times count for CT alone, as in reconstructions of one scan; others may be those of a whole study.
    """
    of_ct = volumes[0][0].source.examination.modality == "CT"
    times = [[plane.keys.get("acquisition time", np.nan) for plane in volume] for volume in volumes]
    spans = sorted((min(values), max(values)) for values in times)
    return any(
        later < (start + end) / 2 or (of_ct and later == start) for (start, end), (later, _) in zip(spans, spans[1:])
    )


def in_order(volumes: Sequence[Volume]) -> tuple[list[Volume], str]:
    """Sort the volumes of several series by time.

    Returns:
        The sorted volumes, and the name of the attribute used.

    Raises:
        InputError: If two volumes of different series are of one moment.
    """
    _check_distinct_moments(volumes)
    for key in _preferred(volumes, ORDER):
        values = earliest(volumes, key)
        if values is not None and _differs(volumes, key):
            return [volumes[k] for k in np.argsort(values)], key
    return list(volumes), "order of the files"


def _check_distinct_moments(volumes: Sequence[Volume]) -> None:
    """Check that no two volumes have equal headers, and that no series or kind of image shows a moment of another, as
    copies, filtered images, echoes and contrasts do.

    Series of one acquisition time are several images of one scan, except in CT, where they may be phases of the cycle.
    Where there are only other clocks, such as trigger times, they tell nothing if they are equal in all volumes.
    """
    headers, moments = dict[Hashable, Plane](), defaultdict[Hashable, list[Volume]](list)
    for volume in volumes:
        plane = volume[0]
        if any(key in plane.keys for key in _TIMES):
            twin = headers.setdefault((plane.source.description, *map(plane.keys.get, ORDER)), plane)
            if twin is not plane:
                raise InputError(_equal_times(plane, twin))
        moments[tuple(tuple(map(plane.keys.get, _MOMENT_KEYS)) for plane in volume)].append(volume)
    if volumes[0][0].source.examination.modality == "CT":
        return
    clocks = _CLOCKS if len(moments) > 1 else ("acquisition time",)
    for shown in moments.values():
        for earlier, later in pairwise(sorted(shown, key=start_s)):
            timed = any(key in later[0].keys for key in clocks)
            if timed and _kind(earlier) != _kind(later) and _begin_together(earlier, later):
                raise InputError(_equal_times(later[0], earlier[0]))


def start_s(planes: Sequence[Plane]) -> float:
    """Return the earliest acquisition time of slices; 0 if one has none."""
    return min(plane.keys.get("acquisition time", 0.0) for plane in planes)


def _begin_together(earlier: Volume, later: Volume) -> bool:
    """Check whether a volume begins with another one, like the echoes of a shot, or in its first half, as with
    interleaved slices."""
    return start_s(later) - start_s(earlier) < _ECHOES_S or at_the_same_time((earlier, later))


def _equal_times(plane: Plane, twin: Plane) -> str:
    names = [f"{source.number} {source.description!r}" for source in (twin.source, plane.source)]
    equal = plane.keys.get("acquisition time") == twin.keys.get("acquisition time")
    return (
        f"{plane.file.path}: expected an acquisition or trigger time that differs from {twin.file.path}, got "
        f"{'equal' if equal else 'overlapping'} ones in {names[0]} and {names[1]}; choose the series to "
        "align with --series-description PATTERN, remove one of the two if it was exported twice, or convert "
        "them to NIfTI if both are timepoints"
    )


def times_s(volumes: Sequence[Volume]) -> tuple[list[float] | None, str]:
    """Determine the times of sorted volumes, in seconds since the first one, and the attribute used.

    The time of a volume is that of its first slice. If acquisition times are whole seconds, as written by GE, trigger
    times in milliseconds over the same duration are preferred. If only content times increase from volume to volume,
    temporal position and resolution are preferred. Times since the start of a series are added to its acquisition time.
    Volumes of one series without any time are a repetition time apart, if the sequence takes one per volume. Content
    times of phases of one scan are those of their reconstruction.

    Returns:
        Times (None if unknown), and the name of the attribute.
    """
    reconstructed = at_the_same_time(volumes)
    keys = [key for key in _TIMES if not (reconstructed and key in LATE)]
    rising = {key: values for key in _preferred(volumes, keys) if (values := _rising(volumes, key))}
    if not rising:
        return _repetitions(volumes)
    key = next(iter(rising))
    span = {key: values[-1] - values[0] for key, values in rising.items()}
    whole = all(value == int(value) for value in rising[key])
    if key == "acquisition time" and whole and abs(span.get("trigger time", np.inf) - span[key]) <= 1:
        key = "trigger time"
    return [round(value - rising[key][0], 6) for value in rising[key]], key


def contradicted_order(volumes: Sequence[Volume], key: str) -> list[str]:
    """Describe what contradicts the order of volumes sorted by ``key``: a time that some lack, if the others have
    another order, or the numbers of the images of one series, if ``key`` is no time of their acquisition; one line, or
    none."""
    numbers = earliest(volumes, "instance number")
    if key == "content time" and len({_series(v) for v in volumes}) == 1 and numbers and any(np.diff(numbers) < 0):
        return [
            f"{volumes[0][0].file.path}: the scans have no times of their acquisition, so they are in the order of "
            "content time, which the instance numbers contradict; check it, and if it is wrong, use NIfTI files, "
            "listed in order"
        ]
    preferred = _preferred(volumes, _CLOCKS)
    for clock in preferred[: preferred.index(key) if key in preferred else None]:
        timed = [all(clock in plane.keys for plane in volume) for volume in volumes]
        values = earliest(list(compress(volumes, timed)), clock)
        if not all(timed) and values and any(np.diff(values) < 0):
            path = volumes[timed.index(False)][0].file.path
            return [
                f"{path}: {timed.count(False)} of {len(volumes)} scans have no {clock}, so all are in "
                f"the order of {key}, which contradicts the {clock} of the others; check it, and if it is wrong, "
                "use NIfTI files, listed in order"
            ]
    return []


def repeated_runs(volumes: Sequence[Volume], times: Sequence[float] | None) -> list[str]:
    """Describe sorted volumes that may be several runs of one protocol rather than one series: each volume is a series,
    their descriptions repeat, and long pauses lie between the repeats.

    Returns:
        One line, or none if the volumes are of one run.
    """
    number = len(volumes)
    if times is None or len({_series(volume) for volume in volumes}) < number:
        return []
    descriptions, gaps = [volume[0].source.description for volume in volumes], np.diff(times)
    for size in range(2, number // 2 + 1):
        ends = np.arange(size, number, size) - 1
        alike = number % size == 0 and descriptions == descriptions[:size] * (number // size)
        if alike and gaps[ends].min() > _LONG_PAUSE * np.delete(gaps, ends).max():
            return [
                f"{descriptions[0]!r}: the scans are {number // size} times {size} with equal descriptions and "
                f"{gaps[ends].min() / 60:.3g} min between them; if these are several runs of the protocol, use a "
                "folder with the files of one"
            ]
    return []


def _repetitions(volumes: Sequence[Volume]) -> tuple[list[float] | None, str]:
    """Count repetition times if the clocks of the slices cover less time than the volumes take, as those of the whole
    series or of its reconstruction do."""
    step_s = volumes[0][0].keys.get("repetition time")
    planes = [plane for volume in volumes for plane in volume]
    if (
        step_s is None
        or any("spin label" in plane.keys for plane in planes)
        or len({plane.source.series for plane in planes}) > 1
    ):
        return None, ""
    clocks = [[plane.keys[key] for plane in planes if key in plane.keys] for key in _TIMES]
    if any(np.ptp(times) >= (len(volumes) - 1) * step_s for times in clocks if times):
        return None, ""
    return [round(k * step_s, 6) for k in range(len(volumes))], "repetition time"


def _rising(volumes: Sequence[Volume], key: str) -> list[float] | None:
    values = earliest(volumes, key)
    if values is None or not all(np.diff(values) > 0):
        return None
    one_series = len({_series(volume) for volume in volumes}) == 1
    slices = zip(*([plane.keys[key] for plane in volume] for volume in volumes)) if one_series else ()
    return values if all(all(np.diff(times) > 0) for times in slices) else None
