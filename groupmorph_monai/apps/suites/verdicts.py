"""`groupmorph benchmark verdicts`: detection rate and false alarm rate of the verdict."""

import argparse

from ...benchmarks import Row
from .suite import add_seeds_and_weights, table_suite

__all__ = ["KINETICS", "VERDICTS"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.verdicts import verdicts
    from .methods import bundle_method

    return verdicts(bundle_method(args.weights), args.output, args.seeds)


def _measure_kinetics(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.verdicts import kinetic_residuals
    from .methods import bundle_method

    return kinetic_residuals(bundle_method(args.weights), args.output, args.seeds)


KINETICS = table_suite(
    "kinetics",
    "residual of the kinetic fit on good DCE-MRI series and on planted failures",
    add_seeds_and_weights,
    _measure_kinetics,
)
VERDICTS = table_suite("verdicts", "verdicts on good series and on planted failures", add_seeds_and_weights, _measure)
