"""Measurements of the suites, by name. Imported when a suite runs, as the imports take seconds."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from ...benchmarks import Row
from ...benchmarks.breathing import breathing
from ...benchmarks.cases import synthetic_cases, warped_cases
from ...benchmarks.cohort import cohort
from ...benchmarks.compare import BundleMethod, Method, compare, scale
from ...benchmarks.contention import contention
from ...benchmarks.full_size import full_size
from ...benchmarks.memory import memory
from ...benchmarks.peers.elastix import check_elastix, elastix_groupwise, elastix_pairwise
from ...benchmarks.planted import failed_cases, good_cases
from ...benchmarks.planted_scans import patient_cases
from ...benchmarks.reliability import reliability
from ...benchmarks.verdicts import kinetic_residuals, verdicts
from ...errors import InputError
from ..configs import overlay_names
from ..threads import available_cores
from .methods import bundle_method

__all__ = ["MEASUREMENTS"]


def _compare_with_elastix(make_cases: Callable[[], list[dict[str, Any]]], weights: str | None) -> list[Row]:
    """Compare a single pass of the network, refinement, and pairwise and group-wise Elastix: one row per method."""
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


def _warped_cases(args: argparse.Namespace) -> list[dict[str, Any]]:
    return warped_cases(args.series, args.seeds, spacing_mm=args.spacing_mm, mask=args.mask)


def _likelihoods(args: argparse.Namespace) -> list[Row]:
    if not args.series and (args.spacing_mm or args.mask):
        raise InputError("--series: required with --spacing-mm and --mask, got none; specify aligned scans")
    methods = {"local correlation": bundle_method(args.weights, "effort/best")}
    for overlay in overlay_names():
        if overlay.startswith("likelihoods/"):
            name = Path(overlay).name.replace("_", " ")
            methods[name] = bundle_method(args.weights, overlay, "effort/best")
    return compare(_warped_cases(args) if args.series else synthetic_cases(args.seeds), methods)


def _reliability(args: argparse.Namespace) -> list[Row]:
    overlays = {"refined": [], "network alone": ["effort/no_refine"]}
    methods = {
        name: replace(bundle_method(args.weights, *names), settings={"std_draws": 20})
        for name, names in overlays.items()
    }
    return reliability(methods, args.output, args.seeds)


def _verdicts(args: argparse.Namespace) -> list[Row]:
    phantoms = chain(good_cases(args.seeds), failed_cases(args.seeds))
    cases = patient_cases(args.patients, args.seeds) if args.patients else phantoms
    return verdicts(bundle_method(args.weights), args.output, cases)


def _full_size(args: argparse.Namespace) -> list[Row]:
    single_pass = bundle_method(args.weights, "effort/no_refine")
    methods = {
        "single pass alone": replace(single_pass, settings={"initial_alignment": "none"}),
        "affine, single pass": single_pass,
        "refined": bundle_method(args.weights),
    }
    return full_size(methods)


def _memory(args: argparse.Namespace) -> list[Row]:
    method = bundle_method(args.weights)
    many = [(number, (32, 32, 24)) for number in (25, 50, 100)]
    return memory(method) + memory(method, many, scans_at_once=4)


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "synthetic": lambda args: _compare_with_elastix(lambda: synthetic_cases(args.seeds), args.weights),
    "warped": lambda args: _compare_with_elastix(lambda: _warped_cases(args), args.weights),
    "likelihoods": _likelihoods,
    "breathing": lambda args: breathing(bundle_method(args.weights), args.seeds),
    "reliability": _reliability,
    "verdicts": _verdicts,
    "kinetics": lambda args: kinetic_residuals(bundle_method(args.weights), args.output, args.seeds),
    "scaling": lambda args: scale(bundle_method(args.weights)),
    "full_size": _full_size,
    "memory": _memory,
    "contention": lambda args: contention(bundle_method(args.weights), args.threads or available_cores()),
    "cohort": lambda args: cohort(),
}
