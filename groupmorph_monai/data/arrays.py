"""Series of volumes in memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .series import Frame, Series
from .series_checks import checked_series, checked_times, complete_array, real_array


def series_of_arrays(volumes: Sequence[ArrayLike], affine: ArrayLike, times_s: Sequence[float] | None = None) -> Series:
    """Make a series from K volumes in memory.

    Args:
        volumes: ``(K, *S)``, or K volumes ``(*S)`` of any size; NumPy arrays or convertible to them.
        affine: ``(4, 4)``, voxel indices to RAS mm, for all volumes; or K of them.
        times_s: K acquisition times in seconds.

    Raises:
        InputError: If the input is invalid; with a one-line message.
    """
    number = len(volumes)
    affines = complete_array(affine, "affine")
    if affines.shape not in ((4, 4), (number, 4, 4)):
        raise InputError(f"affine: expected (4, 4) or ({number}, 4, 4), got {affines.shape}; use RAS mm")
    affines = np.broadcast_to(affines, (number, 4, 4))
    frames = tuple(_frame_of_array(v, np.array(a), f"timepoint {k}") for k, (v, a) in enumerate(zip(volumes, affines)))
    times = None if times_s is None else checked_times(times_s, number)
    if times is not None and not (np.diff(times) >= 0).all():
        raise InputError(f"times_s: expected times in ascending order, got {list(times)}; sort volumes and times")
    return checked_series(Series(frames, times_s=times), None)


def _frame_of_array(volume: ArrayLike, affine: np.ndarray, name: str) -> Frame:
    data, valid = real_array(volume, name).astype(np.float32, copy=False), unmasked(volume)
    if valid is not None and not valid.any():
        raise InputError(f"{name}: expected voxels with values, got a volume in which all are masked; correct its mask")
    return Frame(data if valid is None else np.where(valid, data, np.float32("nan")), affine, name, valid)


def unmasked(values: ArrayLike) -> np.ndarray | None:
    """Return where a masked array of NumPy has values; None for other arrays."""
    return np.logical_not(values.mask) if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values) else None
