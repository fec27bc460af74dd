"""Times of NIfTI scans from the JSON side-cars beside them, as dcm2niix and BIDS write them."""

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

__all__ = ["even_step", "sidecar", "times_of_files", "times_of_volumes"]

logger = logging.getLogger(__name__)
_LARGEST = 1e12  # number that is a time
_UNEVEN = 0.01  # share of the mean step by which steps may differ and still count as even


def even_step(times_s: Sequence[float] | None) -> float | None:
    """The time between frames in seconds, where it is the same for all of them to 1 %; None otherwise."""
    steps = np.diff(times_s) if times_s is not None and len(times_s) > 1 else np.zeros(0)
    if not len(steps) or steps.min() <= 0 or np.abs(steps - steps.mean()).max() > _UNEVEN * steps.mean():
        return None
    return float(steps.mean().round(6))


def sidecar(image: str | Path) -> dict:
    """What the ``.json`` beside an image says; nothing where there is none."""
    path = Path(image)
    beside = path.with_name(path.name.removesuffix(".gz")).with_suffix(".json")
    try:
        content = json.loads(beside.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s: left aside, as it cannot be read (%s)", beside, error)
        return {}
    return content if isinstance(content, dict) else {}


def times_of_volumes(image: str | Path, number: int, frame_time_s: float | None = None) -> tuple[float, ...] | None:
    """Times of the volumes of a 4D image in seconds from the first one.

    They are a list of onsets (``FrameTimesStart`` of PET, ``VolumeTiming``), multiples of the frame time, or multiples
    of the repetition time of a 2D sequence, which is that of volumes; of a 3D sequence it is that of excitations.

    Args:
        number: of volumes.
        frame_time_s: what the image's own header tells.
    """
    content = sidecar(image)
    for name in ("FrameTimesStart", "VolumeTiming"):
        values = _numbers(content.get(name))
        if len(values) == number and all(np.diff(values) > 0):
            return _from_first(values)
    if not frame_time_s and content.get("MRAcquisitionType") != "3D":
        frame_time_s = next(iter(_numbers(content.get("RepetitionTime"))), None)
    return _from_first(frame_time_s * np.arange(number)) if frame_time_s and frame_time_s > 0 else None


def times_of_files(images: Sequence[str | Path]) -> tuple[float, ...] | None:
    """Times of 3D images in seconds from the first one, in their order.

    They are the first of acquisition time, trigger delay (in ms, as dcm2niix writes it) and frame time that every
    side-car holds and that tells all scans apart.
    """
    contents = [sidecar(image) for image in images]
    for read in (_acquisition_s, _trigger_s, _frame_s):
        values = [read(content) for content in contents]
        if None not in values and len(set(values)) == len(values) > 1:
            return _from_first(values)
    return None


def _acquisition_s(content: dict) -> float | None:
    """``AcquisitionDateTime``, or ``AcquisitionTime``, which is that of the day (9:05:07.5 for 09:05:07.5)."""
    time = str(content.get("AcquisitionTime", ""))
    of_the_day = f"1970-01-01T{'0' if time[1:2] == ':' else ''}{time}"
    for moment in (str(content.get("AcquisitionDateTime", "")), of_the_day):
        try:
            return (datetime.fromisoformat(moment).replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()
        except ValueError:
            continue
    return None


def _trigger_s(content: dict) -> float | None:
    return next((value / 1000 for value in _numbers(content.get("TriggerDelayTime"))), None)


def _frame_s(content: dict) -> float | None:
    return next(iter(_numbers(content.get("FrameTimesStart"))), None)


def _numbers(value: object) -> list[float]:
    values = value if isinstance(value, list) else [value]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    return [float(v) for v in numbers if abs(v) < _LARGEST]  # NaN is not


def _from_first(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(float(value) - float(values[0]), 6) for value in values)
