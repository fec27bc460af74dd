"""`groupmorph benchmark verdicts`: detection rate and false alarm rate of the verdict."""

import argparse

from .suite import add_seeds_and_weights, table_suite

__all__ = ["VERDICTS"]


def _measure(args: argparse.Namespace) -> list[dict]:
    from ...benchmarks.verdicts import verdicts
    from .methods import bundle_method

    return verdicts(bundle_method(args.weights), args.output, args.seeds)


VERDICTS = table_suite("verdicts", "verdicts on good series and on planted failures", add_seeds_and_weights, _measure)
