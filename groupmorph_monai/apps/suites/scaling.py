"""`groupmorph benchmark scaling`: cost against the number of scans and of voxels."""

import argparse

from ...benchmarks import Row
from .suite import add_weights, table_suite

__all__ = ["SCALING"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.compare import scale
    from .methods import bundle_method

    return scale(bundle_method(args.weights))


SCALING = table_suite("scaling", "seconds and memory against the number of scans and of voxels", add_weights, _measure)
