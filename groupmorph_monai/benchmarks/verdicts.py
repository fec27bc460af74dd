"""How often the verdict finds a planted failure, and how often it raises a false alarm."""

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
_MANAGED_VOXELS = 0.5  # mean landmark error of a registration that has found the motion


def measure_case(item: Mapping, case: PlantedCase) -> dict[str, object]:
    """The numbers of a registered case: those that the verdict is of, and the mean landmark ``error_voxels``, of the
    longest side of a voxel, where the same tissue shows in all scans."""
    transforms = item["pred"]["transforms"]
    values = {**item["metrics"], **measure_quality(case.series, transforms)}
    values["initial_confidence"] = item["initial_confidence"].tolist()
    if case.landmarks_mm is not None:
        error_mm = float(landmark_distances_mm(case.landmarks_mm, transforms).mean())
        values["error_voxels"] = error_mm / float(case.series.frames[0].grid.spacing_mm.max())
    return plain(values)


def tabulate(results: Iterable[tuple[str | None, Mapping]]) -> list[dict]:
    """Count the verdicts of each planted failure.

    Args:
        results: of each case its failure and what `measure_case` gives. Motion that was to be beyond reach counts as
            good where it was found.
    Returns: a row for each failure, with the checks that found it, the most frequent first; then both kinds together.
    """
    counts: dict[str, Counter] = {}
    found: dict[str, Counter] = {}
    for failure, values in results:
        if failure == BEYOND_REACH and values["error_voxels"] < _MANAGED_VOXELS:
            failure = _MANAGED
        verdict = judge(values)
        name = failure or GOOD
        counts.setdefault(name, Counter())[verdict["verdict"]] += 1
        flags = (check for check, row in verdict["checks"].items() if row["level"] != "PASS")
        found.setdefault(name, Counter()).update(flags)
    rows = [_row(name, counts[name], found[name]) for name in sorted(counts, key=lambda n: (not _is_good(n), n))]
    for name, good in (("all good ones", True), ("all failures", False)):
        total = sum((c for kind, c in counts.items() if _is_good(kind) == good), Counter())
        rows.append(_row(name, total, Counter()))
    return rows


def _is_good(failure: str) -> bool:
    return failure in (GOOD, _MANAGED)


def _row(name: str, counts: Counter, found: Counter) -> dict[str, object]:
    number = sum(counts.values())
    shares = {f"{level}, %": 100 * counts[level] / max(number, 1) for level in LEVELS}
    checks = ", ".join(f"{check} ({n})" for check, n in found.most_common(4))
    return {"planted failure": name, "series": number, **shares, "checks that speak": checks}


def verdicts(
    method: BundleMethod, folder: str | Path, seeds: Sequence[int], progress: Callable[[str], None] = print
) -> list[dict]:
    """Register the planted cases of all seeds and count the verdicts.

    What was measured is a line of ``verdicts.jsonl`` in ``folder``, from which an interrupted run goes on, and from
    which other thresholds are judged without registering again: delete it after a change of the method.
    """
    file = Path(folder) / "verdicts.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(line["failure"], line["name"]): line["values"] for line in lines}
    registers: dict[str, Callable] = {}
    for case in chain(good_cases(seeds), failed_cases(seeds)):
        if (case.failure, case.name) in known:
            continue
        settings = {**method.settings, **case.settings}
        key = json.dumps(settings, default=str)
        if key not in registers:
            registers[key] = replace(method, settings=settings).prepare_item()
        values = measure_case(registers[key](case.series), case)
        known[case.failure, case.name] = values
        with open(file, "a") as log:
            print(json.dumps({"failure": case.failure, "name": case.name, "values": values}), file=log)
        progress(f"{case.name}, {case.failure or 'good'}: {judge(values)['verdict']}")
    return tabulate((failure, values) for (failure, _), values in known.items())
