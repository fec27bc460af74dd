"""What the command line takes."""

import argparse

from .. import __version__
from .cohort_arguments import COHORT_TEXTS, add_cohort_options
from .kinds import Whole
from .option_types import device, number, path, positive, reference, seed, spacing_mm
from .result_arguments import add_results, add_scan_pair
from .run_options import add_run_options
from .suites import SUITES
from .suites.suite import add_suites

__all__ = ["make_parser"]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="groupmorph",
        description="Align all scans of a series (DCE-MRI and other repeated scans of one patient) in one space.",
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
        _add_settings,
        _add_overlays,
    ):
        add(commands)
    return parser


def _add_command(commands: argparse._SubParsersAction, name: str, **texts: str) -> argparse.ArgumentParser:
    """Add a command with the options that all have."""
    p = commands.add_parser(name, **texts)
    add_run_options(p)
    return p


def _add_device(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--device", type=device, metavar="NAME", help="cpu, cuda or cuda:N (default: the GPU where there is one)"
    )


def _add_settings(commands: argparse._SubParsersAction) -> None:
    _add_command(
        commands,
        "settings",
        help="list every setting that --set takes",
        description="List every setting that --set takes: name, unit, range and defaults, one a line.",
    )


def _add_overlays(commands: argparse._SubParsersAction) -> None:
    _add_command(
        commands,
        "overlays",
        help="list every overlay that --overlay takes",
        description="List every overlay that --overlay takes, with one line on what it does.",
    )


def _add_overlay(parser: argparse.ArgumentParser, base: str, examples: str) -> None:
    parser.add_argument(
        "--overlay",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a config laid over {base}, such as {examples} ('groupmorph overlays' lists all), or a YAML file of "
        "NAME: VALUE; may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a setting of {base}, as 'groupmorph settings' lists them; may be repeated",
    )


def _add_dataset(p: argparse.ArgumentParser) -> None:
    series = p.add_mutually_exclusive_group(required=True)
    series.add_argument("--dataset", type=path, metavar="DIR", help="folder of series")
    series.add_argument(
        "--phantoms", action="store_true", help="instead of a folder: artificial series whose true motion is known"
    )
    _add_description(p, "each folder")


def _add_description(p: argparse.ArgumentParser, where: str) -> None:
    p.add_argument(
        "--series-description",
        metavar="PATTERN",
        help=f"take the series of {where} whose description matches, such as '*dyn*' (DICOM; or NIfTI names)",
    )


def _add_model(p: argparse.ArgumentParser, base: str, examples: str) -> None:
    p.add_argument(
        "--spacing-mm",
        type=spacing_mm,
        metavar="MM",
        help="voxel size at which the motion is found (default: the scans' own, at least 1 and half a slice)",
    )
    _add_overlay(p, base, examples)
    p.add_argument("--weights", type=path, metavar="FILE", help="trained weights other than those that ship")
    _add_device(p)


def _add_register(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "register",
        help="align one series",
        description="Align one series and write it, its deformation fields and a report.",
    )
    p.add_argument(
        "files",
        nargs="+",
        type=path,
        metavar="FILES",
        help="the scans in the order of time (NIfTI, MHA, NRRD), one 4D NIfTI, a folder of scans, or a DICOM study",
    )
    p.add_argument("--output", type=path, metavar="DIR", help="folder for the results")
    _add_instead_of_registering(p)
    p.add_argument(
        "--mask",
        nargs="+",
        type=path,
        metavar="FILE",
        help="evaluate the similarity only where this mask is above 0: one mask on the grid of the reference (of the "
        "first scan without one), or one per scan",
    )
    p.add_argument(
        "--region",
        nargs="+",
        type=path,
        metavar="FILE",
        help="show the signal curves of this region, such as a lesion, in report.html from the start: drawn as a mask, "
        "and without it the mask itself",
    )
    _add_registration(p)


def _add_cohort(commands: argparse._SubParsersAction) -> None:
    p = _add_command(commands, "cohort", **COHORT_TEXTS)
    add_cohort_options(p)
    _add_registration(p)


def _add_registration(p: argparse.ArgumentParser) -> None:
    _add_description(p, "a folder")
    p.add_argument(
        "--reference",
        default="mean",
        type=reference,
        metavar="K|mean",
        help="'mean' (default): all scans move to their common mean; a number from 0: that scan stays and the "
        "others move onto it",
    )
    refinement = p.add_mutually_exclusive_group()
    refinement.add_argument(
        "--effort",
        choices=["fast", "normal", "best"],
        help="how long the network's answer is refined for this series (default: normal)",
    )
    refinement.add_argument(
        "--no-refine", action="store_true", help="take the network's answer as it is: several times faster, less exact"
    )
    p.add_argument(
        "--initial",
        choices=["affine", "rigid", "none"],
        help="how whole scans are brought together before anything is deformed (default: affine)",
    )
    add_results(p)
    _add_model(p, "inference.yaml", "data/lung_ct or likelihoods/multi_kernel")


def _add_instead_of_registering(p: argparse.ArgumentParser) -> None:
    p.add_argument("--list", action="store_true", help="list the series of a DICOM study and do nothing else")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="tell the grids, the memory, the time and the files that would be written, and do nothing else",
    )


def _add_apply(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "apply",
        help="move other images, label maps or points with a written field",
        description="Move images, label maps or points with a field that 'register' wrote: ddf_KK brings images of "
        "scan KK into the common space and points of the common space to scan KK; inverse_ddf_KK does the opposite.",
    )
    p.add_argument("field", type=path, metavar="FIELD", help="ddf_KK.nii.gz or inverse_ddf_KK.nii.gz")
    p.add_argument(
        "files",
        nargs="+",
        type=path,
        metavar="FILES",
        help="images, or points (.csv in RAS mm, ITK .txt, Slicer .fcsv)",
    )
    p.add_argument("--output", required=True, type=path, metavar="DIR", help="folder for the results; names are kept")
    p.add_argument("--label", action="store_true", help="the images are label maps: keep their values, do not mix them")


def _add_combine(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "combine",
        help="write the map from one scan of a registered series to another",
        description="Join the fields of two scans of a result of 'register': the map takes a point of scan I to the "
        "same tissue in scan J, and images of scan J onto the grid of scan I.",
    )
    p.add_argument("result", type=path, metavar="DIR", help="folder that 'register' wrote")
    add_scan_pair(p)
    p.add_argument("--output", required=True, type=path, metavar="FILE", help="field (.nii.gz) or ITK transform (.h5)")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "evaluate",
        help="measure the alignment of many series",
        description="Register every series of a folder and print a table: landmark distances where there are "
        "landmarks, similarity, folding.",
    )
    _add_dataset(p)
    p.add_argument(
        "--output",
        default="out",
        type=path,
        metavar="DIR",
        help="folder for metrics.csv and metrics.json (default: out)",
    )
    _add_model(p, "evaluate.yaml", "data/lung_ct or effort/best")


def _add_train(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "train",
        help="train the network on your own series",
        description="Train the network. A stopped training goes on when the same command is given again.",
    )
    _add_dataset(p)
    _add_device(p)
    p.add_argument(
        "--output",
        default="runs/train",
        type=path,
        metavar="DIR",
        help="folder for checkpoints and logs (default: runs/train)",
    )
    p.add_argument(
        "--weights",
        type=path,
        metavar="FILE",
        help="begin from these, such as the bundle's models/model.pt (default: from nothing)",
    )
    p.add_argument("--iterations", type=positive, metavar="N", help="how long to train (default 100000)")
    _add_overlay(p, "train.yaml", "data/phantom_small or modes/all_to_one")


def _add_coded(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", required=True, type=path, metavar="FILE", help="of a model with codes that you trained")
    _add_device(p)
    p.add_argument("--output", required=True, type=path, metavar="DIR", help="folder for the results")
    _add_overlay(p, "inference.yaml", "models/krebs_cvae (default)")


def _add_transport(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "transport",
        help="carry the deformations of one patient's series to another's image",
        description="Encode the deformations of one series and decode them for another patient's image. It needs a "
        "model whose deformations are codes: groupmorph train --phantoms --overlay models/krebs_cvae.",
    )
    p.add_argument(
        "donor", nargs="+", type=path, metavar="FILES", help="the series whose deformations are carried over"
    )
    p.add_argument("--to", required=True, type=path, metavar="FILE", help="the other patient's image")
    _add_coded(p)


def _add_sample(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "sample",
        help="draw new deformations of one image",
        description="Draw codes from the prior and decode them for one image. It needs a model whose deformations are "
        "codes: groupmorph train --phantoms --overlay models/krebs_cvae.",
    )
    p.add_argument("image", type=path, metavar="FILE", help="the image to deform")
    p.add_argument(
        "--number",
        type=number(Whole(2, 10000), whole=True),
        default=6,
        metavar="N",
        help="number of deformations to draw (default: 6)",
    )
    p.add_argument("--seed", type=seed, default=0, metavar="N", help="random seed (default: 0)")
    _add_coded(p)


def _add_benchmark(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser(
        "benchmark",
        help="compare with other programs, or measure accuracy, capture range and cost",
        description="Register series whose true motion is known and write one page. Without a name: list the suites.",
    )
    add_suites(p, SUITES)


def _add_demo(commands: argparse._SubParsersAction) -> None:
    p = _add_command(
        commands,
        "demo",
        help="register an artificial series whose true motion is known",
        description="Make a series whose true motion is known, register it, and print the error before and after.",
    )
    p.add_argument(
        "--output",
        default="demo_output",
        type=path,
        metavar="DIR",
        help="folder for the results (default: demo_output)",
    )
