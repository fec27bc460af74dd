"""`groupmorph benchmark reliability`: calibration of the predicted uncertainty."""

import argparse
from dataclasses import replace

from ...benchmarks import Row
from .suite import add_seeds_and_weights, table_suite

__all__ = ["RELIABILITY"]


def _measure(args: argparse.Namespace) -> list[Row]:
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


RELIABILITY = table_suite("reliability", "calibration of the predicted uncertainty", add_seeds_and_weights, _measure)
