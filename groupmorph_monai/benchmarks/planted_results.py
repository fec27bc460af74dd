"""Registrations of planted cases, measured, judged and grouped by failure."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.contrast.kinetics import ToftsFit
from ..data.preprocessing.resampling import resample
from ..data.series import Series
from ..evaluation.kinetics import summarise_kinetics
from ..evaluation.metrics import landmark_distances_mm
from ..evaluation.quality import measure_quality
from ..evaluation.report import plain
from ..evaluation.verdict import judge
from .compare import BundleMethod
from .json_lines import JsonLines
from .planted import BEYOND_REACH, PlantedCase, added_motion

RESIDUAL = "kinetic_residual_ratio"
GOOD = ("none", "none: planted motion recovered")  # groups of good series
_RECOVERED_VOXELS = 0.5  # maximum mean landmark error of a successful registration


def measure_case(item: Mapping[str, Any], case: PlantedCase) -> dict[str, Any]:
    """Compute the quality measures of a registered case and, if all scans show the same tissue, the mean landmark
    error ``error_voxels``, relative to the longest side of a voxel."""
    transforms = item["pred"]["transforms"]
    values = {**item["metrics"], **measure_quality(case.series, transforms)}
    values["initial_confidence"] = item["initial_confidence"].tolist()
    if case.landmarks_mm is not None:
        error_mm = float(landmark_distances_mm(case.landmarks_mm, transforms).mean())
        values["error_voxels"] = error_mm / float(case.series.frames[0].grid.spacing_mm.max())
    return plain(values)


def measure_contrast_case(item: Mapping[str, Any], case: PlantedCase) -> dict[str, Any]:
    """Compute the values of `measure_case` and ``kinetic_residual_ratio``, None if no tissue enhances."""
    transforms, grid = item["pred"]["transforms"], case.series.frames[0].grid
    scans = [
        [resample(frame, grid, transform) for frame, transform in zip(case.series.frames, maps)]
        for maps in ([None] * len(transforms), transforms)
    ]
    covered = np.all([coverage for part in scans for _, coverage in part], axis=0)
    native, warped = (np.stack([values for values, _ in part]) for part in scans)
    return {**measure_case(item, case), RESIDUAL: _residual_ratio(case.series, native, warped, covered)}


def _residual_ratio(series: Series, native: np.ndarray, warped: np.ndarray, covered: np.ndarray) -> float | None:
    fits = ToftsFit().fit_series(series, 0, native, warped, covered)
    return summarise_kinetics(fits)[RESIDUAL] if fits else None


def measure_added_motion(seeds: Sequence[int], voxels: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the residual ratio of registrations that add motion of up to ``voxels``."""
    for static, in_motion in added_motion(seeds, voxels):
        native, warped = (np.stack([frame.data for frame in case.series.frames]) for case in (static, in_motion))
        ratio = _residual_ratio(static.series, native, warped, np.ones(native.shape[1:], bool))
        yield f"motion of up to {voxels:g} voxels added", {RESIDUAL: ratio}


def measure_cases(
    method: BundleMethod,
    file: Path,
    cases: Iterable[PlantedCase],
    measure: Callable[[Mapping[str, Any], PlantedCase], dict[str, Any]],
) -> list[tuple[str | None, Mapping[str, Any]]]:
    """Register cases and measure them.

    Measurements are stored as lines in ``file``, from which an interrupted run resumes, and which allow judging with
    other thresholds without new registrations: delete the file after changing the method.

    Returns:
        Failure and result of ``measure`` of each case.
    """
    log = JsonLines(file)
    measured = {(line["failure"], line["name"]): line["values"] for line in log.read()}
    registers: dict[str, Callable[[Series], dict[str, Any]]] = {}
    results = []
    for case in cases:
        if (case.failure, case.name) in measured:
            results.append((case.failure, measured[case.failure, case.name]))
            continue
        settings = {**method.settings, **case.settings}
        key = json.dumps(settings, default=str)
        if key not in registers:
            registers[key] = replace(method, settings=settings).prepare_item()
        values = measure(registers[key](case.series), case)
        results.append((case.failure, values))
        log.append({"failure": case.failure, "name": case.name, "values": values})
        print(f"{case.name}, {case.failure or 'good'}: {judge(values)['verdict']}")
    return results


def group_results(results: Iterable[tuple[str | None, Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group the values of `measure_cases` by planted failure, good series first.

    Motion beyond the capture range counts as good if it was recovered nevertheless.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for failure, values in results:
        recovered = failure == BEYOND_REACH and values["error_voxels"] < _RECOVERED_VOXELS
        groups.setdefault(GOOD[1] if recovered else failure or GOOD[0], []).append(values)
    return {name: groups[name] for name in sorted(groups, key=lambda name: (name not in GOOD, name))}
