"""`groupmorph benchmark breathing`: capture range."""

import argparse

from ...benchmarks import Row
from .suite import add_seeds_and_weights, table_suite

__all__ = ["BREATHING"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.breathing import breathing
    from .methods import bundle_method

    return breathing(bundle_method(args.weights), args.seeds)


BREATHING = table_suite("breathing", "capture range for organs sliding along a wall", add_seeds_and_weights, _measure)
