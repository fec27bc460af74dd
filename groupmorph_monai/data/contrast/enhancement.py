"""Enhancement of a DCE-MRI series without a model: how much the signal rises, when, and whether it washes out."""

import numpy as np
from numpy.typing import ArrayLike

ENHANCING = 0.2  # minimum relative rise of the signal in tissue that takes up contrast agent
_BODY = 0.05  # share of the 99th percentile of the signal, below which is air
_LEAST_SHARE, _LEAST_SIGNAL = 1e-6, 1e-24  # lowest divisor as a share of a scan's maximum, which may be 0 or less
_ARRIVED = 0.2  # share of the greatest mean rise above which the agent has arrived; noise reaches a tenth of it
_LARGEST_RATIO = 10.0  # bound of early over late enhancement, which has no limit where hardly any agent is left


def has_signal(first: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Separate tissue from air in one scan.

    Args:
        first: ``(*S)``, the scan.
        covered: ``(*S)`` bool, voxels to use.

    Returns:
        ``(*S)`` bool.
    """
    return covered & (first > _BODY * np.percentile(first[covered], 99) if covered.any() else covered)


def positive(signal: np.ndarray) -> np.ndarray:
    """Bound a signal from below by a millionth of its maximum, in any unit, so that others can be divided by it."""
    return np.maximum(signal, _LEAST_SHARE * max(float(signal.max(initial=0)), _LEAST_SIGNAL))


def mean_rise(volumes: np.ndarray) -> np.ndarray:
    """Compute the relative rise of the signal: the mean of the later scans of ``(K, *S)`` over the first, minus 1."""
    return volumes[1:].mean(axis=0) / positive(volumes[0]) - 1


def peak_enhancement_percent(volumes: np.ndarray) -> np.ndarray:
    """Compute the greatest rise of the signal ``(K, *S)`` over the first scan, in percent of it; 0 in air."""
    rise = 100 * (volumes[1:].max(axis=0) / positive(volumes[0]) - 1)
    return np.where(has_signal(volumes[0], np.ones(rise.shape, bool)), rise, 0).astype(np.float32)


def enhancement_ratio(volumes: np.ndarray, times_s: ArrayLike, arrival_s: float) -> np.ndarray:
    """Compute the signal enhancement ratio ``(S_early - S_0) / (S_last - S_0)``, where the early scan is the first one
    with contrast agent. Below 1, tissue still takes up the agent; above 1, the agent washes out.

    Source: Li et al., Invasive Breast Cancer: Predicting Disease Recurrence by Using High-Spatial-Resolution Signal
    Enhancement Ratio Imaging, Radiology 2008, doi:10.1148/radiol.2481070846.

    Args:
        volumes: ``(K, *S)``.
        times_s: K acquisition times, from the first scan.
        arrival_s: arrival time of the agent, from the first scan.

    Returns:
        ``(*S)`` float32, from 0 to 10; 0 where the tissue does not enhance.
    """
    first = min(int((np.asarray(times_s) <= arrival_s).sum()), len(volumes) - 1)
    early, late = (np.maximum(volumes[k] - volumes[0], 0) for k in (first, -1))
    ratio = early / np.maximum(late, positive(early) / _LARGEST_RATIO)
    return np.where(_enhances(volumes), ratio, 0).astype(np.float32)


def time_to_peak_s(volumes: np.ndarray, times_s: ArrayLike) -> np.ndarray:
    """Find the time of the brightest scan at each voxel.

    Args:
        volumes: ``(K, *S)``.
        times_s: K acquisition times, from the first scan.

    Returns:
        ``(*S)`` float32; 0 where the tissue does not enhance.
    """
    peak = np.asarray(times_s, dtype=np.float32)[volumes.argmax(axis=0)]
    return np.where(_enhances(volumes), peak, 0).astype(np.float32)


def arrival_of_agent_s(curves: np.ndarray, times_s: np.ndarray) -> float:
    """Estimate the arrival time of the agent, halfway between the last scan without agent and the first one with it.

    Args:
        curves: ``(K, N)``, signal of tissue that enhances.
        times_s: K acquisition times, from the first scan.
    """
    rise = curves.mean(axis=1) - curves[0].mean()
    first = max(1, int((rise > _ARRIVED * rise.max()).argmax()))
    return float(times_s[first - 1] + times_s[first]) / 2


def _enhances(volumes: np.ndarray) -> np.ndarray:
    return volumes[1:].max(axis=0) > (1 + ENHANCING) * positive(volumes[0])
