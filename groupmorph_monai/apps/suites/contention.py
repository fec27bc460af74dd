"""`groupmorph benchmark contention`: time of a registration on a busy machine."""

import argparse

from ...benchmarks import Row
from .suite import add_weights, table_suite

__all__ = ["CONTENTION"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.contention import contention
    from ..threads import available_cores
    from .methods import bundle_method

    return contention(bundle_method(args.weights), args.threads or available_cores())


CONTENTION = table_suite("contention", "seconds with one and two busy processes per core", add_weights, _measure)
