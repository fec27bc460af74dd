"""Moments in the header of an image, and the time zones in which they are given (DICOM PS3.3, C.12.1.1.8)."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from pydicom.valuerep import DT

from ..reading.sidecars import past_midnight
from .attributes import Attributes
from .plane import Plane

# Matched against the whole text, as pydicom ignores what follows; fraction digits after the sixth are dropped.
_DATE_AND_TIME = re.compile(r"((?:\d\d){2,7}(?:\.\d{1,6})?)(?:\.|(?<=\.\d{6})\d+)?([+-]\d{4})?")
_SUFFIX = len("+0000")
_EPOCH, _DAY_S = datetime(1970, 1, 1), 86400
_START = "study start"  # key of the moment at which a study began

Moment = tuple[float, float | None]  # local seconds since 1970, and the offset from UTC if known


def _acquisition_names(attributes: Attributes) -> tuple[str, ...]:
    """List the attributes with the date and time of the acquisition of a slice.

    In a classic image the acquisition date and time may be that of the whole series: the acquisition time is preferred.
    """
    frame = "FrameAcquisitionDateTime"
    return (frame,) if attributes.get("AcquisitionTime") else (frame, "AcquisitionDateTime")


def moments(attributes: Attributes) -> dict[str, Moment]:
    """Return the acquisition, content and series time of a slice, and the start of its study, if known.

    The start tells which moments are after midnight, and is omitted for images that state date and time together. A
    moment without its own suffix is in the time zone of the image.
    """
    by_name = {
        "acquisition time": _moment(attributes, "Acquisition", *_acquisition_names(attributes)),
        "content time": _moment(attributes, "Content", "FrameReferenceDateTime"),
        "series time": _day_and_time(attributes, "SeriesTime", "SeriesDate", "StudyDate"),
    }
    if not attributes.get(*_acquisition_names(attributes)):
        by_name[_START] = _start(attributes)
    zone = _zone_of_image(attributes)
    return {
        name: (moment[0], zone if moment[1] is None else moment[1])
        for name, moment in by_name.items()
        if moment is not None
    }


def local_acquisition(attributes: Attributes) -> dict[str, str]:
    """Split the acquisition date and time of an image that has both in one attribute, as enhanced images do.

    Returns:
        Attributes of a classic image, in its time zone, or in that of the suffix if it has none.
    """
    moment = str(attributes.get(*_acquisition_names(attributes), default="")).strip().replace(",", ".")
    instant, zone = _instant(moment), _zone_of_image(attributes)
    if instant is None:
        return {}
    (seconds, offset), local, of_suffix = instant, moment, {}
    if offset is not None and zone is not None:
        local = (_EPOCH + timedelta(seconds=seconds - offset + zone)).strftime("%Y%m%d%H%M%S.%f")
    elif offset is not None:
        local, of_suffix = moment[:-_SUFFIX], {"TimezoneOffsetFromUTC": moment[-_SUFFIX:]}
    return {"AcquisitionDateTime": moment, "AcquisitionDate": local[:8], "AcquisitionTime": local[8:], **of_suffix}


def in_one_zone(planes: Sequence[Plane]) -> list[Plane]:
    """Convert the moments of slices to UTC, or leave them as they are if none has a time zone.

    Slices without a time zone are in that of the others, if these have only one: those of the same image type, or else
    of the study. If the zone is ambiguous, because the others have several or because it may be UTC, which many
    programs use regardless of their location, the moment is dropped from these slices, unless none of their image type
    has a time zone, as they are then comparable.
    """
    kinds: defaultdict[Hashable, list[Plane]] = defaultdict(list)
    for plane in planes:
        kinds[_kind(plane)].append(plane)
    in_study = _zones(planes)
    defaults = {
        kind: {name: _default_zone(zones, in_study[name]) for name, zones in _zones(members).items()}
        for kind, members in kinds.items()
    }
    for name in ("acquisition time", "content time"):
        planes = _over_midnight(planes, name)
    return [replace(plane, keys=_in_utc(plane, defaults[_kind(plane)])) for plane in planes]


def _over_midnight(planes: Sequence[Plane], name: str) -> list[Plane]:
    """Add a day to moments after midnight, whose headers state the date of the start of the study, or no date at all.

    These are moments on that day before a gap of more than 12 hours that ends with the start or, if it is unknown, with
    another moment. Where no such gap precedes the start, the study was registered after the scan.
    """
    moments_s: defaultdict[tuple[Hashable, float], set[float]] = defaultdict(set)
    for plane in planes:
        if name in plane.keys:
            moments_s[_session(plane, name)].add(plane.keys[name])
    later = {
        (session, moment) for session, values in moments_s.items() for moment in _after_midnight(values, session[1])
    }
    return [
        replace(plane, keys={**plane.keys, name: plane.keys[name] + _DAY_S})
        if (_session(plane, name), plane.keys.get(name)) in later
        else plane
        for plane in planes
    ]


def _session(plane: Plane, name: str) -> tuple[Hashable, float]:
    """Return the examination and time zone of a moment, and the start of the study, infinity if it is unknown."""
    return (plane.source.examination, plane.zones.get(name)), plane.keys.get(_START, math.inf)


def _after_midnight(moments_s: Collection[float], start_s: float) -> list[float]:
    """Return the moments that are after midnight, although on the day of the start, or in 1970 if it is unknown."""
    day = 0.0 if start_s == math.inf else start_s // _DAY_S * _DAY_S
    values = [moment - day for moment in {*moments_s, start_s} if 0 <= moment - day < _DAY_S]
    late = {value for value, corrected in zip(values, past_midnight(values)) if corrected != value}
    return [moment for moment in moments_s if moment - day in late and start_s - moment > _DAY_S / 2]


def _kind(plane: Plane) -> Hashable:
    return plane.source.examination, plane.source.image_type, plane.source.echo_time_ms


def _zones(planes: Sequence[Plane]) -> dict[str, set[float]]:
    """Collect the time zones of each moment."""
    zones: defaultdict[str, set[float]] = defaultdict(set)
    for plane in planes:
        for name, zone in plane.zones.items():
            zones[name] |= set() if zone is None else {zone}
    return zones


def _default_zone(zones: set[float], in_study: set[float]) -> float | None:
    """Choose the time zone of slices without one; None if it is unclear."""
    candidates = zones or in_study
    if len(candidates) == 1 and 0.0 not in candidates:
        return next(iter(candidates))
    return None if zones else 0.0


def _zone_of_image(attributes: Attributes) -> float | None:
    _, zone = _instant("19700101" + str(attributes.get("TimezoneOffsetFromUTC"))) or (0.0, None)
    return zone


def _in_utc(plane: Plane, defaults: dict[str, float | None]) -> dict[str, float]:
    keys = dict(plane.keys)
    for name, zone in plane.zones.items():
        offset = defaults[name] if zone is None else zone
        local = keys.pop(name)
        if offset is not None:
            keys[name] = local - offset
    return keys


def _moment(attributes: Attributes, name: str, *whole: str) -> Moment | None:
    """Read a moment that is stored as one attribute ``whole``, or as a date and a time.

    A time without a date is on the day of its series or study.
    """
    if moment := attributes.get(*whole):
        return _instant(str(moment))
    return _day_and_time(attributes, f"{name}Time", f"{name}Date", "SeriesDate", "StudyDate")


def _start(attributes: Attributes) -> Moment | None:
    """Read when the study began, or else the series."""
    return _day_and_time(attributes, "StudyTime", "StudyDate", "SeriesDate") or _day_and_time(
        attributes, "SeriesTime", "SeriesDate", "StudyDate"
    )


def _day_and_time(attributes: Attributes, time: str, *dates: str) -> Moment | None:
    clock, day = attributes.get(time), attributes.get(*dates, default="19700101")
    return None if clock is None else _instant(str(day).replace(".", "") + str(clock).replace(":", ""))


def _instant(text: str) -> Moment | None:
    """Read DICOM's date and time, also with a decimal comma; None if it is invalid."""
    match = _DATE_AND_TIME.fullmatch(text.strip().replace(",", "."))
    try:
        instant: datetime | None = DT("".join(part or "" for part in match.groups())) if match else None
    except (ValueError, OverflowError):
        return None
    if not instant:
        return None
    offset = instant.utcoffset()
    return (instant.replace(tzinfo=None) - _EPOCH).total_seconds(), None if offset is None else offset.total_seconds()
