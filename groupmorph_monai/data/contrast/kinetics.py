"""Voxel-wise contrast kinetics of a series: Ktrans by the Tofts model, and its goodness of fit.

For a fixed kep the model is linear in Ktrans and vp, which then have a closed form. They are computed for each kep of a
fine grid, and the kep with the smallest residual is the least-squares fit (variable projection; Golub and Pereyra 1973,
SIAM Journal on Numerical Analysis 10:413; in PET the basis function method, Gunn et al. 1997, NeuroImage 6:279). Unlike
the linear form of Murase (2004, MRM 51:858) it does not integrate the measured curves, which scans a minute apart do
not resolve.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ...errors import InputError
from ...space.transforms import Transform
from ..reading.regions import check_regions, inside_region, read_region
from ..series import Series
from .enhancement import (
    ENHANCING,
    arrival_of_agent_s,
    enhancement_ratio,
    has_signal,
    mean_rise,
    peak_enhancement_percent,
    positive,
    time_to_peak_s,
)
from .pharmacokinetics import (
    FLIP_ANGLE_DEG,
    RELAXIVITY,
    REPETITION_TIME_S,
    parker_aif,
    relaxation_rate,
    uptake,
    weinmann_aif,
)
from .sequence_parameters import sequence_parameter

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
_LEAST_SCANS = {"tofts": 4, "extended_tofts": 5}  # a baseline scan, and one more than the number of unknowns
_KEP_PER_MIN = np.geomspace(0.02, 10, 100)  # candidates for kep, within 3 % of any value in between
_LEAST_VOXELS = 8  # minimum number of enhancing voxels; fewer are noise
_ASSUMED = {
    "repetition_time_s": (REPETITION_TIME_S, "assumed, typical of breast DCE-MRI"),
    "flip_angle_deg": (FLIP_ANGLE_DEG, "assumed, typical of breast DCE-MRI"),
    "t10_s": (1.5, "assumed, of lesions and glands at 3 T"),
}
_FIELD_T = 3.0  # field strength of the assumed T1
_SHORTEST_S, _LONGEST_S = 0.1, 1e5  # shortest time between 3D scans, and longest duration of an examination
_CHUNK = 16384  # voxels fitted at a time


@dataclass(frozen=True)
class Kinetics:
    """Maps of the fit of one series, ``(*S)``.

    Args:
        ktrans_per_min: transfer constant Ktrans; 0 where nothing was fitted.
        r2: share of the variance of each curve that the model explains, at least 0; 0 where nothing was fitted.
        residual_percent: root mean square residual over root mean square concentration; NaN where nothing was fitted.
    """

    ktrans_per_min: np.ndarray
    r2: np.ndarray
    residual_percent: np.ndarray


class Fits(TypedDict):
    """Kinetics of one series before and after registration.

    Args:
        before, after: fits with the same arrival time, that of the aligned series.
        enhancing: ``(*S)`` bool, where the aligned series takes up contrast agent.
        curve_maps: the maps of `KINETIC_MAPS` that need no fit, of the aligned series, ``(*S)`` each, by name.
        settings: all parameters of the fit.
        sources: source of each parameter of the sequence, if they are those of a series.
    """

    before: Kinetics
    after: Kinetics
    enhancing: np.ndarray
    curve_maps: dict[str, np.ndarray]
    settings: dict[str, Any]
    sources: NotRequired[dict[str, str]]


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """Signal of a spoiled gradient echo, such as FLASH, SPGR, VIBE or THRIVE, as a function of the concentration.

    Args:
        t10_s: native T1 of the tissue of interest, the same for all voxels; None for the value of `for_series`, as for
            the next two parameters.
        repetition_time_s, flip_angle_deg: parameters of the sequence.
        relaxivity: relaxivity of the agent, 1/(s mmol/l).
    """

    t10_s: float | None = None
    repetition_time_s: float | None = None
    flip_angle_deg: float | None = None
    relaxivity: float = RELAXIVITY

    def for_series(self, series: Series) -> tuple["SpoiledGradientEcho", dict[str, str]]:
        """Replace the parameters of the sequence that are None with those in the headers, or else by typical ones.

        Returns:
            The sequence, and the source of each of these parameters by name.
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

    def concentration(self, curves: np.ndarray, baseline: int) -> Tensor:
        """Convert signal ``(K, N)`` to concentration, mmol/l, relative to the mean of the first ``baseline`` scans."""
        if self.t10_s is None or self.repetition_time_s is None or self.flip_angle_deg is None:
            raise ValueError("expected T1, repetition time and flip angle, got None; use those of `for_series`")
        ratio = curves / positive(curves[:baseline].mean(axis=0))
        rate = relaxation_rate(ratio, self.t10_s, self.repetition_time_s, self.flip_angle_deg)
        return torch.from_numpy((rate - 1 / self.t10_s) / self.relaxivity).float()


@dataclass(frozen=True)
class ToftsFit:
    """Fit of the Tofts model to DCE-MRI.

    Args:
        model: "tofts", or "extended_tofts" with blood plasma in each voxel.
        arterial_input: population average, "parker" or "weinmann".
        sequence: sequence of the scans.
        arrival_s: arrival time of the agent, from the first scan; None for halfway between the last scan without and
            the first scan with agent. It is not fitted, as one scan per minute does not determine it: the arrival time
            with the smallest residual was wrong by up to 24 s on the package's phantoms.
        mask: file drawn on the scan that defines the grid of the results, or one per scan: only voxels above 0 are
            fitted; None for all tissue.
    """

    model: str = "tofts"
    arterial_input: str = "parker"
    sequence: SpoiledGradientEcho = SpoiledGradientEcho()
    arrival_s: float | None = None
    mask: str | Sequence[str] | None = None

    def check(self, series: Series, home: int = 0) -> None:
        """Check that the kinetics of a series can be fitted, and warn of assumed parameters.

        Args:
            series: the series.
            home: index of the scan on whose grid the results lie.

        Raises:
            InputError: If the series cannot be fitted, or if a parameter is invalid.
        """
        for name, value, choices in (
            ("kinetics_model", self.model, _LEAST_SCANS),
            ("kinetics_arterial_input", self.arterial_input, _INPUTS),
        ):
            if value not in choices:
                raise InputError(f"{name}: expected {' or '.join(choices)}, got {value!r}")
        first, least = series.frames[0].path, _LEAST_SCANS[self.model]
        if series.times_s is None:
            raise InputError(
                f"--kinetics: expected a series with acquisition times, got none with {first}; use DICOM, a 4D NIfTI "
                "with a frame time, or sidecars of dcm2niix with AcquisitionTime"
            )
        if len(series.frames) < least:
            raise InputError(
                f"--kinetics: expected {least} scans or more for {self.model}, got {len(series.frames)}; omit the "
                "option"
            )
        since_first = np.subtract(series.times_s, series.times_s[0])
        if np.any(np.diff(since_first) <= 0):
            times = ", ".join(f"{time:g}" for time in since_first)
            raise InputError(
                f"--kinetics: expected scans in temporal order, got scans at {times} s after the first; reorder them"
            )
        if np.diff(since_first).min() < _SHORTEST_S or since_first[-1] > _LONGEST_S:
            raise InputError(
                f"--kinetics: expected scans {_SHORTEST_S:g} s or more apart within {_LONGEST_S:g} s, got scans at "
                f"{since_first[1]:g} to {since_first[-1]:g} s after the first; correct the frame time and its unit in "
                "the header, or the sidecars"
            )
        if self.arrival_s is not None and not self.arrival_s < since_first[-1]:
            raise InputError(
                f"kinetics_arrival_s: expected a time before the last scan at {since_first[-1]:g} s, got "
                f"{self.arrival_s:g}; count seconds from the first scan"
            )
        if self.mask:
            check_regions(self.mask, series, home)
        self._warn_of_assumptions(series)

    def _warn_of_assumptions(self, series: Series) -> None:
        sequence, sources = self.sequence.for_series(series)
        if any(sources[name].startswith("assumed") for name in ("repetition_time_s", "flip_angle_deg")):
            logger.warning(
                "--kinetics: no header states a valid repetition time and flip angle, so typical ones are assumed, on "
                "which Ktrans depends; set yours with --set kinetics_repetition_time_s and kinetics_flip_angle_deg"
            )
        field = sequence_parameter(series, "field_strength_t") if self.sequence.t10_s is None else None
        if field and abs(field[0] - _FIELD_T) > 0.5:
            logger.warning(
                "--kinetics: the assumed native T1 of %g s is that of lesions and glands at %g T, but the %s says "
                "%g T; Ktrans depends on it: set the T1 at your field strength with --set kinetics_t10_s",
                sequence.t10_s,
                _FIELD_T,
                field[1],
                field[0],
            )

    def fit_series(
        self,
        series: Series,
        home: int,
        native: np.ndarray,
        warped: np.ndarray,
        observed_mask: np.ndarray,
        transform: Transform | None = None,
    ) -> Fits | None:
        """Fit a series before and after registration, with the parameters of the sequence from its headers.

        Args:
            series: the series.
            home: index of the scan on whose grid the volumes lie, and on which the mask is drawn.
            native, warped, observed_mask: as for `before_and_after`.
            transform: from the common space to that scan; None for the identity.

        Returns:
            As for `before_and_after`, with the sources.

        Raises:
            ValueError: If the series has no acquisition times, which `check` refuses.
        """
        if series.times_s is None:
            raise ValueError("series: expected acquisition times, got none")
        sequence, sources = self.sequence.for_series(series)
        if self.mask:
            region = read_region(self.mask, series, home)
            observed_mask = observed_mask & inside_region(region, series.frames[home].grid, transform)
        fits = replace(self, sequence=sequence).before_and_after(native, warped, observed_mask, series.times_s)
        if fits is not None:
            fits["sources"] = sources
        return fits

    def before_and_after(
        self, native: np.ndarray, warped: np.ndarray, observed_mask: np.ndarray, times_s: ArrayLike
    ) -> Fits | None:
        """Fit a series before and after registration, with the same arrival time, that of the aligned series.

        Args:
            native, warped: the series before and after registration, ``(K, *S)``, on one grid.
            observed_mask: ``(*S)`` bool, voxels to fit, inside the field of view of every scan before and after
                registration.
            times_s: K acquisition times.

        Returns:
            The fits; None, with a warning, if no tissue takes up contrast agent.
        """
        times = np.asarray(times_s, dtype=float)
        times = times - times[0]
        body = has_signal(native[0], observed_mask) & has_signal(warped[0], observed_mask)
        enhancing = body & (mean_rise(warped) > ENHANCING)
        if enhancing.sum() < _LEAST_VOXELS:
            logger.warning("--kinetics: no tissue takes up contrast agent after the first scan, so nothing was fitted")
            return None
        arrival_s = arrival_of_agent_s(warped[:, enhancing], times) if self.arrival_s is None else self.arrival_s
        curve_maps = {
            "enhancement": peak_enhancement_percent(warped),
            "enhancement_ratio": enhancement_ratio(warped, times, arrival_s),
            "time_to_peak_s": time_to_peak_s(warped, times),
        }
        settings = asdict(self)
        sequence = settings.pop("sequence")
        return {
            "before": self.fit(native, body, times, arrival_s),
            "after": self.fit(warped, body, times, arrival_s),
            "enhancing": enhancing,
            "curve_maps": {name: np.where(body, values, 0) for name, values in curve_maps.items()},
            "settings": {**settings, **sequence, "arrival_s": arrival_s},
        }

    def fit(self, volumes: np.ndarray, mask: np.ndarray, times_s: ArrayLike, arrival_s: float) -> Kinetics:
        """Fit the curves of all voxels inside a mask.

        Args:
            volumes: signal, ``(K, *S)``.
            mask: ``(*S)`` bool.
            times_s: K acquisition times, from the first scan.
            arrival_s: arrival time of the agent, from the first scan.
        """
        curves, times = volumes[:, mask], np.asarray(times_s, dtype=float)
        ktrans, r2, residual = (np.full(mask.shape, fill, np.float32) for fill in (0, 0, np.nan))
        aif, since = _INPUTS[self.arterial_input], times - arrival_s
        basis = torch.from_numpy(np.stack([uptake(since, kep, aif) for kep in _KEP_PER_MIN])).float()
        plasma, parts = torch.from_numpy(aif(since)).float(), []
        for part in np.array_split(curves, max(1, curves.shape[1] // _CHUNK), axis=1):
            concentration = self.sequence.concentration(part, max(1, int((times <= arrival_s).sum())))
            best_ktrans, squares = self._solve(concentration, basis, plasma)
            variance = (concentration - concentration.mean(0)).square().sum(0).clamp_min(1e-12)
            power = concentration.square().sum(0).clamp_min(1e-12)
            share = 100 * (squares / power).sqrt()
            parts.append(torch.stack([best_ktrans, (1 - squares / variance).clamp(0, 1), share]))
        ktrans[mask], r2[mask], residual[mask] = torch.cat(parts, dim=1).numpy()
        return Kinetics(ktrans, r2, residual)

    def _solve(self, concentration: Tensor, basis: Tensor, plasma: Tensor) -> tuple[Tensor, Tensor]:
        """Solve ``concentration = Ktrans basis + vp plasma`` by least squares for each kep, with Ktrans and vp not
        below 0 and ve at most 1, and select the kep with the smallest residual.

        Args:
            concentration: N curves, ``(K, N)``, mmol/l.
            basis: ``(M, K)``, `uptake` for each of M values of kep.
            plasma: ``(K,)``, mmol/l.

        Returns:
            Ktrans (1/min) and the sum of squared residuals, each ``(N,)``.
        """
        # Names of products: b is a row of the basis, p the plasma, c a curve. The gain is the reduction of the sum of
        # squared residuals by the model.
        most = torch.from_numpy(_KEP_PER_MIN).float()[:, None]  # ve = Ktrans / kep
        bc, bb = basis @ concentration, basis.square().sum(1, keepdim=True).clamp_min(1e-12)  # (M, N), (M, 1)
        ktrans = (bc / bb).clamp_min(0).minimum(most)
        gain = ktrans * (2 * bc - ktrans * bb)
        if self.model == "extended_tofts":
            pc, pp = plasma @ concentration, plasma.square().sum().clamp_min(1e-12)
            bp = (basis @ plasma)[:, None]
            determinant = (bb * pp - bp**2).clamp_min(1e-9 * bb * pp)
            joint = ((bc * pp - pc * bp) / determinant).clamp_min(0).minimum(most)
            vp = (pc - joint * bp) / pp
            ktrans, vp = torch.where(vp < 0, ktrans, joint), vp.clamp_min(0)
            gain = ktrans * (2 * bc - ktrans * bb) + vp * (2 * pc - vp * pp - 2 * ktrans * bp)
        best = gain.argmax(dim=0, keepdim=True)
        squares = (concentration.square().sum(0) - gain.gather(0, best)[0]).clamp_min(0)
        return ktrans.gather(0, best)[0], squares


def kinetic_maps(fits: Fits | None) -> dict[str, np.ndarray]:
    """Select the maps to write from the output of `ToftsFit.before_and_after`, by the names in `KINETIC_MAPS`; none
    without a fit."""
    if not fits:
        return {}
    after, before = fits["after"], fits["before"]
    fitted = after.ktrans_per_min, before.ktrans_per_min, after.r2, before.r2
    return {**dict(zip(KINETIC_MAPS, fitted)), **fits["curve_maps"]}
