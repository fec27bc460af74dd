"""Suites of errors against known motion, compared with other programs, likelihoods and amplitudes."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...benchmarks import Row
from ...errors import InputError
from ..configs import overlay_names
from .suite import add_seeds_and_weights, add_series, table_suite

__all__ = ["BREATHING", "LIKELIHOODS", "SYNTHETIC", "WARPED"]


def _compare_with_elastix(make_cases: Callable[[], list[dict[str, Any]]], weights: str | None) -> list[Row]:
    """Compare a single pass of the network, refinement, and pairwise and group-wise Elastix: one row per method."""
    from ...benchmarks.compare import BundleMethod, Method, compare
    from ...benchmarks.peers.elastix import check_elastix, elastix_groupwise, elastix_pairwise
    from .methods import bundle_method

    check_elastix()  # before making the series, which takes a while
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


def _measure_synthetic(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cases import synthetic_cases

    return _compare_with_elastix(lambda: synthetic_cases(args.seeds), args.weights)


def _warped_cases(args: argparse.Namespace) -> list[dict[str, Any]]:
    from ...benchmarks.cases import warped_cases

    return warped_cases(args.series, args.seeds, spacing_mm=args.spacing_mm, mask=args.mask)


def _measure_warped(args: argparse.Namespace) -> list[Row]:
    return _compare_with_elastix(lambda: _warped_cases(args), args.weights)


def _measure_likelihoods(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cases import synthetic_cases
    from ...benchmarks.compare import compare
    from .methods import bundle_method

    if not args.series and (args.spacing_mm or args.mask):
        raise InputError("--series: expected with --spacing-mm and --mask, got none; specify aligned scans")
    methods = {"local correlation": bundle_method(args.weights, "effort/best")}
    for overlay in overlay_names():
        if overlay.startswith("likelihoods/"):
            name = Path(overlay).name.replace("_", " ")
            methods[name] = bundle_method(args.weights, overlay, "effort/best")
    return compare(_warped_cases(args) if args.series else synthetic_cases(args.seeds), methods)


def _measure_breathing(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.breathing import breathing
    from .methods import bundle_method

    return breathing(bundle_method(args.weights), args.seeds)


SYNTHETIC = table_suite(
    "synthetic",
    "errors, seconds and memory on synthetic series, compared with Elastix in the same run",
    add_seeds_and_weights,
    _measure_synthetic,
)
WARPED = table_suite(
    "warped",
    "like synthetic, on your own aligned scans, each warped with a known field",
    partial(add_series, required=True),
    _measure_warped,
)
LIKELIHOODS = table_suite(
    "likelihoods", "all likelihoods on the same series", partial(add_series, required=False), _measure_likelihoods
)
BREATHING = table_suite(
    "breathing", "capture range for organs sliding along a wall", add_seeds_and_weights, _measure_breathing
)
