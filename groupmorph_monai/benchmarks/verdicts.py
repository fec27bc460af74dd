"""Detection rate of planted failures by the verdict, and its false alarm rate."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
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
from ..evaluation.verdict import LEVELS, judge
from . import Row
from .compare import BundleMethod
from .json_lines import JsonLines
from .planted import BEYOND_REACH, PlantedCase, added_motion, contrast_cases

__all__ = [
    "kinetic_residuals", "measure_case", "measure_contrast_case", "tabulate",
    "tabulate_residuals", "verdicts",
]  # fmt: skip

GOOD = "none"
_MANAGED = "none: planted motion recovered"
_RESIDUAL = "kinetic_residual_ratio"
_ADDED_VOXELS = (0.5, 1.0, 2.0, 4.0)  # maximum displacements of motion that is added to a result
_MANAGED_VOXELS = 0.5  # maximum mean landmark error of a successful registration


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


def tabulate(results: Iterable[tuple[str | None, Mapping[str, Any]]]) -> list[Row]:
    """Count the verdicts for each planted failure.

    Args:
        results: failure and result of `measure_case` of each case.

    Returns:
        A row for each failure, with the triggered checks, most frequent first; then totals of good series and of
        failures.
    """
    counts: dict[str, Counter[str]] = {}
    triggered: dict[str, Counter[str]] = {}
    for failure, values in results:
        verdict, name = judge(values), _row_of(failure, values)
        counts.setdefault(name, Counter())[verdict["verdict"]] += 1
        flags = (check for check, row in verdict["checks"].items() if row["level"] != "PASS")
        triggered.setdefault(name, Counter()).update(flags)
    rows = [_row(name, counts[name], triggered[name]) for name in sorted(counts, key=lambda n: (not _is_good(n), n))]
    for name, good in (("all good ones", True), ("all failures", False)):
        total = sum((c for kind, c in counts.items() if _is_good(kind) == good), Counter())
        rows.append(_row(name, total, Counter()))
    return rows


def _row_of(failure: str | None, values: Mapping[str, Any]) -> str:
    """Name the row of a case. Motion beyond the capture range counts as good if it was recovered nevertheless."""
    recovered = failure == BEYOND_REACH and values["error_voxels"] < _MANAGED_VOXELS
    return _MANAGED if recovered else failure or GOOD


def _is_good(failure: str) -> bool:
    return failure in (GOOD, _MANAGED)


def _row(name: str, counts: Counter[str], triggered: Counter[str]) -> Row:
    number = sum(counts.values())
    shares = {f"{level}, %": 100 * counts[level] / max(number, 1) for level in LEVELS}
    checks = ", ".join(f"{check} ({n})" for check, n in triggered.most_common(4))
    return {"planted failure": name, "series": number, **shares, "checks triggered": checks}


def verdicts(method: BundleMethod, folder: str | Path, cases: Iterable[PlantedCase]) -> list[Row]:
    """Register planted cases and count the verdicts; see `_measure_cases` for ``folder``."""
    return tabulate(_measure_cases(method, Path(folder) / "verdicts.jsonl", cases, measure_case))


def _measure_cases(
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


def measure_contrast_case(item: Mapping[str, Any], case: PlantedCase) -> dict[str, Any]:
    """Compute the values of `measure_case` and ``kinetic_residual_ratio``, None if no tissue enhances."""
    transforms, grid = item["pred"]["transforms"], case.series.frames[0].grid
    scans = [
        [resample(frame, grid, transform) for frame, transform in zip(case.series.frames, maps)]
        for maps in ([None] * len(transforms), transforms)
    ]
    covered = np.all([coverage for part in scans for _, coverage in part], axis=0)
    native, warped = (np.stack([values for values, _ in part]) for part in scans)
    return {**measure_case(item, case), _RESIDUAL: _residual_ratio(case.series, native, warped, covered)}


def _residual_ratio(series: Series, native: np.ndarray, warped: np.ndarray, covered: np.ndarray) -> float | None:
    fits = ToftsFit().fit_series(series, 0, native, warped, covered)
    return summarise_kinetics(fits)[_RESIDUAL] if fits else None


def measure_added_motion(seeds: Sequence[int], voxels: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the residual ratio of registrations that add motion of up to ``voxels``, for `tabulate_residuals`."""
    for static, in_motion in added_motion(seeds, voxels):
        native, warped = (np.stack([frame.data for frame in case.series.frames]) for case in (static, in_motion))
        ratio = _residual_ratio(static.series, native, warped, np.ones(native.shape[1:], bool))
        yield f"motion of up to {voxels:g} voxels added", {_RESIDUAL: ratio}


def tabulate_residuals(results: Iterable[tuple[str | None, Mapping[str, Any]]]) -> list[Row]:
    """Tabulate the residual of the kinetic fit, after over before, for each planted failure.

    Args:
        results: failure and result of `measure_contrast_case` of each case.

    Returns:
        A row for each failure: the number of series with a fit; the least, median and greatest ratio; and the number of
        series that this check alone, and all other checks together, call LOOK or FAIL.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for failure, values in results:
        groups.setdefault(_row_of(failure, values), []).append(values)
    return [_residual_row(name, groups[name]) for name in sorted(groups, key=lambda n: (not _is_good(n), n))]


def _residual_row(name: str, cases: Sequence[Mapping[str, Any]]) -> Row:
    ratios = [values[_RESIDUAL] for values in cases if values[_RESIDUAL] is not None]
    alone = Counter(judge({_RESIDUAL: ratio})["verdict"] for ratio in ratios)
    without = Counter(judge({**values, _RESIDUAL: None})["verdict"] for values in cases)
    least, median, greatest = np.quantile(ratios, (0, 0.5, 1)) if ratios else (math.nan,) * 3
    return {
        "planted failure": name,
        "series": len(cases),
        "with a fit": len(ratios),
        "least": least,
        "median": median,
        "greatest": greatest,
        **{f"{level} by this check": alone[level] for level in LEVELS[1:]},
        "LOOK or FAIL by the other checks": without["LOOK"] + without["FAIL"],
    }


def kinetic_residuals(method: BundleMethod, folder: str | Path, seeds: Sequence[int]) -> list[Row]:
    """Register the planted cases with contrast agent of all seeds and tabulate the residual of the kinetic fit; see
    `_measure_cases` for ``folder``."""
    file = Path(folder) / "residuals.jsonl"
    added = chain.from_iterable(measure_added_motion(seeds, voxels) for voxels in _ADDED_VOXELS)
    planted = _measure_cases(method, file, contrast_cases(seeds), measure_contrast_case)
    return tabulate_residuals([*planted, *added])
