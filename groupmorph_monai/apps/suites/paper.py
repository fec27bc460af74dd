"""`groupmorph benchmark paper`: GroupMorph's Table 1, with other programs for comparison."""

import argparse
from pathlib import Path

from ...benchmarks.paper.methods import METHODS
from ..kinds import Number, Whole
from ..option_types import number, path, positive
from .suite import Suite, add_seeds

__all__ = ["PAPER"]


def _add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--data",
        default="phantom",
        metavar="NAME|DIR",
        type=path,
        help="phantom, breast, thorax, or a folder of series, such as DIR-Lab's cases (default: phantom)",
    )
    add_seeds(p)
    p.set_defaults(seeds=None)  # refused with a folder
    p.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=f"methods to run, out of {', '.join(METHODS)}",
    )
    p.add_argument(
        "--size",
        type=number(Whole(16, 1024)),
        nargs=3,
        metavar="N",
        help="size of the phantoms in voxels along each axis (default: full size)",
    )
    p.add_argument(
        "--overlay",
        action="append",
        metavar="NAME",
        help="overlay for GroupMorph-set, such as data/lung_ct; may be repeated (default: chosen by --data)",
    )
    p.add_argument(
        "--timepoints",
        type=number(Whole(2, 1000)),
        metavar="K",
        help="number of timepoints of the phantoms (default: 6)",
    )
    p.add_argument(
        "--time-limit",
        type=number(Number(0, 1e7, above=True)),
        default=3600.0,
        metavar="S",
        help="time limit per registration in seconds (default: 3600)",
    )
    p.add_argument("--threads", type=positive, default=1, metavar="N", help="threads per method (default: 1)")
    p.add_argument(
        "--against",
        choices=METHODS,
        metavar="NAME",
        help="method to which the others are compared (default: set-refined, or the last of --methods)",
    )
    p.add_argument(
        "--scaling", action="store_true", help="also measure time against the number of voxels and of timepoints"
    )


def _run(args: argparse.Namespace) -> Path:
    from .paper_table import run_paper

    return run_paper(args)


PAPER = Suite(
    "paper",
    "the published models, this package and other programs on the same series: GroupMorph's Table 1",
    _add_options,
    _run,
    "Every method runs in its own process. The page contains errors, similarity, folding, time, memory, differences "
    "with confidence intervals, figures, and the numbers of the paper. Run the same command again to resume an "
    "interrupted run. Other programs need: pip install 'groupmorph-monai[peers]'.",
)
