"""Detection rate of planted failures by the verdict, and its false alarm rate."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ..evaluation.metrics import landmark_distances_mm
from ..evaluation.quality import measure_quality
from ..evaluation.report import plain
from ..evaluation.verdict import LEVELS, judge
from .compare import BundleMethod
from .planted import BEYOND_REACH, PlantedCase, failed_cases, good_cases

__all__ = ["measure_case", "tabulate", "verdicts"]

GOOD = "none"
_MANAGED = "none: planted motion recovered"
_MANAGED_VOXELS = 0.5  # maximum mean landmark error of a successful registration


def measure_case(item: Mapping, case: PlantedCase) -> dict[str, object]:
    """Compute the quality measures of a registered case and, if all scans show the same tissue, the mean landmark
    error ``error_voxels``, relative to the longest side of a voxel."""
    transforms = item["pred"]["transforms"]
    values = {**item["metrics"], **measure_quality(case.series, transforms)}
    values["initial_confidence"] = item["initial_confidence"].tolist()
    if case.landmarks_mm is not None:
        error_mm = float(landmark_distances_mm(case.landmarks_mm, transforms).mean())
        values["error_voxels"] = error_mm / float(case.series.frames[0].grid.spacing_mm.max())
    return plain(values)


def tabulate(results: Iterable[tuple[str | None, Mapping]]) -> list[dict]:
    """Count the verdicts for each planted failure.

    Args:
        results: failure and result of `measure_case` of each case. Motion beyond the capture range counts as good if it
            was recovered nevertheless.
    Returns: a row for each failure, with the triggered checks, most frequent first; then totals of good series and of
        failures.
    """
    counts: dict[str, Counter] = {}
    triggered: dict[str, Counter] = {}
    for failure, values in results:
        if failure == BEYOND_REACH and values["error_voxels"] < _MANAGED_VOXELS:
            failure = _MANAGED
        verdict = judge(values)
        name = failure or GOOD
        counts.setdefault(name, Counter())[verdict["verdict"]] += 1
        flags = (check for check, row in verdict["checks"].items() if row["level"] != "PASS")
        triggered.setdefault(name, Counter()).update(flags)
    rows = [_row(name, counts[name], triggered[name]) for name in sorted(counts, key=lambda n: (not _is_good(n), n))]
    for name, good in (("all good ones", True), ("all failures", False)):
        total = sum((c for kind, c in counts.items() if _is_good(kind) == good), Counter())
        rows.append(_row(name, total, Counter()))
    return rows


def _is_good(failure: str) -> bool:
    return failure in (GOOD, _MANAGED)


def _row(name: str, counts: Counter, triggered: Counter) -> dict[str, object]:
    number = sum(counts.values())
    shares = {f"{level}, %": 100 * counts[level] / max(number, 1) for level in LEVELS}
    checks = ", ".join(f"{check} ({n})" for check, n in triggered.most_common(4))
    return {"planted failure": name, "series": number, **shares, "checks triggered": checks}


def verdicts(
    method: BundleMethod, folder: str | Path, seeds: Sequence[int], progress: Callable[[str], None] = print
) -> list[dict]:
    """Register the planted cases of all seeds and count the verdicts.

    Measurements are stored as lines in ``verdicts.jsonl`` in ``folder``, from which an interrupted run resumes, and
    which allow judging with other thresholds without new registrations: delete the file after changing the method.
    """
    file = Path(folder) / "verdicts.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    measured = {(line["failure"], line["name"]): line["values"] for line in lines}
    registers: dict[str, Callable] = {}
    for case in chain(good_cases(seeds), failed_cases(seeds)):
        if (case.failure, case.name) in measured:
            continue
        settings = {**method.settings, **case.settings}
        key = json.dumps(settings, default=str)
        if key not in registers:
            registers[key] = replace(method, settings=settings).prepare_item()
        values = measure_case(registers[key](case.series), case)
        measured[case.failure, case.name] = values
        with open(file, "a") as log:
            print(json.dumps({"failure": case.failure, "name": case.name, "values": values}), file=log)
        progress(f"{case.name}, {case.failure or 'good'}: {judge(values)['verdict']}")
    return tabulate((failure, values) for (failure, _), values in measured.items())
