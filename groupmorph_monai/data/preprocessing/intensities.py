"""Range and noise of the intensities of a scan."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

NOISE_VARIANCE = 0.02**2  # variance in a window below which contrast is ignored, intensities in [0, 1]
_BACKGROUND_SHARE = 0.01  # share of voxels with the lowest value above which they count as background


def intensity_range(values: np.ndarray, percentiles: Sequence[float]) -> tuple[float, float]:
    """Compute two percentiles of intensities, without the background of masked scans, where more than 1 % of the voxels
    equal the minimum. If the two percentiles are equal, compute minimum and maximum instead.

    Args:
        values: intensities of one scan or of several, ``(N,)``.
        percentiles: lower and upper percentile, 0 to 100.

    Returns:
        Lower and upper bound, equal if all values are.
    """
    background = values == values.min()
    foreground = values[~background] if _BACKGROUND_SHARE < background.mean() < 1 else values
    low, high = np.percentile(foreground, percentiles)
    # The last pair is for binary masks, whose foreground has a single value.
    for least, most in ((foreground.min(), foreground.max()), (values.min(), values.max())):
        if low == high:
            low, high = least, most
    return float(low), float(high)


def scaled_to_range(values: Tensor, sample: Tensor, percentiles: Sequence[float]) -> Tensor:
    """Scale intensities to [0, 1] between two percentiles of the `intensity_range` of a ``sample``, and clip."""
    low, high = intensity_range(sample.numpy(), percentiles)
    return ((values - low) / (high - low if high > low else math.inf)).clamp(0, 1)
