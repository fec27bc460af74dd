"""Parameters of the MR sequence, from DICOM headers or the JSON sidecars of dcm2niix."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..reading.sidecars import sidecar
from ..series import Series

_SPREAD = 0.05  # share of the value by which scans may differ: headers round, and scanners fine-tune
# Each parameter's DICOM name, its unit there, and its names in a sidecar, where times are in seconds.
_NAMES = {
    "repetition_time_s": ("RepetitionTime", 1e-3, ("RepetitionTimeExcitation", "RepetitionTime")),
    "flip_angle_deg": ("FlipAngle", 1.0, ("FlipAngle",)),
    "field_strength_t": ("MagneticFieldStrength", 1.0, ("MagneticFieldStrength",)),
}
LARGEST = {"repetition_time_s": 1, "flip_angle_deg": 180, "field_strength_t": 20}
_SETTINGS = {"repetition_time_s": "repetition_time_s", "flip_angle_deg": "flip_angle_deg", "field_strength_t": "t10_s"}


def sequence_parameter(series: Series, name: str) -> tuple[float, str] | None:
    """Read a parameter of the sequence, which must be the same for all scans.

    Args:
        name: "repetition_time_s", from one excitation to the next, "flip_angle_deg" or "field_strength_t".

    Returns:
        The value, and a description of its source; None if no header states it.

    Raises:
        InputError: If the scans were acquired with different values, or a value is above `LARGEST`.
    """
    values = list(_values(series, name))
    if not values:
        return None
    for value, source in values:
        if value > LARGEST[name]:
            raise InputError(
                f"--kinetics: expected {name} up to {LARGEST[name]} in the {source}, got {value:g}; correct it, or use "
                f"--set kinetics_{_SETTINGS[name]}"
            )
    numbers = [value for value, _ in values]
    if max(numbers) > (1 + _SPREAD) * min(numbers):
        listed = ", ".join(f"{number:g}" for number in numbers)
        raise InputError(
            f"--kinetics: expected the same {name} in all scans, got {listed}; omit those that differ, or set "
            f"the value of all with --set kinetics_{_SETTINGS[name]}"
        )
    return values[0]


def _values(series: Series, name: str) -> Iterator[tuple[float, str]]:
    """Yield the value of each scan whose header states it, and a description of its source."""
    in_dicom, unit, in_sidecars = _NAMES[name]
    # BIDS and some scanners also call the time from one volume to the next a repetition time.
    most = np.inf
    if name == "repetition_time_s" and series.times_s is not None and len(series.times_s) > 1:
        most = 0.5 * np.abs(np.diff(series.times_s)).min()
    for planes in series.slices or ():
        value = planes[0].number(in_dicom)
        if value and 0 < unit * value < most:
            yield unit * value, f"DICOM header, {in_dicom}"
    for path in dict.fromkeys(frame.path for frame in series.frames):
        content = sidecar(path)
        for key in in_sidecars:
            value = content.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < most:
                yield float(min(value, sys.float_info.max)), f"sidecar of {Path(path).name}, {key}"
                break
