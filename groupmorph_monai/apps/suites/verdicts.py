"""Detection rate of planted failures by the verdict, and its false alarm rate."""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from ..option_types import path
from .suite import Row, add_seeds_and_weights, bundle_method, table_suite


def _add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--patients",
        nargs="+",
        type=path,
        metavar="FILE",
        help="plant failures in these scans, one 3D file per patient (default: in phantoms)",
    )
    add_seeds_and_weights(p)


def verdicts(args: argparse.Namespace) -> list[Row]:
    """Register planted cases and count the verdicts."""
    from ...benchmarks.planted import failed_cases, good_cases
    from ...benchmarks.planted_results import measure_case, measure_cases
    from ...benchmarks.planted_scans import patient_cases

    phantoms = chain(good_cases(args.seeds), failed_cases(args.seeds))
    cases = patient_cases(args.patients, args.seeds) if args.patients else phantoms
    file = Path(args.output) / "verdicts.jsonl"
    return tabulate(measure_cases(bundle_method(args.weights), file, cases, measure_case))


def tabulate(results: Iterable[tuple[str | None, Mapping[str, Any]]]) -> list[Row]:
    """Count the verdicts on the results of `measure_cases`.

    Returns:
        A row for each failure, with the triggered checks, most frequent first; then totals of good series and of
        failures.
    """
    from ...benchmarks.planted_results import GOOD, group_results
    from ...evaluation.verdict import LEVELS, judge

    groups = group_results(results)
    totals: dict[str, list[Mapping[str, Any]]] = {"all good ones": [], "all failures": []}
    for name, cases in groups.items():
        totals["all good ones" if name in GOOD else "all failures"] += cases
    rows = []
    for name, cases in (groups | totals).items():
        judgements = [judge(values) for values in cases]
        counts = Counter(judgement["verdict"] for judgement in judgements)
        checks = chain.from_iterable(judgement["checks"].items() for judgement in judgements)
        triggered = Counter(check for check, result in checks if result["level"] != "PASS").most_common(4)
        listed = ", ".join(f"{check} ({n})" for check, n in triggered) if name in groups else ""
        shares = {f"{level}, %": 100 * counts[level] / max(len(cases), 1) for level in LEVELS}
        rows.append({"planted failure": name, "series": len(cases), **shares, "checks triggered": listed})
    return rows


VERDICTS = table_suite("verdicts", "verdicts on good series and on planted failures", _add_options, verdicts)
