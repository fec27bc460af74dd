"""Values that stand where a scanner or a program saw nothing."""

import logging

import numpy as np

__all__ = ["without_fill"]

logger = logging.getLogger(__name__)
_FILL_SHARE = 0.001  # of voxels, from which on their one value may be a fill value
_FILL_GAP = 0.2  # between it and the others, as a share of these others' range


def without_fill(data: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Find the fill value that stands where a scanner or a program saw nothing, such as -2048 around the round field of
    view of CT: negative, the minimum, on the volume's border, and with next to nothing between it and the other values.

    0 is no such value: it is what air and what is masked out read in a magnitude image.

    Args:
        data: one volume.
        path: of its file, for messages.
    Returns: the volume, its smallest measured value in place of the fill value, and a mask that is True where it was
        measured; None where there is no fill value.
    """
    fill = data.min()
    filled = data == fill
    on_border = any(filled.take(end, axis).any() for axis in range(3) for end in (0, -1))
    if fill >= 0 or filled.mean() < _FILL_SHARE or not on_border:
        return data, None
    others = data[~filled]
    low, high = np.percentile(others, (1, 99))
    bound = fill + _FILL_GAP * (high - low)
    # Where the scan was interpolated, its rim holds values between the fill value and what lies beside it.
    if low == high or (others < bound).sum() > 0.1 * filled.sum():
        return data, None
    valid = data >= bound
    logger.info("%s: %.3g in %.1f %% of the voxels is a fill value", path, fill, 100 * filled.mean())
    return np.where(valid, data, data[valid].min()), valid
