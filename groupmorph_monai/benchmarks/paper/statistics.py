"""Means over series, and paired differences between methods."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap, wilcoxon

from .cells import Cell

COMPARED = ("landmarks_mm_mean", "true_error_mm", "rmse", "nmi", "seconds")


def means(cells: Sequence[Cell]) -> dict[str, dict[str, object]]:
    """Average each method over the series: the mean of each column over the series that have it, the number of
    ``series``, and ``status``, "ok" or the first reason for a missing series."""
    table = {}
    for name in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == name]
        done = [cell.numbers for cell in own if cell.status == "ok"]
        columns = dict.fromkeys(column for numbers in done for column in numbers)
        row = {column: _mean([numbers.get(column) for numbers in done]) for column in columns}
        status = next((cell.status for cell in own if cell.status != "ok"), "ok")
        table[name] = {**row, "series": len(done), "status": status}
    return table


def _mean(values: Sequence[float | None]) -> float:
    finite = [v for v in values if v is not None and not math.isnan(v)]
    return float(np.mean(finite)) if finite else math.nan


def paired_differences(cells: Sequence[Cell], against: str) -> list[dict[str, object]]:
    """Compute paired differences between each method and the method ``against``.

    Returns:
        A row for each method and compared column: the mean ``difference``; its 95 % interval ``low`` to ``high`` by
        bootstrap over the series (percentiles of 9999 resamples), NaN for fewer than two; and ``p`` of the two-sided
        Wilcoxon signed-rank test, which cannot be below 0.05 for fewer than six series.
    """
    numbers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        if cell.status == "ok":
            numbers.setdefault(cell.method, {})[cell.case] = cell.numbers
    base, rows = numbers.get(against, {}), []
    for name in (n for n in numbers if n != against):
        for column in COMPARED:
            pairs = [
                (numbers[name][case].get(column), base[case].get(column)) for case in numbers[name] if case in base
            ]
            differences = np.array([a - b for a, b in pairs if a is not None and b is not None])
            differences = differences[np.isfinite(differences)]
            if differences.size:
                rows.append({"method": name, "column": column, **_summary(differences)})
    return rows


def _summary(differences: np.ndarray) -> dict[str, float]:
    low = high = p = math.nan
    if len(differences) > 1:
        rng = np.random.default_rng(0)
        interval = bootstrap((differences,), np.mean, method="percentile", n_resamples=9999, rng=rng)
        low, high = (float(end) for end in interval.confidence_interval)
        p = float(wilcoxon(differences).pvalue) if differences.any() else 1.0
    return {"series": len(differences), "difference": float(differences.mean()), "low": low, "high": high, "p": p}
