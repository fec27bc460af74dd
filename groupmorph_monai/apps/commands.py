"""The commands, each a thin layer over the bundle's configs: both produce the same files."""

import argparse
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..data.reading.folders import list_series
from ..data.reading.points import is_points
from ..data.reading.readers import read_series
from ..data.writing.applying import apply_field_to_files, combine_fields
from ..errors import InputError
from ..workflow.parsed_config import parsed_config
from ..workflow.training_folder import logs_discarded_on_failure
from .cohort_arguments import check_worker_options, on_workers
from .demo import print_verdict, run_demo
from .dry_run import describe_run
from .places import absolute_paths, check_place, check_place_of_study
from .registration_options import check_modes, registration
from .run import checked_run, run_bundle


def _typed(args: argparse.Namespace) -> str:
    """Return the command as typed, for the report."""
    return shlex.join(["groupmorph", *args.typed])


def register(args: argparse.Namespace) -> None:
    if args.list:
        listing, reason = list_series(args.files, args.series_description)
        print(listing, flush=True)
        if reason:
            raise reason
        return
    if not args.output:
        raise InputError("register: expected --output, got none; see groupmorph register --help")
    check_place(args.output, args.files)
    positional, options = registration(args)
    if args.dry_run:
        describe_run(parsed_config(*checked_run(*positional, **options)), args.output, args.started_s)
        return
    run_bundle("inference", *positional, command=_typed(args), output_dir=args.output, **options)
    print_verdict(args.output, args.quiet)
    print(f"Report, beside the aligned series and its fields: {Path(args.output) / 'report.html'}")


def cohort(args: argparse.Namespace) -> int:
    from .cohort.registrations import run_cohort

    check_worker_options(args)
    return run_cohort(args)


def apply(args: argparse.Namespace) -> None:
    if args.label and all(map(is_points, args.files)):
        raise InputError(f"--label: expected a label map among the files, got points alone, {args.files[0]}; omit it")
    check_place(args.output, args.files)
    for target in apply_field_to_files(args.field, args.files, args.output, nearest=args.label):
        print(target)


def combine(args: argparse.Namespace) -> None:
    if args.origin == args.target:
        raise InputError(f"--to: expected another scan than --from, got {args.target} for both; choose two scans")
    combine_fields(args.result, args.origin, args.target, args.output)
    print(args.output)


# Settings of series in a folder, and prefixes of the settings of synthetic series.
_FOLDER_SETTINGS = ("held_out", "phantom_share", "series_description", "split", "validation_fraction")
_PHANTOM_PREFIXES = ("phantom", "heart", "breast", "thorax")


def _check_source(args: argparse.Namespace) -> None:
    """Refuse options and settings of the series in a folder for synthetic series, and vice versa."""
    settings = dict.fromkeys(text.partition("=")[0] for text in args.set)
    if args.phantoms:
        unused = [f"--set {name}" for name in settings if name in _FOLDER_SETTINGS]
        unused += ["--series-description"] if args.series_description else []
    elif args.command == "evaluate" or not ({"phantom_share"} & settings.keys() or args.overlay):
        unused = [f"--set {name}" for name in settings if name.startswith(_PHANTOM_PREFIXES)]
    else:
        return
    if unused:
        source, other = ("--phantoms", "--dataset") if args.phantoms else ("--dataset", "--phantoms")
        raise InputError(f"{unused[0]}: expected an option with an effect, got one for {other} with {source}; omit it")


def evaluate(args: argparse.Namespace) -> int:
    _check_source(args)
    check_worker_options(args)
    if on_workers(args):
        from .cohort.evaluations import run_evaluation

        return run_evaluation(args)
    _run_study("evaluate", "evaluate", args, spacing_mm=args.spacing_mm)
    return 0


def measure(args: argparse.Namespace) -> None:
    """Measure one series of `evaluate`, on a worker."""
    options = {"weights": args.weights, "spacing_mm": args.spacing_mm, "items": [args.item], "output_dir": args.output}
    run_bundle("evaluate", "evaluate", args.overlay, args.set, args.device, **options)


def _run_study(workflow: str, config: str, args: argparse.Namespace, **options: object) -> None:
    if args.dataset:
        check_place_of_study(args.output, args.dataset)
    check_modes(args.overlay, workflow)
    options |= {"dataset_dir": args.dataset, "series_description": args.series_description, "output_dir": args.output}
    run_bundle(workflow, config, args.overlay, args.set, args.device, weights=args.weights, **options)


# Training overlays that a registration with the trained weights also accepts.
_MODEL_OVERLAYS = (
    "models/", "integrators/", "likelihoods/", "modes/all_moving", "modes/all_to_one", "modes/displacement",
    "modes/geodesic_mean", "modes/pair_wise", "modes/symmetric",
)  # fmt: skip


def train(args: argparse.Namespace) -> None:
    _check_source(args)
    # PyTorch creates its Inductor cache folder with the first optimizer, even if nothing is compiled; point it at an
    # existing folder.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    with logs_discarded_on_failure(args.output):
        _run_study("training", "train", args, max_iterations=args.iterations)
    weights = Path(args.output) / "model_best.pt"
    if weights.is_file():
        model = "".join(f" --overlay {name}" for name in args.overlay if name.startswith(_MODEL_OVERLAYS))
        print(f"Weights: {weights}; to use them: groupmorph register SERIES{model} --weights {weights} --output DIR")


def transport(args: argparse.Namespace) -> None:
    check_place(args.output, [*args.donor, args.to])
    donor = absolute_paths(args.donor)
    number = len(read_series(donor).frames)
    _with_codes("modes/transport", args, absolute_paths([args.to]) * number, donor=donor)
    field = Path(args.output) / "inverse_ddf_KK.nii.gz"
    print(f"To apply the deformation of the donor's scan KK: groupmorph apply {field} {args.to} --output DIR")


def sample(args: argparse.Namespace) -> None:
    check_place(args.output, [args.image])
    _with_codes("modes/sample", args, absolute_paths([args.image]) * args.number, sample_seed=args.seed)


def _with_codes(mode: str, args: argparse.Namespace, series: Sequence[str], **chosen: object) -> None:
    overlays = [*(args.overlay or ["models/krebs_cvae"]), mode]
    options = {"series": series, "output_dir": args.output, "weights": args.weights, **chosen}
    run_bundle("inference", "inference", overlays, args.set, args.device, command=_typed(args), **options)
    print(f"Deformations, report.json and images: {Path(args.output) / 'report.html'}")


def benchmark(args: argparse.Namespace) -> None:
    if args.suite is None:
        print(args.suites)
        return
    seeds = getattr(args, "seeds", None) or ()
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise InputError(f"--seeds: expected different numbers, got {repeated[0]} twice; omit one")
    page = args.suite.run(args)
    print(page.read_text(encoding="utf-8"))
    print(f"Page: {page}")


def demo(args: argparse.Namespace) -> None:
    def register_files(files: list[str], output: str) -> None:
        run_bundle("inference", "inference", command=_typed(args), series=files, output_dir=output)

    run_demo(args.output, register_files)


COMMANDS = {
    "register": register,
    "cohort": cohort,
    "apply": apply,
    "combine": combine,
    "evaluate": evaluate,
    "measure": measure,  # not on the command line
    "train": train,
    "transport": transport,
    "sample": sample,
    "benchmark": benchmark,
    "demo": demo,
}
