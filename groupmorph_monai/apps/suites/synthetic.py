"""Synthetic series with known motion, compared with Elastix."""

import argparse
from collections.abc import Callable
from typing import Any

from .suite import Row, add_seeds_and_weights, bundle_method, table_suite


def compare_with_elastix(make_cases: Callable[[], list[dict[str, Any]]], weights: str | None) -> list[Row]:
    """Compare a single pass of the network, refinement, and pairwise and group-wise Elastix: one row per method."""
    from ...benchmarks.compare import BundleMethod, Method, compare
    from ...benchmarks.peers.elastix import check_elastix, elastix_groupwise, elastix_pairwise

    check_elastix()  # fail before the slow generation of the series
    pairwise = "Elastix pair-wise B-spline"
    methods: dict[str, BundleMethod | Method] = {
        "GroupMorph-set, single pass": bundle_method(weights, "effort/no_refine"),
        "GroupMorph-set, refined": bundle_method(weights),
        pairwise: elastix_pairwise,
        "Elastix group-wise PCAMetric2": elastix_groupwise,
    }
    rows = compare(make_cases(), methods)
    seconds = next(row["seconds"] for row in rows if row["method"] == pairwise)
    for row in rows:
        if "seconds" in row:
            row["times as fast as Elastix pair-wise"] = seconds / row["seconds"]
    return rows


def synthetic(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cases import synthetic_cases

    return compare_with_elastix(lambda: synthetic_cases(args.seeds), args.weights)


SYNTHETIC = table_suite(
    "synthetic",
    "errors, seconds and memory on synthetic series, compared with Elastix in the same run",
    add_seeds_and_weights,
    synthetic,
)
