"""Compare GroupMorph-set with Elastix on the same series."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...benchmarks import Row
from ...benchmarks.compare import BundleMethod, Method, compare
from ...benchmarks.peers.elastix import elastix_groupwise, elastix_pairwise
from .methods import bundle_method

__all__ = ["compare_with_elastix"]


def compare_with_elastix(cases: Sequence[Mapping[str, Any]], weights: str | None) -> list[Row]:
    """Compare a single pass of the network, refinement, and pairwise and group-wise Elastix: one row per method."""
    pairwise = "Elastix pair-wise B-spline"
    methods: dict[str, BundleMethod | Method] = {
        "GroupMorph-set, single pass": bundle_method(weights, "effort/no_refine"),
        "GroupMorph-set, refined": bundle_method(weights),
        pairwise: elastix_pairwise,
        "Elastix group-wise PCAMetric2": elastix_groupwise,
    }
    rows = compare(cases, methods)
    seconds = next(row["seconds"] for row in rows if row["method"] == pairwise)
    for row in rows:
        if "seconds" in row:
            row["times as fast as Elastix pair-wise"] = seconds / row["seconds"]
    return rows
