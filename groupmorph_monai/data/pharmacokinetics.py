"""Contrast uptake: population arterial input function, extended Tofts model, spoiled gradient echo."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["concentration", "parker_aif", "spgr_signal"]


def parker_aif(times_s: ArrayLike) -> NDArray:
    """Plasma concentration (mmol/l) at ``times_s`` after arrival: the population average of Parker et al. 2006 (MRM
    56:993, Eq. 1 and Table 1), divided by 1 - haematocrit with Hct = 0.42; 0 before arrival."""
    minutes = np.asarray(times_s, dtype=float) / 60
    after = np.maximum(minutes, 0)
    blood = 1.050 * np.exp(-0.1685 * after) / (1 + np.exp(-38.078 * (after - 0.483)))
    for area, centre, width in ((0.809, 0.17046, 0.0563), (0.330, 0.365, 0.132)):
        blood = blood + area / (width * np.sqrt(2 * np.pi)) * np.exp(-((after - centre) ** 2) / (2 * width**2))
    return np.where(minutes < 0, 0, blood) / (1 - 0.42)


def concentration(times_s: ArrayLike, ktrans_per_min: float, ve: float, vp: float) -> NDArray:
    """Tissue concentration (mmol/l) at ``times_s`` after arrival by the extended Tofts model (Tofts et al. 1999, JMRI
    10:223): ``vp Cp(t) + Ktrans int Cp(s) exp(-Ktrans/ve (t - s)) ds``, integrated on a 0.5 s grid by the trapezoidal
    rule."""
    times_s = np.asarray(times_s, dtype=float)
    step = 0.5
    fine = np.arange(0, max(times_s.max(), 0) + 2 * step, step)
    plasma = parker_aif(fine)
    decay = np.exp(-ktrans_per_min / ve * fine / 60)
    leaked = np.convolve(plasma, decay)[: fine.size] - 0.5 * (plasma * decay[0] + plasma[0] * decay)
    curve = vp * plasma + ktrans_per_min * leaked * step / 60
    return np.where(times_s < 0, 0, np.interp(times_s, fine, curve))


def spgr_signal(
    concentration_mmol: ArrayLike,
    t10_s: float,
    proton_density: float = 1.0,
    relaxivity: float = 4.5,
    repetition_time_s: float = 0.005,
    flip_angle_deg: float = 12.0,
) -> NDArray:
    """Steady-state spoiled gradient-echo signal of tissue with native ``t10_s`` holding gadolinium of ``relaxivity``
    (1/(s mmol/l)); T2* decay is left out, as at an echo time of 2 ms."""
    rate = 1 / t10_s + relaxivity * np.asarray(concentration_mmol, dtype=float)
    e1 = np.exp(-repetition_time_s * rate)
    angle = np.deg2rad(flip_angle_deg)
    return proton_density * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)
