"""`groupmorph benchmark full_size`: cost and accuracy on a series of clinical size."""

import argparse
from dataclasses import replace

from ...benchmarks import Row
from .suite import add_weights, table_suite

__all__ = ["FULL_SIZE"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.full_size import full_size
    from .methods import bundle_method

    single_pass = bundle_method(args.weights, "effort/no_refine")
    methods = {
        "single pass alone": replace(single_pass, settings={"initial_alignment": "none"}),
        "affine, single pass": single_pass,
        "refined": bundle_method(args.weights),
    }
    return full_size(methods)


FULL_SIZE = table_suite(
    "full_size", "seconds, memory and errors on six scans of 371 x 371 x 180 voxels", add_weights, _measure
)
