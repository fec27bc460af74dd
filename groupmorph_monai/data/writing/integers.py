"""Integer types for images interpolated from integer volumes: half the bytes of float32, with less noise."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..series import Frame
from ..storage import IN_MEMORY, Storage

_LEVELS = 2**11  # minimum number of steps in the range of a series; rounding errors are at most half a step


class IntegerType(NamedTuple):
    """Integer type of an image file.

    Args:
        dtype: int16 or uint16.
        slope: NIfTI's ``scl_slope``, a power of two of at most 1, which keeps integers exact.
    """

    dtype: type[np.int16] | type[np.uint16]
    slope: float

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Round float32 values to those that the file can hold."""
        return np.rint(values / np.float32(self.slope)) * np.float32(self.slope)


def integer_type(
    frames: Sequence[Frame], lowest: float, highest: float, storage: Storage = IN_MEMORY
) -> IntegerType | None:
    """Choose the type in which a file holds values between ``lowest`` and ``highest`` that were interpolated from
    ``frames``, which ``storage`` may hold; None, for float32, if the frames are not integers or 16 bits are too few, as
    for a narrow range of large values."""
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return None
    for chunk in storage.chunks(len(frames)):
        if any(not np.array_equal(frame.data, np.rint(frame.data)) for frame in frames[chunk]):
            return None
    slope = min(1.0, _power_of_two_below((highest - lowest) / _LEVELS))
    for dtype in (np.int16, np.uint16):
        limits = np.iinfo(dtype)
        if limits.min * slope <= lowest and highest <= limits.max * slope:
            return IntegerType(dtype, slope)
    return None


def _power_of_two_below(x: float) -> float:
    return 2.0 ** math.floor(math.log2(max(x, 2.0**-12)))
