"""Fill values of voxels outside the measured field of view."""

import logging

import numpy as np

__all__ = ["without_fill"]

logger = logging.getLogger(__name__)
_FILL_SHARE = 0.001  # minimum share of voxels that have the fill value
_FILL_GAP = 0.2  # gap between the fill value and other values, as a share of their range


def without_fill(data: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Detect and replace a fill value, such as -2048 outside the circular field of view of CT: a negative minimum that
    occurs on the border of the volume and is separated from other values by a gap.

    0 is not a fill value, as it is the value of air and of masked-out voxels in magnitude images.

    Args:
        data: one volume.
        path: its file, for messages.

    Returns:
        The volume with the fill value replaced by the smallest measured value, and a mask that is True where the volume
        was measured, or None if there is no fill value.
    """
    fill = data.min()
    filled = data == fill
    on_border = any(filled.take(end, axis).any() for axis in range(3) for end in (0, -1))
    if fill >= 0 or filled.mean() < _FILL_SHARE or not on_border:
        return data, None
    measured = data[~filled]
    low, high = np.percentile(measured, (1, 99))
    bound = fill + _FILL_GAP * (high - low)
    # The rim of an interpolated scan has values between the fill value and its neighbours.
    if low == high or (measured < bound).sum() > 0.1 * filled.sum():
        return data, None
    valid = data >= bound
    logger.info("%s: %.3g in %.1f %% of the voxels is a fill value", path, fill, 100 * filled.mean())
    return np.where(valid, data, data[valid].min()), valid
