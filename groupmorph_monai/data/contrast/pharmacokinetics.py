"""Contrast uptake: population-averaged arterial input, extended Tofts model and spoiled gradient echo signal."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

REPETITION_TIME_S, FLIP_ANGLE_DEG = 0.005, 12.0  # typical of breast DCE-MRI
RELAXIVITY = 4.5  # 1/(s mmol/l), of gadolinium chelates at 3 T and 37 degrees Celsius
_STEP_S = 0.5  # step of the numerical convolution


def parker_aif(times_s: ArrayLike) -> NDArray[np.float64]:
    """Compute the plasma concentration (mmol/l) at ``times_s`` after arrival; 0 before.

    Source: population average of the blood concentration (Parker et al. 2006, MRM 56:993, Eq. 1 and Table 1), divided
    by 1 - Hct, with a haematocrit Hct of 0.42.
    """
    minutes = np.asarray(times_s, dtype=float) / 60
    after = np.maximum(minutes, 0)
    blood = 1.050 * np.exp(-0.1685 * after) / (1 + np.exp(-38.078 * (after - 0.483)))
    for area, centre, width in ((0.809, 0.17046, 0.0563), (0.330, 0.365, 0.132)):
        blood = blood + area / (width * np.sqrt(2 * np.pi)) * np.exp(-((after - centre) ** 2) / (2 * width**2))
    return np.where(minutes < 0, 0, blood) / (1 - 0.42)


def weinmann_aif(times_s: ArrayLike) -> NDArray[np.float64]:
    """Compute the plasma concentration (mmol/l) at ``times_s`` after arrival of a dose of 0.1 mmol/kg; 0 before. The
    model does not include the first pass, which scans a minute apart do not resolve.

    Source: two exponentials that Tofts and Kermode (1991, MRM 17:357) fitted to the blood samples of Weinmann et al.
    (1984).
    """
    minutes = np.asarray(times_s, dtype=float) / 60
    after = np.maximum(minutes, 0)
    return np.where(minutes < 0, 0, 0.1 * (3.99 * np.exp(-0.144 * after) + 4.78 * np.exp(-0.0111 * after)))


def uptake(
    times_s: ArrayLike, kep_per_min: float, aif: Callable[[ArrayLike], NDArray[np.float64]] = parker_aif
) -> NDArray[np.float64]:
    """Compute the tissue concentration (mmol/l) of the agent that has leaked from the plasma, for a Ktrans of 1/min:
    ``int Cp(s) exp(-kep (t - s)) ds``, by the trapezoidal rule with steps of 0.5 s.

    Args:
        times_s: times after arrival; the concentration is 0 before.
        kep_per_min: rate constant kep = Ktrans / ve.
        aif: arterial input function Cp.
    """
    times_s = np.asarray(times_s, dtype=float)
    fine = np.arange(0, max(times_s.max(), 0) + 2 * _STEP_S, _STEP_S)
    plasma, decay = aif(fine), np.exp(-kep_per_min * fine / 60)
    leaked = np.convolve(plasma, decay)[: fine.size] - 0.5 * (plasma * decay[0] + plasma[0] * decay)
    return np.where(times_s < 0, 0, np.interp(times_s, fine, leaked * _STEP_S / 60))


def concentration(times_s: ArrayLike, ktrans_per_min: float, ve: float, vp: float) -> NDArray[np.float64]:
    """Compute the tissue concentration (mmol/l) at ``times_s`` after arrival by the extended Tofts model (Tofts et al.
    1999, JMRI 10:223) with Parker's arterial input: ``vp Cp(t) + Ktrans int Cp(s) exp(-Ktrans/ve (t - s)) ds``."""
    return vp * parker_aif(times_s) + ktrans_per_min * uptake(times_s, ktrans_per_min / ve)


def spgr_signal(
    concentration_mmol: ArrayLike,
    t10_s: float,
    proton_density: float = 1.0,
    flip_angle_deg: float = FLIP_ANGLE_DEG,
) -> NDArray[np.float64]:
    """Compute the steady-state signal of a spoiled gradient echo with a repetition time of 5 ms, without T2* decay, as
    for an echo time of 2 ms.

    Args:
        concentration_mmol: concentration of the contrast agent, mmol/l.
        t10_s: native T1 of the tissue.
        proton_density: factor of the signal.
        flip_angle_deg: flip angle of the sequence.
    """
    rate = 1 / t10_s + RELAXIVITY * np.asarray(concentration_mmol, dtype=float)
    e1 = np.exp(-REPETITION_TIME_S * rate)
    angle = np.deg2rad(flip_angle_deg)
    return proton_density * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)


def relaxation_rate(
    enhancement: ArrayLike,
    t10_s: float,
    repetition_time_s: float = REPETITION_TIME_S,
    flip_angle_deg: float = FLIP_ANGLE_DEG,
) -> NDArray[np.float64]:
    """Compute the relaxation rate R1 (1/s) from the relative signal of a spoiled gradient echo, by inversion of
    `spgr_signal`.

    Args:
        enhancement: signal over native signal; clipped at the signal of a T1 of 0.01 s, beyond which it hardly depends
            on R1.
        t10_s: native T1 of the tissue.
        repetition_time_s, flip_angle_deg: parameters of the sequence.
    """
    cosine = np.cos(np.deg2rad(flip_angle_deg))
    native, brightest = ((1 - e1) / (1 - cosine * e1) for e1 in np.exp(-repetition_time_s / np.array([t10_s, 0.01])))
    signal = np.clip(np.asarray(enhancement, dtype=float) * native, 0, brightest)
    return -np.log((1 - signal) / (1 - cosine * signal)) / repetition_time_s
