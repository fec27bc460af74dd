"""Fill values of voxels outside the measured field of view."""

import logging

import numpy as np

__all__ = ["without_fill"]

logger = logging.getLogger(__name__)
_FILL_SHARE = 0.001  # minimum share of voxels that have the fill value
_FILL_GAP = 0.2  # gap between the fill value and other values, as a share of their range


def without_fill(data: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Detect and replace fill values: a negative minimum that occurs on the border of the volume and is separated from
    other values by a gap, such as -2048 outside the circular field of view of CT; and slices of one value at the ends
    of an axis, such as the zero-filled end partitions of 3D MRI and the padding of resliced scans.

    Elsewhere 0 is not a fill value, as it is the value of air and of masked-out voxels in magnitude images.

    Args:
        data: one volume.
        path: its file, for messages.

    Returns:
        The volume with fill values replaced by the smallest measured value, and a mask that is True where the volume
        was measured, or None if there are no fill values.
    """
    valid = _above_fill(data, path)
    box = _measured_box(data)
    if _shape(box) != data.shape:
        logger.info(
            "%s: slices of one value at its ends: %s of %s voxels count as measured", path, _shape(box), data.shape
        )
        inside = np.zeros(data.shape, dtype=bool)
        inside[box] = True
        valid = inside if valid is None else valid & inside
    return (data, None) if valid is None else (np.where(valid, data, data[valid].min()), valid)


def _above_fill(data: np.ndarray, path: str) -> np.ndarray | None:
    """Mask voxels of a negative minimum that is a fill value; None if it is none."""
    fill = data.min()
    filled = data == fill
    on_border = any(filled.take(end, axis).any() for axis in range(3) for end in (0, -1))
    if fill >= 0 or filled.mean() < _FILL_SHARE or not on_border:
        return None
    measured = data[~filled]
    low, high = np.percentile(measured, (1, 99))
    bound = fill + _FILL_GAP * (high - low)
    # The rim of an interpolated scan has values between the fill value and its neighbours.
    if low == high or (measured < bound).sum() > 0.1 * filled.sum():
        return None
    logger.info("%s: %.3g in %.1f %% of the voxels is a fill value", path, fill, 100 * filled.mean())
    return np.asarray(data >= bound)


def _measured_box(data: np.ndarray) -> tuple[slice, ...]:
    """Crop slices of one value from both ends of each axis; the whole volume if that leaves less than two slices."""
    box = tuple(_varying(np.moveaxis(data, axis, 0)) for axis in range(3))
    return box if min(_shape(box)) > 1 else tuple(map(slice, (0, 0, 0), data.shape))


def _varying(slices: np.ndarray) -> slice:
    """Locate the first and the last slice with more than one value."""
    varying = (n for n, values in enumerate(slices) if values.min() < values.max())
    first = next(varying, 0)
    last = next((n for n in range(len(slices) - 1, first, -1) if slices[n].min() < slices[n].max()), first)
    return slice(first, last + 1)


def _shape(box: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in box)
