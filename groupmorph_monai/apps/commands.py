"""The commands, each a thin layer over the bundle's configs, so that both give the same files."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow

from ..data.applying import apply_field_to_files, combine_fields
from ..data.checks import check_dataset
from ..data.folders import list_series
from ..data.output_folder import check_output_dir, claim
from ..data.readers import read_series
from ..errors import InputError
from ..workflow.literal import literal
from ..workflow.weights import read_weights
from .configs import bundle_root, config_files, overlay_names, read_configs
from .demo import run_demo
from .places import absolute_paths, check_place, check_place_of_study
from .setting_values import check_settings, parse_settings, read_settings, setting_value

__all__ = ["COMMANDS"]

logger = logging.getLogger(__name__)
logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of how it is called here


def _run(
    run_id: str,
    config: str,
    overlays: Sequence[str] = (),
    settings: Sequence[str] = (),
    device: str | None = None,
    **overrides: object,
) -> None:
    """Run a config.

    Args:
        overlays: names of those that the bundle ships, or YAML files of the user's own settings.
        settings: NAME=VALUE, as the user writes them.
        device: PyTorch's name of it; None for the GPU, or the CPU where there is none.
        overrides: values of the config; None leaves the config's own.
    """
    shipped, own = _split(overlays)
    files = config_files(config, shipped)
    _check_overlays(config, shipped)
    values = {}
    for file in own:
        values.update(read_settings(file, config, files))
    values.update((name, value) for name, value in overrides.items() if value is not None)
    values.update(parse_settings(settings, config, files))
    all_values = {**read_configs(files), **values}
    check_settings(all_values)
    if "weights" in values:
        read_weights(values["weights"])
    if "dataset_dir" in values:
        least, pattern = (setting_value(all_values, name) for name in ("timepoints_least", "series_description"))
        check_dataset(values["dataset_dir"], least or 2, pattern)
    if device:
        values["device"] = _device(device)
    values["bundle_root"] = str(bundle_root())
    logger.debug("Running %s with %s", files, values)
    workflow = ConfigWorkflow(
        config_file=files,
        run_id=run_id,
        logging_file=False,
        **{name: literal(value) for name, value in values.items()},
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def _split(overlays: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Tell the bundle's overlays from the user's own files."""
    known, shipped, own = overlay_names(), [], []
    for name in overlays:
        file = next((f for f in (Path(name), Path(f"{name}.yaml")) if name and f.is_file()), None)
        if file is not None and name not in known:
            own.append(file)
        else:
            shipped.append(name)
    return shipped, own


def _check_overlays(config: str, overlays: Sequence[str]) -> None:
    """Refuse an overlay that changes parts which this config does not have, such as of training."""
    known = read_configs(config_files(config, ()))
    for name in overlays:
        own = read_configs(config_files(config, (name,))[-1:])
        missing = [key for key in own if "#" in key and key.split("#")[0] not in {**known, **own}]
        if missing:
            raise InputError(
                f"--overlay {name}: expected one for {config}.yaml, got one that changes "
                f"{missing[0].split('#')[0]}, which that does not have; leave it out here"
            )


def _device(name: str) -> torch.device:
    device = torch.device(name)
    kind = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device.type)
    number = torch.cuda.device_count() if device.type == "cuda" else 1
    if kind is not None and not (kind.is_available() and (device.index or 0) < number):
        raise InputError(f"--device: expected a device that PyTorch finds here, got {name}; take cpu")
    return device


def register(args: argparse.Namespace) -> None:
    if args.list:
        print(list_series(args.files, args.series_description))
        return
    if not args.output:
        raise InputError("--output: expected a folder for the results, got none; name one")
    check_place(args.output, args.files)
    overlays, chosen = list(args.overlay), {}
    if args.reference != "mean":
        overlays, chosen = [*overlays, "modes/all_to_one"], {"reference": int(args.reference)}
    if args.no_refine:
        if args.mask and args.initial == "none":
            raise InputError("--mask: nothing would look at it with --no-refine and --initial none; leave one out")
        overlays.append("effort/no_refine")
    elif args.effort not in (None, "normal"):
        overlays.append(f"effort/{args.effort}")
    _run(
        "inference",
        "inference",
        overlays,
        args.set,
        args.device,
        series=absolute_paths(args.files),
        series_description=args.series_description,
        output_dir=args.output,
        weights=args.weights,
        spacing_mm=args.spacing_mm,
        std_draws=args.std,
        write_jacobian=args.jacobian or None,
        write_fields=args.fields,
        write_transforms=args.transforms or None,
        write_dicom=args.dicom or None,
        write_sequence=args.sequence or None,
        outside=args.outside,
        initial_alignment=args.initial,
        mask=args.mask and absolute_paths(args.mask),
        **chosen,
    )
    print(f"Aligned series, fields, report.json and picture: {Path(args.output) / 'report.png'}")


def apply(args: argparse.Namespace) -> None:
    check_place(args.output, args.files)
    for target in apply_field_to_files(args.field, args.files, args.output, nearest=args.label):
        print(target)


def combine(args: argparse.Namespace) -> None:
    combine_fields(args.result, args.origin, args.target, args.output)
    print(args.output)


def evaluate(args: argparse.Namespace) -> None:
    if args.dataset:
        check_place_of_study(args.output, args.dataset)
    _run(
        "evaluate",
        "evaluate",
        args.overlay,
        args.set,
        args.device,
        dataset_dir=args.dataset,
        series_description=args.series_description,
        output_dir=args.output,
        weights=args.weights,
        spacing_mm=args.spacing_mm,
    )


# What a training is laid over with and a registration by its weights needs too.
_OF_A_MODEL = ("models/", "integrators/", "modes/displacement", "modes/pair_wise", "modes/symmetric")


def train(args: argparse.Namespace) -> None:
    if args.dataset:
        check_place_of_study(args.output, args.dataset)
    check_output_dir(args.output)
    _run(
        "training",
        "train",
        args.overlay,
        args.set,
        args.device,
        dataset_dir=args.dataset,
        series_description=args.series_description,
        output_dir=args.output,
        weights=args.weights,
        max_iterations=args.iterations,
    )
    weights = Path(args.output) / "model_best.pt"
    if weights.is_file():
        model = "".join(f" --overlay {name}" for name in args.overlay if name.startswith(_OF_A_MODEL))
        print(f"Weights: {weights}; to use them: groupmorph register SERIES{model} --weights {weights} --output DIR")


def transport(args: argparse.Namespace) -> None:
    check_place(args.output, [*args.donor, args.to])
    donor = absolute_paths(args.donor)
    number = len(read_series(donor).frames)
    _with_codes("modes/transport", args, absolute_paths([args.to]) * number, donor=donor)
    field = Path(args.output) / "inverse_ddf_KK.nii.gz"
    print(f"To deform it as the donor's scan KK: groupmorph apply {field} {args.to} --output DIR")


def sample(args: argparse.Namespace) -> None:
    check_place(args.output, [args.image])
    _with_codes("modes/sample", args, absolute_paths([args.image]) * args.number, sample_seed=args.seed)


def _with_codes(mode: str, args: argparse.Namespace, series: Sequence[str], **chosen: object) -> None:
    overlays = [*(args.overlay or ["models/krebs_cvae"]), mode]
    given = {"series": series, "output_dir": args.output, "weights": args.weights, **chosen}
    _run("inference", "inference", overlays, args.set, args.device, **given)
    print(f"Deformations, report.json and picture: {Path(args.output) / 'report.png'}")


def benchmark(args: argparse.Namespace) -> None:
    if args.table == "paper":
        from .paper import run_paper

        run_paper(args)
        return
    from ..benchmarks.compare import write_table
    from .suites import SUITES

    claim(args.output)
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
    "combine": combine,
    "evaluate": evaluate,
    "train": train,
    "transport": transport,
    "sample": sample,
    "benchmark": benchmark,
    "demo": demo,
}
