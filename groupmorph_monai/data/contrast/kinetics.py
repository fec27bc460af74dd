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

from ...errors import InputError
from ...space.geometry import Transform
from ..reading.regions import inside_region, read_region
from ..series import Series
from .enhancement import (
    ENHANCING,
    arrival_of_agent_s,
    enhancement_ratio,
    has_signal,
    mean_rise,
    peak_enhancement_percent,
    time_to_peak_s,
)
from .pharmacokinetics import parker_aif, relaxation_rate, uptake, weinmann_aif
from .sequence_parameters import sequence_parameter

__all__ = ["KINETIC_MAPS", "Kinetics", "ToftsFit", "kinetic_maps"]

KINETIC_MAPS = (
    "ktrans",
    "ktrans_before",
    "kinetic_r2",
    "kinetic_r2_before",
    "enhancement",
    "enhancement_ratio",
    "time_to_peak_s",
)
logger = logging.getLogger(__name__)
_INPUTS = {"parker": parker_aif, "weinmann": weinmann_aif}
_LEAST_TIMES = {"tofts": 4, "extended_tofts": 5}  # one more than there are unknowns, and the baseline
_KEP_PER_MIN = np.geomspace(0.02, 10, 100)  # within 3 % of any between
_LEAST_VOXELS = 8
_ASSUMED = {
    "repetition_time_s": (0.005, "assumed, usual of breast DCE-MRI"),
    "flip_angle_deg": (12.0, "assumed, usual of breast DCE-MRI"),
    "t10_s": (1.5, "assumed, of lesions and glands at 3 T"),
}
_FIELD_T = 3.0  # at which T1 is the assumed one
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
        t10_s: native relaxation time T1 of the tissue of interest, the same everywhere; None for what `for_series`
            finds, as for the next two.
        repetition_time_s, flip_angle_deg: of the sequence.
        relaxivity: of the agent, 1/(s mmol/l).
        arrival_s: when the agent arrives, after the first scan; None for half way between the last scan without and the
            first one with agent, as curves sampled once a minute do not tell it: an arrival of least residual missed
            that of the package's phantoms by up to 24 s.
        mask: file drawn on the scan on whose grid the results lie, or one for each scan: only what is above 0 in it is
            fitted; None for all tissue.
    """

    model: str = "tofts"
    arterial_input: str = "parker"
    t10_s: float | None = None
    repetition_time_s: float | None = None
    flip_angle_deg: float | None = None
    relaxivity: float = 4.5
    arrival_s: float | None = None
    mask: str | Sequence[str] | None = None

    def check(self, series: Series, home: int = 0) -> None:
        """Refuse, with an InputError, a series whose kinetics cannot be fitted; warn of what has to be assumed."""
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
        if self.mask:
            read_region(self.mask, series, home)
        self._warn_of_assumptions(series)

    def _warn_of_assumptions(self, series: Series) -> None:
        fit, sources = self.for_series(series)
        if any(sources[name].startswith("assumed") for name in ("repetition_time_s", "flip_angle_deg")):
            logger.warning(
                "--kinetics: no header tells the repetition time and flip angle, so those of a usual sequence count; "
                "Ktrans follows them: --set kinetics_repetition_time_s and kinetics_flip_angle_deg"
            )
        field = sequence_parameter(series, "field_strength_t")
        if field and self.t10_s is None and abs(field[0] - _FIELD_T) > 0.5:
            logger.warning(
                "--kinetics: a native T1 of %g s is that of lesions and glands at %g T, but the %s says %g T, where T1 "
                "differs; Ktrans follows it: --set kinetics_t10_s",
                fit.t10_s,
                _FIELD_T,
                field[1],
                field[0],
            )

    def for_series(self, series: Series) -> tuple["ToftsFit", dict[str, str]]:
        """Fill in the parameters of the sequence that are None: those of the headers, or else usual ones.

        Returns: the fit, and of each of these parameters where its value comes from.
        """
        values, sources = {}, {}
        for name, assumed in _ASSUMED.items():
            value = getattr(self, name)
            if value is not None:
                values[name], sources[name] = value, "given"
            else:
                in_header = None if name == "t10_s" else sequence_parameter(series, name)
                values[name], sources[name] = in_header or assumed
        return replace(self, **values), sources

    def fit_series(
        self,
        series: Series,
        home: int,
        native: np.ndarray,
        warped: np.ndarray,
        seen: np.ndarray,
        transform: Transform | None = None,
    ) -> dict[str, object] | None:
        """Fit a series as `before_and_after` does, with the parameters that its headers tell.

        Args:
            home: index of the scan on whose grid the volumes lie, and on which the mask was drawn.
            transform: from the common space to that scan.
        Returns: what `before_and_after` gives, and ``sources``, of each parameter of the sequence.
        """
        fit, sources = self.for_series(series)
        if self.mask:
            seen = seen & inside_region(read_region(self.mask, series, home), series.frames[home].grid, transform)
        fits = fit.before_and_after(native, warped, seen, series.times_s)
        return fits and {**fits, "sources": sources}

    def before_and_after(
        self, native: np.ndarray, warped: np.ndarray, seen: np.ndarray, times_s: Sequence[float]
    ) -> dict[str, object] | None:
        """Fit a series before and after registration, with one time of arrival, which the aligned series tells.

        Args:
            native, warped: ``(K, *S)``, on one grid.
            seen: ``(*S)`` bool, where every scan has seen the tissue, before and after, and where a fit is wanted.
            times_s: K acquisition times.
        Returns: ``before`` and ``after``, `Kinetics`; ``enhancing``, ``(*S)`` bool, where the aligned series takes up
            contrast agent; ``enhancement``, `peak_enhancement_percent`, ``enhancement_ratio`` and ``time_to_peak_s`` of
            the aligned series, ``(*S)``; ``settings``, all of the fit's. None, with a warning, where nothing takes
            contrast agent up.
        """
        times = np.asarray(times_s, dtype=float) - times_s[0]
        body = has_signal(native[0], seen) & has_signal(warped[0], seen)
        enhancing = body & (mean_rise(warped) > ENHANCING)
        if enhancing.sum() < _LEAST_VOXELS:
            logger.warning("--kinetics: no tissue takes up contrast agent after the first scan, so nothing was fitted")
            return None
        arrival_s = arrival_of_agent_s(warped[:, enhancing], times) if self.arrival_s is None else self.arrival_s
        return {
            "before": self.fit(native, body, times, arrival_s),
            "after": self.fit(warped, body, times, arrival_s),
            "enhancing": enhancing,
            "enhancement": np.where(body, peak_enhancement_percent(warped), 0),
            "enhancement_ratio": np.where(body, enhancement_ratio(warped, times, arrival_s), 0),
            "time_to_peak_s": np.where(body, time_to_peak_s(warped, times), 0),
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
    fitted = dict(zip(KINETIC_MAPS, (after.ktrans_per_min, before.ktrans_per_min, after.r2, before.r2)))
    return {**fitted, **{name: fits[name] for name in KINETIC_MAPS[len(fitted) :]}}
