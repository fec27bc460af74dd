"""Changes of the scanner's clock to and from daylight saving time during a scan."""

from collections.abc import Sequence

import numpy as np

from .order import Volume, earliest

_HOUR_S, _DAY_H = 3600, 24
_HOURS = (23, 0, 1, 2)  # hours of the night in which clocks are set
_THURSDAY = 3  # 1 January 1970
_SUNDAY = 6  # when clocks are set in most countries
_NUMBERS = ("temporal position", "acquisition number", "series number", "instance number")


def clock_changes(volumes: Sequence[Volume], key: str) -> list[str]:
    """Describe where the clock may have been set during a series; one line, or none.

    If the time zone changes, too, times are in order, and none is skipped.

    Args:
        volumes: in the order of ``key``.
        key: attribute that defines the order; only acquisition times show such a change.
    """
    if key != "acquisition time":
        return []
    times = np.array(earliest(volumes, key))
    hours = (times + [volume[0].zones[key] or 0 for volume in volumes]) // _HOUR_S  # local
    return _set_back(volumes, times, hours) or _set_forward(volumes, times, hours)


def _set_back(volumes: Sequence[Volume], times: np.ndarray, hours: np.ndarray) -> list[str]:
    """Describe times that step back once by less than an hour at night in the order of the volumes' numbers, none of
    which confirms the times."""
    numbers = {label: values for label in _NUMBERS if (values := earliest(volumes, label))}
    orders = {label: np.argsort(values) for label, values in numbers.items() if len({*values}) == len(values)}
    steps = {label: np.diff(times[order]) for label, order in orders.items()}
    if any((step > 0).all() for step in steps.values()):
        return []
    for label, order in orders.items():
        k = int(steps[label].argmin())
        first = order[k + 1]  # with the new time
        if (steps[label] < 0).sum() == 1 and steps[label][k] > -_HOUR_S and hours[first] % _DAY_H in _HOURS:
            return [
                f"{volumes[first][0].file.path}: the acquisition times step back by {-steps[label][k] / 60:.3g} min in "
                f"the order of the {label}, as at the end of daylight saving time, but the scans are in the order of "
                "their times; check it, and if it is wrong, use NIfTI files, listed in order"
            ]
    return []


def _set_forward(volumes: Sequence[Volume], times: np.ndarray, hours: np.ndarray) -> list[str]:
    """Describe times that skip one hour in the night to a Sunday, while no other step takes as long."""
    weekdays = (hours // _DAY_H + _THURSDAY) % 7
    steps = np.diff(times)
    k = int(steps.argmax())
    in_night = weekdays[k + 1] == _SUNDAY and hours[k] % _DAY_H in _HOURS
    if not in_night or hours[k + 1] - hours[k] != 2 or (steps >= _HOUR_S).sum() > 1:
        return []
    return [
        f"{volumes[k + 1][0].file.path}: the acquisition times skip an hour, {steps[k] / 60:.3g} min, as at the start "
        "of daylight saving time; check it, and if it is wrong, the later times are an hour too late"
    ]
