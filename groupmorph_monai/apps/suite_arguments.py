"""The options of ``groupmorph benchmark``."""

import argparse

from .kinds import Number
from .option_types import number, path, seed, spacing_mm
from .paper_arguments import add_paper

__all__ = ["BENCHMARK_TEXTS", "SUITES", "add_suite_options"]

# Each suite, and what its table compares.
SUITES = {
    "synthetic": "artificial series, by this package and by Elastix in the same run",
    "warped": "the same on your own aligned scans (--series), each warped by a known field",
    "likelihoods": "every likelihood of this package on the same series",
    "breathing": "how far organs may move along a wall that stands still",
    "scaling": "seconds and memory against the number of scans and of voxels",
    "full_size": "the same for six scans of 371 x 371 x 180 voxels",
    "integrators": "errors and folds of every way to integrate a velocity",
    "shapes": "disks that become a C",
    "models": "every model, and additions to GroupMorph, trained alike for --minutes each",
    "codes": "what the codes of models/krebs_cvae, trained for --minutes on beating hearts, tell of them",
    "surfaces": "models/voxelmorph_diff trained on pairs of your own subjects (--dataset), without labels and with "
    "modes/surfaces",
    "affine": "what models/avsm_affine, trained for --minutes, finds of affine motion in one pass and in several",
    "symmetry": "models/avsm trained for --minutes each on pairs in both orders, with the symmetry loss and without",
    "covariance": "models/voxelmorph_diff trained for --minutes each with draws that are smooth and that are not",
    "reliability": "whether the stated uncertainty is the true one",
    "contention": "seconds beside one and two busy processes for each core",
    "verdicts": "what PASS, LOOK and FAIL say of good series and of planted failures",
    "memory": "what a registration takes beside what is estimated before it",
    "cohort": "a simulation of 10,000 series on 1 to 1,000 workers",
}
BENCHMARK_TEXTS = {
    "help": "compare with Elastix, compare likelihoods or models, or measure capture range and cost",
    "description": "Register series whose true motion is known and write one table. "
    + "; ".join(f"{name}: {text}" for name, text in SUITES.items())
    + ".",
}


def add_suite_options(p: argparse.ArgumentParser) -> None:
    """Add the options of all suites, and the paper's table as a command of its own."""
    p.add_argument("--suite", choices=list(SUITES), default="synthetic")
    p.add_argument(
        "--seeds",
        type=seed,
        nargs="+",
        default=[3001, 3002, 3003],
        metavar="N",
        help="of artificial series or motions",
    )
    p.add_argument(
        "--series", nargs="+", type=path, metavar="FILE", help="scans that lie alike as acquired, to be warped"
    )
    p.add_argument(
        "--spacing-mm", type=spacing_mm, metavar="MM", help="voxel size of the warped scans (default: their own)"
    )
    p.add_argument(
        "--mask",
        type=path,
        metavar="FILE",
        help="where errors of warped scans count (default: where these are bright)",
    )
    p.add_argument(
        "--dataset", type=path, metavar="DIR", help="subjects: a folder with images/ and labels/, of one name each"
    )
    p.add_argument(
        "--minutes",
        type=number(Number(0, 1e5, above=True)),
        default=10.0,
        metavar="N",
        help="of training, for each model (default: 10)",
    )
    p.add_argument(
        "--output", default="benchmarks", type=path, metavar="DIR", help="folder for the table (default: benchmarks)"
    )
    p.add_argument("--weights", type=path, metavar="FILE", help="trained weights other than those that ship")
    add_paper(p.add_subparsers(dest="table", metavar="paper", help="a table with options of its own"))
