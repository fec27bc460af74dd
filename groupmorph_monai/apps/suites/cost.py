"""Suites of the time and memory of a registration, and of the duration of a study."""

import argparse
from dataclasses import replace

from ...benchmarks import Row
from .suite import add_weights, table_suite

__all__ = ["COHORT", "CONTENTION", "FULL_SIZE", "MEMORY", "SCALING"]


def _measure_scaling(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.compare import scale
    from .methods import bundle_method

    return scale(bundle_method(args.weights))


def _measure_full_size(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.full_size import full_size
    from .methods import bundle_method

    single_pass = bundle_method(args.weights, "effort/no_refine")
    methods = {
        "single pass alone": replace(single_pass, settings={"initial_alignment": "none"}),
        "affine, single pass": single_pass,
        "refined": bundle_method(args.weights),
    }
    return full_size(methods)


def _measure_memory(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.memory import memory
    from .methods import bundle_method

    method = bundle_method(args.weights)
    many = [(number, (32, 32, 24)) for number in (25, 50, 100)]
    return memory(method) + memory(method, many, scans_at_once=4)


def _measure_contention(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.contention import contention
    from ..threads import available_cores
    from .methods import bundle_method

    return contention(bundle_method(args.weights), args.threads or available_cores())


def _measure_cohort(_: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cohort import cohort

    return cohort()


SCALING = table_suite(
    "scaling", "seconds and memory against the number of scans and of voxels", add_weights, _measure_scaling
)
FULL_SIZE = table_suite(
    "full_size", "seconds, memory and errors on six scans of 371 x 371 x 180 voxels", add_weights, _measure_full_size
)
MEMORY = table_suite(
    "memory",
    "memory and seconds of a registration compared with the estimates of --dry-run",
    add_weights,
    _measure_memory,
)
CONTENTION = table_suite(
    "contention", "seconds with one and two busy processes per core", add_weights, _measure_contention
)
COHORT = table_suite(
    "cohort", "hours for 10,000 series on 1 to 1,000 workers, simulated", lambda p: None, _measure_cohort
)
