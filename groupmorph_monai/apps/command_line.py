"""The command line: a thin layer over the bundle's configs, so that both give the same files."""

import argparse
import difflib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from monai.bundle import ConfigParser, run

from ..data.points import read_points
from ..data.readers import read_series
from ..data.writers import apply_field, apply_field_to_points, check_output_dir, write_image, write_points
from ..errors import InputError
from .arguments import make_parser
from .configs import bundle_root, config_files
from .demo import run_demo
from .input_errors import find_input_error

__all__ = ["main"]

POINT_FILES = (".csv", ".txt", ".fcsv", ".pts")


def _run(
    run_id: str, config: str, overlays: Sequence[str] = (), settings: Sequence[str] = (), **overrides: object
) -> None:
    """Run a config with overlays. ``settings`` are NAME=VALUE, as the user writes them; overrides that are None leave
    the config's value."""
    files = config_files(config, overlays)
    given = {name: value for name, value in overrides.items() if value is not None}
    given = {"bundle_root": str(bundle_root()), **given, **_parsed(settings, config, files)}
    run(run_id=run_id, config_file=files, **given)


def _parsed(settings: Sequence[str], config: str, files: Sequence[str]) -> dict[str, object]:
    found, known = {}, ConfigParser.load_config_files(list(files)) if settings else {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(
                f"--set: expected NAME=VALUE, got {setting!r}; the names stand at the top of {config}.yaml"
            )
        if name.split("#")[0] not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            raise InputError(
                f"--set: expected a name of {config}.yaml, got {name!r}"
                + (f"; did you mean {nearest[0]}?" if nearest else "; the names stand at its top")
            )
        found[name] = yaml.safe_load(value)
        if isinstance(known.get(name), (int, float)) and isinstance(found[name], str) and value[0] not in "@$":
            try:
                found[name] = float(value)  # 1e-3, which YAML takes for text
            except ValueError:
                raise InputError(f"--set: expected a number for {name}, such as {known[name]}, got {value!r}") from None
    return found


def _resolved(files: Sequence[str]) -> list[str]:
    return [str(Path(file).resolve()) for file in files]


def register(args: argparse.Namespace) -> None:
    overlays, chosen = list(args.overlay), {}
    if args.reference != "mean":
        if not args.reference.isdigit():
            raise InputError(f"--reference: expected 'mean' or a timepoint's number from 0, got {args.reference!r}")
        overlays, chosen = [*overlays, "modes/all_to_one"], {"reference": int(args.reference)}
    if args.no_refine:
        if args.mask and args.initial == "none":
            raise InputError("--mask: nothing would look at it with --no-refine and --initial none; leave one out")
        overlays.append("effort/no_refine")
    elif args.effort != "normal":
        overlays.append(f"effort/{args.effort}")
    series = _resolved(args.files)
    _run(
        "inference",
        "inference",
        overlays,
        args.set,
        series=series,
        output_dir=args.output,
        weights=args.weights,
        spacing_mm=args.spacing_mm,
        std_draws=args.std,
        write_jacobian=args.jacobian or None,
        outside=args.outside,
        initial_alignment=args.initial,
        mask=args.mask and _resolved(args.mask),
        **chosen,
    )
    print(f"Aligned series, fields, report.json and picture: {Path(args.output) / 'report.png'}")


def apply(args: argparse.Namespace) -> None:
    check_output_dir(args.output)
    for file in args.files:
        target = Path(args.output) / Path(file).name
        if target.resolve() == Path(file).resolve():
            raise InputError(f"--output: {target} would replace the input; choose another folder")
        if Path(file).suffix.lower() in POINT_FILES:
            target = target.with_suffix(".csv")
            write_points(apply_field_to_points(args.field, read_points(file)), target)
        else:
            target = target.with_name(target.name.split(".")[0] + ".nii.gz")
            write_image(apply_field(args.field, file, nearest=args.label), target)
        print(target)


def evaluate(args: argparse.Namespace) -> None:
    _run(
        "evaluate",
        "evaluate",
        args.overlay,
        args.set,
        dataset_dir=args.dataset,
        output_dir=args.output,
        weights=args.weights,
        spacing_mm=args.spacing_mm,
    )


# What a training is laid over with and a registration by its weights needs too.
_OF_A_MODEL = ("models/", "integrators/", "modes/displacement", "modes/pair_wise", "modes/symmetric")


def train(args: argparse.Namespace) -> None:
    _run(
        "training",
        "train",
        args.overlay,
        args.set,
        dataset_dir=args.dataset,
        output_dir=args.output,
        weights=args.weights,
        max_iterations=args.iterations,
    )
    weights = Path(args.output) / "model_best.pt"
    if weights.is_file():
        model = "".join(f" --overlay {name}" for name in args.overlay if name.startswith(_OF_A_MODEL))
        print(f"Weights: {weights}; to use them: groupmorph register SERIES{model} --weights {weights} --output DIR")


def transport(args: argparse.Namespace) -> None:
    donor = _resolved(args.donor)
    number = len(read_series(donor).frames)
    _with_codes("modes/transport", args, _resolved([args.to]) * number, donor=donor)
    field = Path(args.output) / "inverse_ddf_KK.nii.gz"
    print(f"To deform it as the donor's scan KK: groupmorph apply {field} {args.to} --output DIR")


def sample(args: argparse.Namespace) -> None:
    if args.number < 2:
        raise InputError(f"--number: expected 2 or more, got {args.number}")
    _with_codes("modes/sample", args, _resolved([args.image]) * args.number, sample_seed=args.seed)


def _with_codes(mode: str, args: argparse.Namespace, series: Sequence[str], **chosen: object) -> None:
    overlays = [*(args.overlay or ["models/krebs_cvae"]), mode]
    given = {"series": series, "output_dir": args.output, "weights": args.weights, **chosen}
    _run("inference", "inference", overlays, args.set, **given)
    print(f"Deformations, report.json and picture: {Path(args.output) / 'report.png'}")


def benchmark(args: argparse.Namespace) -> None:
    if args.table == "paper":
        from .paper import run_paper

        run_paper(args)
        return
    from ..benchmarks.compare import write_table
    from .suites import SUITES

    check_output_dir(args.output)
    if (args.suite == "warped") != bool(args.series) and args.suite != "likelihoods":
        raise InputError(
            "--series: expected with --suite warped, at will with likelihoods, and with no other; name aligned scans"
        )
    table = write_table(SUITES[args.suite](args), args.output, args.suite)
    print(table.read_text())
    print(f"Table: {table}")


def demo(args: argparse.Namespace) -> None:
    run_demo(args.output, lambda files, output: _run("inference", "inference", series=files, output_dir=output))


COMMANDS = {
    "register": register,
    "apply": apply,
    "evaluate": evaluate,
    "train": train,
    "transport": transport,
    "sample": sample,
    "benchmark": benchmark,
    "demo": demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 2 after one line on standard error where the user can mend it."""
    args = make_parser().parse_args(arguments)
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    try:
        COMMANDS[args.command](args)
    except Exception as error:
        mistake = find_input_error(error)
        if mistake is None:
            raise
        print(f"groupmorph: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
