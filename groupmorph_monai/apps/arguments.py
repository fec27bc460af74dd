"""Argument parser of the `groupmorph` command line."""

import argparse
from typing import TypeAlias

from .. import __version__
from .cohort_arguments import add_worker_options
from .kinds import Whole
from .option_parser import OptionParser
from .option_types import device, folder, number, path, pattern, positive, reference, seed, spacing_mm, transform_file
from .result_arguments import add_results, add_scan_pair
from .run_options import add_output, add_run_options
from .suites import SUITES
from .suites.suite import add_suites

Commands: TypeAlias = "argparse._SubParsersAction[OptionParser]"  # not generic when the program runs


def make_parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="groupmorph",
        description="Align all scans of a series (DCE-MRI or other repeated scans of one patient) in one common space.",
    )
    parser.add_argument("--version", action="version", version=f"groupmorph {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_register,
        _add_cohort,
        _add_apply,
        _add_combine,
        _add_evaluate,
        _add_train,
        _add_transport,
        _add_sample,
        _add_benchmark,
        _add_demo,
        _add_lists,
    ):
        add(commands)
    return parser


def _add_command(commands: Commands, name: str, help: str, description: str) -> OptionParser:
    """Add a command with the options that all commands share."""
    p = commands.add_parser(name, help=help, description=description)
    add_run_options(p)
    return p


def _add_files(p: argparse.ArgumentParser, name: str, metavar: str, help: str) -> None:
    p.add_argument(name, nargs="+", type=path, metavar=metavar, help=help)


def _add_device(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--device", type=device, metavar="NAME", help="cpu, cuda or cuda:N (default: the GPU if there is one)"
    )


def _add_lists(commands: Commands) -> None:
    for name, option, content in (
        ("settings", "--set", "one per line: name, unit, range, defaults and purpose"),
        ("overlays", "--overlay", "each with a one-line description"),
    ):
        text = f"list the {name} for {option}"
        _add_command(commands, name, help=text, description=f"{text.capitalize()}, {content}.")


def _add_overlay(parser: argparse.ArgumentParser, base: str, examples: str) -> None:
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="NAME",
        help=f"config that modifies {base}, such as {examples} (see 'groupmorph overlays'), or a YAML file with lines "
        "NAME: VALUE; may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"change a setting of {base} (see 'groupmorph settings'); may be repeated",
    )


def _add_dataset(p: argparse.ArgumentParser) -> None:
    series = p.add_mutually_exclusive_group(required=True)
    series.add_argument("--dataset", type=path, metavar="DIR", help="folder of series")
    series.add_argument(
        "--phantoms", action="store_true", help="use synthetic series with known motion instead of a folder"
    )
    _add_description(p, "each folder")


def _add_description(p: argparse.ArgumentParser, where: str) -> None:
    p.add_argument(
        "--series-description",
        type=pattern,
        metavar="PATTERN",
        help=f"use the series of {where} whose description matches, such as '*dyn*' (DICOM; NIfTI: file name)",
    )


def _add_model(p: argparse.ArgumentParser, base: str, examples: str) -> None:
    p.add_argument(
        "--spacing-mm",
        type=spacing_mm,
        metavar="MM",
        help="voxel size for motion estimation; larger ones are faster and less accurate (default: median of the voxel "
        "sizes, at least 1 and half the largest)",
    )
    _add_overlay(p, base, examples)
    p.add_argument("--weights", type=path, metavar="FILE", help="trained weights (default: the shipped weights)")
    _add_device(p)


def _add_register(commands: Commands) -> None:
    p = _add_command(
        commands,
        "register",
        help="align one series",
        description="Align one series and write the aligned scans, the deformation fields and a report.",
    )
    _add_files(
        p,
        "files",
        "FILES",
        "the scans in temporal order (NIfTI, MHA, NRRD), one 4D NIfTI, a folder of scans, or a DICOM study",
    )
    p.add_argument("--output", type=folder, metavar="DIR", help="folder for the results")
    p.add_argument("--list", action="store_true", help="list the series of a DICOM study and exit")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print the grids, the estimated memory and time, and the files that would be written, and exit",
    )
    _add_files(
        p,
        "--mask",
        "FILE",
        "evaluate the similarity only where this mask is above 0: one mask, on any "
        "grid, drawn on the reference (without one, on the first scan), or one per scan",
    )
    _add_files(
        p,
        "--region",
        "FILE",
        "region, such as a lesion, whose signal curves report.html shows initially: "
        "files as for --mask (default: the mask)",
    )
    _add_registration(p)


def _add_cohort(commands: Commands) -> None:
    p = _add_command(
        commands,
        "cohort",
        help="align every series of a study, on this machine or on a cluster",
        description="Register every series listed in a table, and write one folder per series, cohort.tsv and "
        "cohort.html. Run the command again to resume: finished series are skipped. The exit code is 3 if any series "
        "failed.",
    )
    p.add_argument(
        "manifest",
        type=path,
        metavar="MANIFEST",
        help="tab-separated table with the columns name, scans (a folder, or files separated by ';') and, optionally, "
        "reference, mask, spacing_mm, series_description",
    )
    add_output(p, content="the results of the study")
    add_worker_options(p, "on this machine")
    _add_registration(p)


def _add_registration(p: argparse.ArgumentParser) -> None:
    _add_description(p, "a folder")
    p.add_argument(
        "--reference",
        default="mean",
        type=reference,
        metavar="K|mean",
        help="'mean' (default): align all scans to their common mean; a number from 0: align all other scans to that "
        "scan",
    )
    refinement = p.add_mutually_exclusive_group()
    refinement.add_argument(
        "--effort",
        choices=["fast", "normal", "best"],
        help="how much refinement to run on the series (default: normal)",
    )
    refinement.add_argument(
        "--no-refine", action="store_true", help="skip refinement: several times faster, less accurate"
    )
    p.add_argument(
        "--initial",
        choices=["affine", "rigid", "none"],
        help="initial alignment of the whole scans, before deformable registration (default: affine)",
    )
    add_results(p)
    _add_model(p, "inference.yaml", "data/lung_ct or likelihoods/multi_kernel")


def _add_apply(commands: Commands) -> None:
    p = _add_command(
        commands,
        "apply",
        help="apply a written field to other images, label maps or points",
        description="Apply a field written by 'register' to images, label maps or points: ddf_KK maps images of scan "
        "KK to the common space and points of the common space to scan KK; inverse_ddf_KK does the opposite.",
    )
    p.add_argument("field", type=path, metavar="FIELD", help="ddf_KK.nii.gz or inverse_ddf_KK.nii.gz")
    _add_files(p, "files", "FILES", "images, or points (.csv in RAS mm, ITK .txt, Slicer .mrk.json or .fcsv)")
    add_output(
        p,
        content="the results; images and .mrk.json keep their names, and other points become .csv with the columns "
        "x, y, z and, if the points have names, label",
    )
    p.add_argument("--label", action="store_true", help="images are label maps: use nearest-neighbour interpolation")


def _add_combine(commands: Commands) -> None:
    p = _add_command(
        commands,
        "combine",
        help="write the transform from one scan of a registered series to another",
        description="Compose the fields of two scans of a registered series: the transform maps points of scan I to "
        "the same tissue in scan J, and images of scan J to the grid of scan I.",
    )
    p.add_argument("result", type=path, metavar="DIR", help="output folder of 'register'")
    add_scan_pair(p)
    p.add_argument(
        "--output", required=True, type=transform_file, metavar="FILE", help="field (.nii.gz) or ITK transform (.h5)"
    )


def _add_evaluate(commands: Commands) -> None:
    p = _add_command(
        commands,
        "evaluate",
        help="measure registration accuracy on many series",
        description="Register every series of a folder and print a table of metrics: landmark distances (for series "
        "with landmarks), similarity and folding. Run the command again to resume. With workers, series that fail are "
        "listed at the end, and the exit code is 3.",
    )
    _add_dataset(p)
    add_output(p, "out", "metrics.csv and metrics.json")
    add_worker_options(p, "in this process, one series after the other")
    _add_model(p, "evaluate.yaml", "data/lung_ct or effort/best")


def _add_train(commands: Commands) -> None:
    p = _add_command(
        commands,
        "train",
        help="train the network on your own series",
        description="Train the network. Run the same command again to resume an interrupted training.",
    )
    _add_dataset(p)
    _add_device(p)
    add_output(p, "runs/train", "checkpoints and logs")
    p.add_argument(
        "--weights",
        type=path,
        metavar="FILE",
        help="initial weights, such as the bundle's models/model.pt (default: random)",
    )
    p.add_argument("--iterations", type=positive, metavar="N", help="number of iterations (default: 100000)")
    _add_overlay(p, "train.yaml", "data/phantom_small or modes/all_to_one")


def _add_coded(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--weights", required=True, type=path, metavar="FILE", help="weights of a latent-code model that you trained"
    )
    _add_device(p)
    add_output(p)
    _add_overlay(p, "inference.yaml", "models/krebs_cvae (default)")


def _add_transport(commands: Commands) -> None:
    p = _add_command(
        commands,
        "transport",
        help="transfer the deformations of one patient's series to an image of another patient",
        description="Encode the deformations of one series and decode them for an image of another patient. This needs "
        "a latent-code model: groupmorph train --phantoms --overlay models/krebs_cvae.",
    )
    _add_files(p, "donor", "FILES", "the series whose deformations are transferred")
    p.add_argument("--to", required=True, type=path, metavar="FILE", help="image of the other patient")
    _add_coded(p)


def _add_sample(commands: Commands) -> None:
    p = _add_command(
        commands,
        "sample",
        help="draw random deformations of one image",
        description="Draw codes from the prior and decode them for one image. This needs a latent-code model: "
        "groupmorph train --phantoms --overlay models/krebs_cvae.",
    )
    p.add_argument("image", type=path, metavar="FILE", help="the image to deform")
    p.add_argument(
        "--number",
        type=number(Whole(2, 10000)),
        default=6,
        metavar="N",
        help="number of deformations to draw (default: 6)",
    )
    p.add_argument("--seed", type=seed, metavar="N", help="random seed (default: 0)")
    _add_coded(p)


def _add_benchmark(commands: Commands) -> None:
    p = commands.add_parser(
        "benchmark",
        help="compare with other programs, or measure accuracy, capture range and cost",
        description="Register series with known motion and write a page of results. Without NAME, list the suites.",
    )
    add_suites(p, SUITES)


def _add_demo(commands: Commands) -> None:
    p = _add_command(
        commands,
        "demo",
        help="register a synthetic series with known motion",
        description="Generate a series with known motion, register it, and print the error before and after.",
    )
    add_output(p, "demo_output")
