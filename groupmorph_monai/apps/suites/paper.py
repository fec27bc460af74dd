"""`groupmorph benchmark paper`: GroupMorph's Table 1, beside other programs."""

import argparse
from pathlib import Path

from ..kinds import Number, Whole
from ..option_types import number, path, positive
from .suite import Suite, add_seeds

__all__ = ["METHODS", "PAPER"]

METHODS = {
    "elastix-breast": "Elastix, breast (Par0032)",
    "elastix-default": "Elastix, default",
    "elastix-groupwise": "Elastix, group-wise PCA (Par0047)",
    "ants-mi": "ANTs SyN, MI",
    "ants-cc": "ANTs SyN, CC",
    "greedy": "Greedy, WNCC",
    "demons": "Diffeomorphic demons",
    "convexadam": "ConvexAdam",
    "fireants": "FireANTs",
    "unigradicon": "uniGradICON",
    "voxelmorph": "VoxelMorph",
    "voxelmorph-diff": "VoxelMorph-diff",
    "groupmorph-one": "All-to-one GroupMorph",
    "groupmorph-one-diff": "All-to-one GroupMorph-diff",
    "groupmorph-all": "All-moving GroupMorph",
    "groupmorph-all-diff": "All-moving GroupMorph-diff",
    "set-one-pass": "GroupMorph-set, one pass",
    "set-refined": "GroupMorph-set, refined",
}


def _add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--data",
        default="phantom",
        metavar="NAME|DIR",
        type=path,
        help="phantom, breast, thorax, or a folder of series, such as DIR-Lab's cases (default: phantom)",
    )
    add_seeds(p)
    p.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        metavar="NAME",
        help=f"methods to run, of {', '.join(METHODS)}",
    )
    p.add_argument(
        "--size",
        type=number(Whole(16, 1024), whole=True),
        nargs=3,
        metavar="N",
        help="size of the phantoms, in voxels along each axis (default: full size)",
    )
    p.add_argument(
        "--overlay",
        action="append",
        metavar="NAME",
        help="a config laid over GroupMorph-set's, such as data/lung_ct; may be repeated (default: what --data needs)",
    )
    p.add_argument(
        "--timepoints",
        type=number(Whole(2, 1000), whole=True),
        default=6,
        metavar="K",
        help="timepoints of the phantoms (default: 6)",
    )
    p.add_argument(
        "--time-limit",
        type=number(Number(0, 1e7, above=True)),
        default=3600.0,
        metavar="S",
        help="seconds per registration (default: 3600)",
    )
    p.add_argument("--threads", type=positive, default=1, metavar="N", help="threads of each method (default: 1)")
    p.add_argument(
        "--against",
        choices=METHODS,
        default="set-refined",
        metavar="NAME",
        help="method from which the others' differences are taken (default: set-refined)",
    )
    p.add_argument(
        "--scaling", action="store_true", help="also measure seconds against the number of voxels and of timepoints"
    )


def _run(args: argparse.Namespace) -> Path:
    from .paper_table import run_paper

    return run_paper(args)


PAPER = Suite(
    "paper",
    "the published models, this package and other programs on the same series: GroupMorph's Table 1",
    _add_options,
    _run,
    "Every method runs in a process of its own. The page holds errors, similarity, folds, seconds, memory, differences "
    "with intervals, figures, and the paper's own numbers. A stopped run goes on when the same command is given again. "
    "Other programs need: pip install 'groupmorph-monai[peers]'.",
)
