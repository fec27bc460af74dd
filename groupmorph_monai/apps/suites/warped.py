"""`groupmorph benchmark warped`: like `synthetic`, on your own aligned scans warped with known fields."""

import argparse

from ...benchmarks import Row
from .suite import add_seeds_and_weights, add_series, table_suite

__all__ = ["WARPED"]


def _add_options(p: argparse.ArgumentParser) -> None:
    add_series(p, required=True)
    add_seeds_and_weights(p)


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cases import warped_cases
    from ...benchmarks.peers.elastix import check_elastix
    from .elastix import compare_with_elastix

    check_elastix()
    cases = warped_cases(args.series, args.seeds, spacing_mm=args.spacing_mm, mask=args.mask)
    return compare_with_elastix(cases, args.weights)


WARPED = table_suite(
    "warped", "like synthetic, on your own aligned scans, each warped with a known field", _add_options, _measure
)
