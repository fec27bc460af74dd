"""Contrast kinetics of a series, voxel by voxel: Ktrans by Tofts' model, and how well that explains the curves.

The model is linear in Ktrans and vp once kep is known, so both have a closed form for each kep of a fine grid, and the
kep that leaves the least residual is the least-squares fit (variable projection; Golub and Pereyra 1973, SIAM Journal
on Numerical Analysis 10:413; in PET the basis function method, Gunn et al. 1997, NeuroImage 6:279). Unlike the linear
form of Murase (2004, MRM 51:858) it does not integrate the measured curves, which scans a minute apart do not resolve.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .pharmacokinetics import parker_aif, relaxation_rate, uptake, weinmann_aif
from .series import Series

__all__ = ["KINETIC_MAPS", "Kinetics", "ToftsFit", "kinetic_maps", "peak_enhancement_percent"]

KINETIC_MAPS = ("ktrans", "ktrans_before", "kinetic_r2", "kinetic_r2_before")
logger = logging.getLogger(__name__)
_INPUTS = {"parker": parker_aif, "weinmann": weinmann_aif}
_LEAST_TIMES = {"tofts": 4, "extended_tofts": 5}  # one more than there are unknowns, and the baseline
_KEP_PER_MIN = np.geomspace(0.02, 10, 100)  # within 3 % of any between
_BODY = 0.05  # of the 99th percentile of the signal: below is air
_UPTAKE = 0.2  # mean rise of the signal from which tissue enhances: a share of what it was before
_LEAST_VOXELS = 8
_ARRIVED = 0.2  # of the greatest mean rise: the agent has arrived; noise in the first scan looks like a tenth
_USUAL_TIME_S, _USUAL_ANGLE_DEG = 0.005, 12.0  # of breast DCE-MRI
_CHUNK = 16384  # voxels at once


@dataclass(frozen=True)
class Kinetics:
    """The fit of one series.

    Args:
        ktrans_per_min: ``(*S)``, 0 where nothing was fitted.
        r2: ``(*S)``, share of each curve's variance that the model explains, from 0; 0 where nothing was fitted.
        residual_percent: ``(*S)``, root mean square residual over the root mean square concentration; NaN where nothing
            was fitted.
    """

    ktrans_per_min: np.ndarray
    r2: np.ndarray
    residual_percent: np.ndarray


@dataclass(frozen=True)
class ToftsFit:
    """Fit of Tofts' model to DCE-MRI by spoiled gradient echoes, such as FLASH, SPGR, VIBE or THRIVE.

    Args:
        model: "tofts", or "extended_tofts", which has blood plasma in each voxel, too.
        arterial_input: "parker" or "weinmann", a population's.
        t10_s: native relaxation time T1 of the tissue of interest, the same everywhere.
        repetition_time_s, flip_angle_deg: of the sequence; None for what `for_series` finds.
        relaxivity: of the agent, 1/(s mmol/l).
        arrival_s: when the agent arrives, after the first scan; None for half way between the last scan without and the
            first one with agent, as curves sampled once a minute do not tell it: an arrival of least residual missed
            that of the package's phantoms by up to 24 s.
    """

    model: str = "tofts"
    arterial_input: str = "parker"
    t10_s: float = 1.5
    repetition_time_s: float | None = None
    flip_angle_deg: float | None = None
    relaxivity: float = 4.5
    arrival_s: float | None = None

    def check(self, series: Series) -> None:
        """Refuse, with an InputError, a series whose kinetics cannot be fitted."""
        for name, value, choices in (
            ("kinetics_model", self.model, _LEAST_TIMES),
            ("kinetics_arterial_input", self.arterial_input, _INPUTS),
        ):
            if value not in choices:
                raise InputError(f"{name}: expected {' or '.join(choices)}, got {value!r}")
        first, least = series.frames[0].path, _LEAST_TIMES[self.model]
        if series.times_s is None:
            raise InputError(
                f"--kinetics: expected a series with acquisition times, got none with {first}; give DICOM, a 4D NIfTI "
                "with a frame time, or side-cars of dcm2niix with AcquisitionTime"
            )
        if len(series.frames) < least:
            raise InputError(
                f"--kinetics: expected {least} scans or more for {self.model}, got {len(series.frames)}; leave it out"
            )
        since_first = np.subtract(series.times_s, series.times_s[0])
        if np.any(np.diff(since_first) <= 0):
            times = ", ".join(f"{time:g}" for time in since_first)
            raise InputError(
                f"--kinetics: expected scans in the order of time, got them {times} s after the first; give them in "
                "that order"
            )
        if self.arrival_s is not None and not self.arrival_s < since_first[-1]:
            raise InputError(
                f"kinetics_arrival_s: expected a time before the last scan at {since_first[-1]:g} s, got "
                f"{self.arrival_s:g}; count seconds from the first scan"
            )

    def for_series(self, series: Series) -> "ToftsFit":
        """Fill in a repetition time and flip angle that are None: those of the DICOM header, or else of a usual
        sequence."""
        planes = series.slices[0][:1] if series.slices else ()
        header = {
            name: next((plane.number(name) for plane in planes), None) for name in ("RepetitionTime", "FlipAngle")
        }
        time_s = self.repetition_time_s or (header["RepetitionTime"] and header["RepetitionTime"] / 1000)
        angle_deg = self.flip_angle_deg or header["FlipAngle"]
        if not (time_s and angle_deg):
            logger.warning(
                "--kinetics: no header tells the repetition time and flip angle, so those of a usual sequence count; "
                "Ktrans follows them: --set kinetics_repetition_time_s and kinetics_flip_angle_deg"
            )
        return replace(self, repetition_time_s=time_s or _USUAL_TIME_S, flip_angle_deg=angle_deg or _USUAL_ANGLE_DEG)

    def before_and_after(
        self, native: np.ndarray, warped: np.ndarray, seen: np.ndarray, times_s: Sequence[float]
    ) -> dict[str, object] | None:
        """Fit a series before and after registration, with one time of arrival, which the aligned series tells.

        Args:
            native, warped: ``(K, *S)``, on one grid.
            seen: ``(*S)`` bool, where every scan has seen the tissue, before and after.
            times_s: K acquisition times.
        Returns: ``before`` and ``after``, `Kinetics`; ``enhancing``, ``(*S)`` bool, where the aligned series takes up
            contrast agent; ``settings``, all of the fit's. None, with a warning, where nothing takes it up.
        """
        times = np.asarray(times_s, dtype=float) - times_s[0]
        body = _body(native[0], seen) & _body(warped[0], seen)
        enhancing = body & (_rise(warped) > _UPTAKE)
        if enhancing.sum() < _LEAST_VOXELS:
            logger.warning("--kinetics: no tissue takes up contrast agent after the first scan, so nothing was fitted")
            return None
        arrival_s = _arrival_s(warped[:, enhancing], times) if self.arrival_s is None else self.arrival_s
        return {
            "before": self.fit(native, body, times, arrival_s),
            "after": self.fit(warped, body, times, arrival_s),
            "enhancing": enhancing,
            "settings": {**asdict(self), "arrival_s": arrival_s},
        }

    def fit(self, volumes: np.ndarray, mask: np.ndarray, times_s: Sequence[float], arrival_s: float) -> Kinetics:
        """Fit every curve inside a mask.

        Args:
            volumes: ``(K, *S)``, signal.
            mask: ``(*S)`` bool.
            times_s: K, from the first scan.
            arrival_s: of the agent, from the first scan.
        """
        curves, times = volumes[:, mask], np.asarray(times_s, dtype=float)
        ktrans, r2, residual = (np.full(mask.shape, fill, np.float32) for fill in (0, 0, np.nan))
        aif, since = _INPUTS[self.arterial_input], times - arrival_s
        basis = torch.from_numpy(np.stack([uptake(since, kep, aif) for kep in _KEP_PER_MIN])).float()
        plasma, parts = torch.from_numpy(aif(since)).float(), []
        for part in np.array_split(curves, max(1, curves.shape[1] // _CHUNK), axis=1):
            concentration = self._concentration(part, times, arrival_s)
            best_ktrans, squares = self._solve(concentration, basis, plasma)
            variance = (concentration - concentration.mean(0)).square().sum(0).clamp_min(1e-12)
            power = concentration.square().sum(0).clamp_min(1e-12)
            share = 100 * (squares / power).sqrt()
            parts.append(torch.stack([best_ktrans, (1 - squares / variance).clamp(0, 1), share]))
        ktrans[mask], r2[mask], residual[mask] = torch.cat(parts, dim=1).numpy()
        return Kinetics(ktrans, r2, residual)

    def _concentration(self, curves: np.ndarray, times: np.ndarray, arrival_s: float) -> Tensor:
        """``(K, N)`` signal to mmol/l; the native signal is the mean of the scans before the arrival."""
        native = curves[: max(1, int((times <= arrival_s).sum()))].mean(axis=0)
        ratio = curves / np.maximum(native, 1e-6)
        rate = relaxation_rate(ratio, self.t10_s, self.repetition_time_s, self.flip_angle_deg)
        return torch.from_numpy((rate - 1 / self.t10_s) / self.relaxivity).float()

    def _solve(self, concentration: Tensor, basis: Tensor, plasma: Tensor) -> tuple[Tensor, Tensor]:
        """Ktrans (1/min) and the sum of squared residuals of curves ``(K, N)``, where Ktrans and vp are not negative
        and ve is at most 1.

        Args:
            basis: ``(M, K)``, what a Ktrans of 1/min takes up at each kep.
            plasma: ``(K,)``, mmol/l.
        """
        most = torch.from_numpy(_KEP_PER_MIN).float()[:, None]  # ve = Ktrans / kep
        leak, size = basis @ concentration, basis.square().sum(1, keepdim=True).clamp_min(1e-12)  # (M, N), (M, 1)
        ktrans = (leak / size).clamp_min(0).minimum(most)
        gain = ktrans * (2 * leak - ktrans * size)
        if self.model == "extended_tofts":
            blood, volume = plasma @ concentration, plasma.square().sum().clamp_min(1e-12)
            mixed = (basis @ plasma)[:, None]
            determinant = (size * volume - mixed**2).clamp_min(1e-9 * size * volume)
            joint = ((leak * volume - blood * mixed) / determinant).clamp_min(0).minimum(most)
            vp = (blood - joint * mixed) / volume
            ktrans, vp = torch.where(vp < 0, ktrans, joint), vp.clamp_min(0)
            gain = ktrans * (2 * leak - ktrans * size) + vp * (2 * blood - vp * volume - 2 * ktrans * mixed)
        best = gain.argmax(dim=0, keepdim=True)
        squares = (concentration.square().sum(0) - gain.gather(0, best)[0]).clamp_min(0)
        return ktrans.gather(0, best)[0], squares


def kinetic_maps(fits: Mapping[str, object] | None) -> dict[str, np.ndarray]:
    """The maps of `ToftsFit.before_and_after` that are written, by the names of `KINETIC_MAPS`; none where there is no
    fit."""
    if not fits:
        return {}
    after, before = fits["after"], fits["before"]
    return dict(zip(KINETIC_MAPS, (after.ktrans_per_min, before.ktrans_per_min, after.r2, before.r2)))


def peak_enhancement_percent(volumes: np.ndarray) -> np.ndarray:
    """Greatest rise of the signal ``(K, *S)`` over the first scan, in percent of that; 0 in air."""
    rise = 100 * (volumes[1:].max(axis=0) / np.maximum(volumes[0], 1e-6) - 1)
    return np.where(_body(volumes[0], np.ones(rise.shape, bool)), rise, 0).astype(np.float32)


def _body(first: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Where a scan has signal."""
    return seen & (first > _BODY * np.percentile(first[seen], 99) if seen.any() else seen)


def _rise(volumes: np.ndarray) -> np.ndarray:
    """Mean of the later scans over the first, less 1."""
    return volumes[1:].mean(axis=0) / np.maximum(volumes[0], 1e-6) - 1


def _arrival_s(curves: np.ndarray, times: np.ndarray) -> float:
    """Half way between the last scan without and the first one with agent, of curves ``(K, N)`` that rise."""
    rise = curves.mean(axis=1) - curves[0].mean()
    first = max(1, int((rise > _ARRIVED * rise.max()).argmax()))
    return float(times[first - 1] + times[first]) / 2
