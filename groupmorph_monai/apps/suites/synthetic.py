"""`groupmorph benchmark synthetic`: errors, time and memory compared with Elastix, on phantoms with known motion."""

import argparse

from ...benchmarks import Row
from .suite import add_seeds_and_weights, table_suite

__all__ = ["SYNTHETIC"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cases import synthetic_cases
    from ...benchmarks.peers.elastix import check_elastix
    from .elastix import compare_with_elastix

    check_elastix()  # before generating the phantoms, which takes a while
    return compare_with_elastix(synthetic_cases(args.seeds), args.weights)


SYNTHETIC = table_suite(
    "synthetic",
    "errors, seconds and memory on synthetic series, compared with Elastix in the same run",
    add_seeds_and_weights,
    _measure,
)
