"""Aligned scans, each warped with a known field, compared with Elastix."""

import argparse
from functools import partial
from typing import Any

from ..option_types import path, spacing_mm
from .suite import add_seeds_and_weights, table_suite
from .synthetic import compare_with_elastix


def add_series(p: argparse.ArgumentParser, required: bool) -> None:
    """Add ``--series``, aligned scans to warp with known fields, its options, ``--seeds`` and ``--weights``."""
    p.add_argument(
        "--series",
        nargs="+",
        required=required,
        type=path,
        metavar="FILE",
        help="aligned scans, to be warped with known fields" + ("" if required else " (default: synthetic series)"),
    )
    p.add_argument(
        "--spacing-mm", type=spacing_mm, metavar="MM", help="voxel size of the warped scans (default: unchanged)"
    )
    p.add_argument(
        "--mask",
        type=path,
        metavar="FILE",
        help="evaluate errors of the warped scans only where this mask is above 0 (default: in bright regions)",
    )
    add_seeds_and_weights(p)


def warped_series(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Warp the scans of ``--series`` with known fields."""
    from ...benchmarks.cases import warped_cases

    return warped_cases(args.series, args.seeds, spacing_mm=args.spacing_mm, mask=args.mask)


WARPED = table_suite(
    "warped",
    "like synthetic, on your own aligned scans, each warped with a known field",
    partial(add_series, required=True),
    lambda args: compare_with_elastix(lambda: warped_series(args), args.weights),
)
