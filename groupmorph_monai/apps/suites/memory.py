"""`groupmorph benchmark memory`: memory and time compared with the estimates of `--dry-run`."""

import argparse

from ...benchmarks import Row
from .suite import add_weights, table_suite

__all__ = ["MEMORY"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.memory import memory
    from .methods import bundle_method

    method = bundle_method(args.weights)
    many = [(number, (32, 32, 24)) for number in (25, 50, 100)]
    return memory(method) + memory(method, many, scans_at_once=4)


MEMORY = table_suite(
    "memory", "memory and seconds of a registration compared with the estimates of --dry-run", add_weights, _measure
)
