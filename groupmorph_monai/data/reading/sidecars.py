"""Acquisition times of NIfTI scans from their JSON sidecars, as written by dcm2niix and defined by BIDS."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from .signature import read_text

Sidecar = Mapping[str, Any]
logger = logging.getLogger(__name__)
_LARGEST = 1e12  # maximum absolute value of a time
_DAY_S = 86400
_CYCLE_S = 10  # longer than a cycle of heart or breath, whose phases may be listed from any time of it
_ROUNDING_S = 1e-6  # maximum difference of equal times
_FASTEST_3D_S = 0.1  # shorter than the acquisition of any 3D volume, longer than the time between excitations
# Before a single digit of hours, minutes or seconds: older versions of dcm2niix write 7.500000 for 07.500000.
_ONE_DIGIT = re.compile(r"(?<=[T:])(?=\d(?:[:.]|$))")
_UNEVEN = 0.01  # maximum relative difference of even steps


def even_step(times_s: Sequence[float] | None) -> float | None:
    """Return the time between frames in seconds if it is constant to 1 %, otherwise None."""
    steps = np.diff(times_s) if times_s is not None and len(times_s) > 1 else np.zeros(0)
    if not len(steps) or steps.min() <= 0 or np.abs(steps - steps.mean()).max() > _UNEVEN * steps.mean():
        return None
    return float(steps.mean().round(6))


def sidecar(image: str | Path) -> Sidecar:
    """Read the ``.json`` next to an image; empty if there is none."""
    path = Path(image)
    json_file = path.with_name(path.name.removesuffix(".gz")).with_suffix(".json")
    try:
        content = json.loads(read_text(json_file))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s: ignored, as it cannot be read (%s)", json_file, error)
        return {}
    if not isinstance(content, dict):
        logger.warning("%s: ignored, as it is not a JSON object", json_file)
        return {}
    return content


def times_of_volumes(
    image: str | Path, content: Sidecar, number: int, frame_time_s: float | None = None
) -> tuple[float, ...] | None:
    """Determine the times of the volumes of a 4D image in seconds since the first one.

    They come from a list of onsets (``FrameTimesStart`` of PET, ``VolumeTiming``), the frame time, or the repetition
    time of a 2D sequence, which is that of volumes (in a 3D sequence it is that of excitations, which dcm2niix may also
    write as the frame time).

    Args:
        image: the image, for messages.
        content: its sidecar.
        number: number of volumes.
        frame_time_s: frame time in the header of the image.
    """
    for name in ("FrameTimesStart", "VolumeTiming"):
        values = _numbers(content.get(name))
        if len(values) == number and all(np.diff(values) > 0):
            return _from_first(values)
        if name in content:
            logger.warning("%s: %s is ignored, as it is not %d ascending times", image, name, number)
    repetition_s = next(iter(_numbers(content.get("RepetitionTime"))), 0.0)
    if content.get("MRAcquisitionType") != "3D":
        frame_time_s = frame_time_s or repetition_s
    elif frame_time_s and abs(frame_time_s - repetition_s) < _ROUNDING_S and repetition_s < _FASTEST_3D_S:
        frame_time_s = None
    return _from_first((frame_time_s * np.arange(number)).tolist()) if frame_time_s and frame_time_s > 0 else None


def times_of_files(contents: Sequence[Sidecar]) -> tuple[float, ...] | None:
    """Determine the times of 3D images in seconds since the first one, in the order of their sidecars.

    They come from the first of acquisition time, trigger delay (in ms, as written by dcm2niix) and frame time that all
    sidecars contain and that differs between all scans.
    """
    for read in (_moment_s, _time_of_day_s, _trigger_s, _frame_s):
        values = past_midnight([value for content in contents if (value := read(content)) is not None])
        if len(contents) == len(values) == len(set(values)) > 1:
            return _from_first(values)
    return None


def contradictions(
    images: Sequence[str | Path], contents: Sequence[Sidecar], times_s: Sequence[float] | None
) -> list[str]:
    """Describe sidecars that contradict a list of scans of one patient in temporal order, one per line.

    Args:
        images: the scans.
        contents: their sidecars.
        times_s: their times, if known.
    """
    warnings = []
    steps_s = np.diff(times_s or ())
    if (steps_s < -_CYCLE_S).any():
        late = int((steps_s < -_CYCLE_S).argmax()) + 1
        warnings.append(
            f"{images[late]}: expected a scan after {images[late - 1]}, got an acquisition {-steps_s[late - 1]:g} s "
            "earlier in the sidecar; list the scans in temporal order, or ignore this if they are of several days"
        )
    names = ((str(content.get("PatientID") or "").strip(), image) for content, image in zip(contents, images))
    patients = {name: image for name, image in names if name}
    if len(patients) > 1:
        (first, one), (second, other), *_ = patients.items()
        warnings.append(
            f"{other}: expected the patient of {one}, {first!r}, got {second!r} in the sidecar; check that all scans "
            "are of one patient"
        )
    return warnings


def without_time(contents: Sequence[Sidecar]) -> int | None:
    """Return the index of the first sidecar without acquisition time although another one states it, or None."""
    timed = [_acquisition_s(content) is not None for content in contents]
    return timed.index(False) if any(timed) and not all(timed) else None


def past_midnight(values: Sequence[float]) -> list[float]:
    """Add a day to times of day after midnight: those before a gap of more than 12 hours. Other times do not change."""
    ordered = sorted(values)
    gaps = np.diff(ordered)
    if not len(gaps) or ordered[-1] >= _DAY_S or gaps.max() < _DAY_S / 2:
        return list(values)
    return [value + _DAY_S * (value <= ordered[int(gaps.argmax())]) for value in values]


def _acquisition_s(content: Sidecar) -> float | None:
    moment = _moment_s(content)
    return _time_of_day_s(content) if moment is None else moment


def _moment_s(content: Sidecar) -> float | None:
    return _seconds(str(content.get("AcquisitionDateTime", "")))


def _time_of_day_s(content: Sidecar) -> float | None:
    return _seconds(f"1970-01-01T{content.get('AcquisitionTime', '')}")


def _seconds(moment: str) -> float | None:
    """Convert a date and time to seconds; times may lack leading zeros (9:05:7.5 for 09:05:07.5)."""
    try:
        time = datetime.fromisoformat(_ONE_DIGIT.sub("0", moment))
    except ValueError:
        return None
    return (time.replace(tzinfo=None) - datetime(1970, 1, 1) - (time.utcoffset() or timedelta())).total_seconds()


def _trigger_s(content: Sidecar) -> float | None:
    return next((value / 1000 for value in _numbers(content.get("TriggerDelayTime"))), None)


def _frame_s(content: Sidecar) -> float | None:
    return next(iter(_numbers(content.get("FrameTimesStart"))), None)


def _numbers(value: object) -> list[float]:
    values = value if isinstance(value, list) else [value]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return [float(v) for v in numbers if abs(v) < _LARGEST]  # also excludes NaN


def _from_first(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value) - float(values[0]), 6) for value in values)
