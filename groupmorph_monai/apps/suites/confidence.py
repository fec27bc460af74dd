"""Suites that test what a report claims: the predicted uncertainty and the verdict."""

import argparse
from dataclasses import replace

from ...benchmarks import Row
from .suite import add_seeds_and_weights, table_suite

__all__ = ["KINETICS", "RELIABILITY", "VERDICTS"]


def _measure_reliability(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.reliability import reliability
    from .methods import bundle_method

    overlays = {
        "refined": [],
        "network alone": ["effort/no_refine"],
        "network alone, smoothed draws": ["posteriors/smoothed", "effort/no_refine"],
    }
    methods = {
        name: replace(bundle_method(args.weights, *names), settings={"std_draws": 20})
        for name, names in overlays.items()
    }
    return reliability(methods, args.output, args.seeds)


def _measure_verdicts(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.verdicts import verdicts
    from .methods import bundle_method

    return verdicts(bundle_method(args.weights), args.output, args.seeds)


def _measure_kinetics(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.verdicts import kinetic_residuals
    from .methods import bundle_method

    return kinetic_residuals(bundle_method(args.weights), args.output, args.seeds)


RELIABILITY = table_suite(
    "reliability", "calibration of the predicted uncertainty", add_seeds_and_weights, _measure_reliability
)
VERDICTS = table_suite(
    "verdicts", "verdicts on good series and on planted failures", add_seeds_and_weights, _measure_verdicts
)
KINETICS = table_suite(
    "kinetics",
    "residual of the kinetic fit on good DCE-MRI series and on planted failures",
    add_seeds_and_weights,
    _measure_kinetics,
)
