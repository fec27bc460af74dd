"""Assess a registration: its metrics, warnings and verdict."""

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..data.series import Frame, Series
from ..data.storage import IN_MEMORY, Storage
from ..workflow.affine_alignment import LEAST_CONFIDENCE
from .metrics import similarity
from .quality import measure_quality
from .verdict import LEAST_FALL, judge

logger = logging.getLogger(__name__)
_MOST_COMPARED = 32  # maximum number of timepoints in pairwise comparisons, evenly spread over the series
_DEFORMING_ONE_IMAGE = {"modes/sample", "modes/transport"}  # overlays for K copies of one image
# Checks of the transforms alone, which remain valid if images are deformed on purpose.
_TRANSFORM_CHECKS = ("folding_percent", "implausible_volume_percent", "bending_mm", "inverse_consistency_mm")


@dataclass(frozen=True)
class Assessment:
    """Quality of a registration.

    Args:
        metrics: folding, inverse consistency, displacement, and similarity before and after.
        initial_alignment: ``confidence`` per timepoint, and ``not_found``, the timepoints for which the initial
            alignment failed; empty without an initial alignment.
        warnings: reasons to check the registration.
        verdict: the result of `judge`.
    """

    metrics: Mapping[str, Any]
    initial_alignment: Mapping[str, list[Any]]
    warnings: Sequence[str]
    verdict: Mapping[str, Any]


@dataclass(frozen=True)
class Assessor:
    """Assess registrations of a series.

    Args:
        series: K native volumes.
        home: index of the scan that defines the output grid.
        overlays: overlays of the registration. Some deform copies of one image on purpose.
        storage: where the volumes are kept.
    """

    series: Series
    home: int = 0
    overlays: Sequence[str] = ()
    storage: Storage = IN_MEMORY

    @property
    def compared(self) -> list[int]:
        """Indices of the timepoints whose similarity is measured: at most 32, or fewer if memory is short."""
        most = min(_MOST_COMPARED, max(4, 2 * (self.storage.scans_at_once or _MOST_COMPARED)))
        last = len(self.series.frames) - 1
        return sorted({round(n * last / (most - 1)) for n in range(most)})

    def assess(
        self,
        output: Mapping[str, Any],
        item: Mapping[str, Any],
        native: np.ndarray,
        warped: np.ndarray,
        covered: np.ndarray,
        kinetics: Mapping[str, Any] | None = None,
    ) -> Assessment:
        """Assess one registration.

        Args:
            output: of the evaluator: ``metrics``, and the registration in ``pred``.
            item: of the preprocessing, with ``initial_confidence`` per timepoint if there was an initial alignment.
            native, warped: the timepoints `compared` before and after registration, in their own units,
                ``(C, *S)`` on the output grid.
            covered: where all of these were measured, ``(*S)`` bool.
            kinetics: measures of a kinetic fit, for the verdict.
        """
        registration = output["pred"]
        metrics = {**output["metrics"], **similarity(*map(torch.from_numpy, (native, warped, covered)))}
        self.storage.release()
        initial = self._initial_alignment(item)
        values = {**metrics, **measure_quality(self.series, registration["transforms"], self.home, self.storage)}
        if registration.get("std_mm") is not None:
            values["uncertainty_mm"] = [float(np.median(std.cpu().numpy())) for std in registration["std_mm"]]
        values |= {**(kinetics or {}), "initial_confidence": initial.get("confidence")}
        warnings = [*self.series.warnings]
        if _DEFORMING_ONE_IMAGE & set(self.overlays):
            values = {name: values[name] for name in _TRANSFORM_CHECKS if name in values}
        else:
            warnings += _warn_if_less_similar(metrics) + _warn_of_duplicates(self.series.frames, self.storage)
            warnings += _warn_of_noise(values["compared_percent"], self.series.frames)
        names = self.series.names
        verdict = judge(values, warnings=warnings, names=names if len(set(names)) == len(names) else ())
        return Assessment(metrics, initial, warnings, verdict)

    def _initial_alignment(self, item: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return the confidence of the initial alignment per timepoint, and warn of timepoints for which it failed."""
        if "initial_confidence" not in item:
            return {}
        confidence = torch.as_tensor(item["initial_confidence"]).tolist()
        failed = [k for k, value in enumerate(confidence) if value < LEAST_CONFIDENCE]
        for k in failed:
            logger.warning(
                "%s (timepoint %d): the initial alignment failed (confidence %.2f, below %g); check report.html before "
                "you use the result",
                self.series.frames[k].path,
                k,
                confidence[k],
                LEAST_CONFIDENCE,
            )
        return {"confidence": confidence, "not_found": failed}


def _warn_if_less_similar(metrics: Mapping[str, float]) -> list[str]:
    """Warn if registration made the scans less similar."""
    before, after = metrics["nmi_before"], metrics["nmi_after"]
    if not after < before - LEAST_FALL:  # NaN without a common field of view
        return []
    warning = f"the scans are less similar than before registration: NMI {before:.4f} before, {after:.4f} after"
    logger.warning("%s; check report.html before you use the result", warning)
    return [warning]


def _warn_of_duplicates(frames: Sequence[Frame], storage: Storage = IN_MEMORY) -> list[str]:
    """Warn of scans with the same voxels, such as a scan that is listed twice."""
    first: dict[Hashable, int] = {}
    warnings = []
    for k, frame in enumerate(frames):
        same = first.setdefault(frame.content, k)
        if same != k:
            warnings.append(f"timepoints {same} and {k} have the same voxels: is a scan listed twice?")
            logger.warning("%s (%s)", warnings[-1], frame.path)
        storage.release()
    return warnings


def _warn_of_noise(compared_percent: Sequence[float], frames: Sequence[Frame]) -> list[str]:
    """Warn of scans without structure, whose share that was compared is NaN."""
    warnings = []
    for k, percent in enumerate(compared_percent):
        if math.isnan(percent):
            warnings.append(f"timepoint {k} has no structure above its noise: its alignment could not be checked")
            logger.warning("%s (%s)", warnings[-1], frames[k].path)
    return warnings
