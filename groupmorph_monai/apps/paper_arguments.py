"""The options of `groupmorph benchmark paper`."""

import argparse

from .kinds import Number, Whole
from .option_types import number, path, positive, seed

__all__ = ["METHODS", "add_paper"]

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


def add_paper(tables: argparse._SubParsersAction) -> None:
    """Add the subcommand and its options."""
    p = tables.add_parser(
        "paper",
        help="GroupMorph's Table 1: published models and other programs on the same series",
        description="Register series by every method, each in a process of its own, and write one page: errors, "
        "similarity, folds, seconds, memory, differences with intervals, figures, and the paper's own numbers. A "
        "stopped run goes on when the same command is given again. Programs of others need: pip install "
        "'groupmorph-monai[peers]'.",
    )
    p.add_argument(
        "--data",
        default="phantom",
        metavar="NAME|DIR",
        type=path,
        help="phantom, breast, thorax, or a folder of series, such as DIR-Lab's cases (default: phantom)",
    )
    p.add_argument(
        "--seeds", type=seed, nargs="+", default=[3001, 3002, 3003], metavar="N", help="random seeds of phantoms"
    )
    p.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help=f"of {', '.join(METHODS)}"
    )
    p.add_argument(
        "--size",
        type=number(Whole(16, 1024), whole=True),
        nargs=3,
        metavar="N",
        help="of phantoms, voxels along each axis (default: full size)",
    )
    p.add_argument(
        "--overlay",
        action="append",
        metavar="NAME",
        help="a config laid over GroupMorph-set's, such as data/lung_ct; may be repeated (default: what --data needs)",
    )
    p.add_argument(
        "--timepoints", type=number(Whole(2, 1000), whole=True), default=6, metavar="K", help="of phantoms (default: 6)"
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
    p.add_argument(
        "--output", default="benchmarks", type=path, metavar="DIR", help="folder for the page (default: benchmarks)"
    )
