"""The suites of `groupmorph benchmark`: which methods meet which series."""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from ..benchmarks.affine import affine_cases, align_by_steps
from ..benchmarks.cohort import cohort
from ..benchmarks.compare import BundleMethod, compare, scale
from ..benchmarks.contention import contention
from ..benchmarks.covariance import draws, heart_cases
from ..benchmarks.full_size import full_size
from ..benchmarks.memory import memory
from ..benchmarks.peers.elastix import check_elastix, elastix_groupwise, elastix_pairwise
from ..benchmarks.reliability import reliability
from ..benchmarks.shapes import shapes
from ..benchmarks.suites import breathing, integrators, synthetic_cases, warped_cases
from ..benchmarks.surfaces import compare_overlap, pair_subjects
from ..benchmarks.symmetry import asymmetry
from ..benchmarks.trained_alike import train_alike
from ..benchmarks.verdicts import verdicts
from ..errors import InputError
from ..probability.posterior import matched_smoothing_voxels
from ..workflow.literal import literal
from .configs import bundle_root, config_files
from .progress import progress_log
from .threads import available_cores

__all__ = ["SUITES"]

# Of VoxelMorph-diff, for four times as many iterations in a time.
_HALF_THE_FILTERS = {
    "network_def#encoder_channels": [16, 32, 32, 32, 32],
    "network_def#decoder_channels": [32, 32, 32],
}
ADDITIONS = ("modes/bidirectional", "posteriors/smoothed", "priors/temporal")  # to GroupMorph


def _ours(args: argparse.Namespace, *overlays: str) -> BundleMethod:
    weights = args.weights or str(bundle_root() / "models" / "model.pt")
    return BundleMethod(config_files("inference", overlays), weights)


def _cases(args: argparse.Namespace) -> list[dict]:
    if args.series:
        return warped_cases(args.series, args.seeds, spacing_mm=args.spacing_mm, mask=args.mask)
    return synthetic_cases(args.seeds)


def _peers(args: argparse.Namespace) -> list[dict]:
    check_elastix()  # before our own rows take their minutes
    peer = "Elastix pair-wise B-spline"
    methods = {
        "GroupMorph-set, single pass": _ours(args, "effort/no_refine"),
        "GroupMorph-set, refined": _ours(args),
        peer: elastix_pairwise,
        "Elastix group-wise PCAMetric2": elastix_groupwise,
    }
    rows = compare(_cases(args), methods)
    seconds = next(row["seconds"] for row in rows if row["method"] == peer)
    for row in rows:
        if "seconds" in row:
            row["times as fast as Elastix pair-wise"] = seconds / row["seconds"]
    return rows


def _likelihoods(args: argparse.Namespace) -> list[dict]:
    methods = {"local correlation": _ours(args, "effort/best")}
    for overlay in _overlays("likelihoods"):
        methods[Path(overlay).name.replace("_", " ")] = _ours(args, overlay, "effort/best")
    return compare(_cases(args), methods)


def _overlays(folder: str) -> list[str]:
    return sorted(f"{folder}/{file.stem}" for file in (bundle_root() / "configs" / folder).glob("*.yaml"))


def _scaling(args: argparse.Namespace) -> list[dict]:
    return scale(_ours(args))


def _full_size(args: argparse.Namespace) -> list[dict]:
    single_pass = _ours(args, "effort/no_refine")
    as_it_is = replace(single_pass, settings={"initial_alignment": "none"})
    return full_size({"single pass alone": as_it_is, "affine, single pass": single_pass, "refined": _ours(args)})


def _breathing(args: argparse.Namespace) -> list[dict]:
    return breathing(_ours(args), args.seeds)


def _integrators(args: argparse.Namespace) -> list[dict]:
    return integrators(args.seeds)


def _shapes(args: argparse.Namespace) -> list[dict]:
    return shapes(args.seeds, args.output)


def _log(args: argparse.Namespace) -> AbstractContextManager[Callable[[str], None]]:
    """What tells a suite's progress and keeps it in ``SUITE.log`` beside its table."""
    return progress_log(Path(args.output) / f"{args.suite}.log")


def _trained(
    args: argparse.Namespace,
    tell: Callable[[str], None],
    folder: Path,
    overlays: Sequence[str],
    train_overlays: Sequence[str],
    timepoints: int,
    model: Mapping[str, object] | None = None,
    share: float = 1.0,
    **settings: object,
) -> BundleMethod:
    """The network's own answer after that share of ``--minutes`` of training.

    Args:
        overlays, train_overlays: over inference.yaml and train.yaml.
        model: values of both.
        settings: values of the training alone.
    """
    model = model or {}
    method = replace(_ours(args, *overlays, "effort/no_refine"), settings=model)
    files, minutes = config_files("train", train_overlays), share * args.minutes
    return train_alike(method, files, folder, minutes, timepoints, tell, **model, **settings)


def _refined(trained: BundleMethod, overlays: Sequence[str]) -> BundleMethod:
    """What the refinement makes of the network's own answer."""
    return replace(trained, config_files=config_files("inference", overlays))


def _models(args: argparse.Namespace) -> list[dict]:
    cases, methods = _cases(args), {}
    # Small, for as many iterations as a short time can hold.
    small = {"phantom_size_voxels": [48, 48, 48], "patch_size_voxels": [32, 32, 32], "symmetry_weight": 0.0}
    with tempfile.TemporaryDirectory() as scratch, _log(args) as tell:
        for overlay in (None, *_overlays("models"), *ADDITIONS):
            name, overlays = overlay or "GroupMorph-set", [overlay] if overlay else []
            folder, train_overlays = Path(scratch) / name.replace("/", " "), ("data/phantom_small", *overlays)
            methods[name] = _trained(args, tell, folder, overlays, train_overlays, len(cases[0]["image"]), **small)
            if overlay not in ADDITIONS:  # these change the training, and then what their refinement begins from
                methods[f"{name}, refined"] = _refined(methods[name], overlays)
        return compare(cases, methods, tell)


def _codes(args: argparse.Namespace) -> list[dict]:
    try:
        from ..benchmarks.codes import codes
    except ModuleNotFoundError as error:
        raise InputError(f"codes: expected {error.name}, found none; pip install 'groupmorph-monai[bench]'") from error
    base = "models/krebs_cvae"
    # The velocity on every second voxel, and lattices that suit the hearts' size: four times as many iterations.
    model = {
        "network_def#decoder_channels": [16, 16],
        "network_def#lattice_voxels": [6, 6, 4],
        "velocity_smoothing_voxels": 1.5,
        "velocity_kernel_voxels": 7,
    }
    with tempfile.TemporaryDirectory() as scratch, _log(args) as tell:
        method = _trained(args, tell, Path(scratch) / "hearts", [base], (base, "data/hearts"), 2, model)
        return codes(method, range(20), args.output, progress=tell)


def _surfaces(args: argparse.Namespace) -> list[dict]:
    if not args.dataset:
        raise InputError("--dataset: expected with --suite surfaces; name a folder with images/ and labels/")
    base, methods = "models/voxelmorph_diff", {}
    with tempfile.TemporaryDirectory() as scratch, _log(args) as tell:
        folder = Path(scratch) / "pairs"
        pairs = pair_subjects(args.dataset, folder)
        for name, modes in (("images alone", []), ("images and surfaces", ["modes/surfaces"])):
            overlays = (base, "data/subjects", *modes)
            methods[name] = _trained(
                args, tell, Path(scratch) / name, [base], overlays, 2, _HALF_THE_FILTERS, dataset_dir=literal(folder)
            )
        return compare_overlap(pairs, methods, tell)


def _covariance(args: argparse.Namespace) -> list[dict]:
    base, methods = "models/voxelmorph_diff", {}
    with tempfile.TemporaryDirectory() as scratch, _log(args) as tell:
        for weight in (1.0, 20.0):
            for kind, smoothing in (("diagonal", 0.0), ("smoothed", matched_smoothing_voxels(weight))):
                name = f"lambda {weight:g}, {kind}"
                model = {**_HALF_THE_FILTERS, "posterior_smoothing_voxels": smoothing}
                folder, overlays = Path(scratch) / name, (base, "data/hearts")
                methods[name] = _trained(args, tell, folder, [base], overlays, 2, model, lambda_u=weight)
        cases = heart_cases(args.seeds)
        found = {row["method"]: row for row in draws(cases, methods, args.output)}
        return [{**row, **found.get(row["method"], {})} for row in compare(cases, methods, tell)]


def _symmetry(args: argparse.Namespace) -> list[dict]:
    base = "models/avsm"
    kinds = {f"symmetry weight {weight:g}": ([base], weight) for weight in (0, 0.1, 1)}
    kinds["symmetric by construction"] = ([base, "modes/pair_wise"], 0)
    methods = {}
    with tempfile.TemporaryDirectory() as scratch, _log(args) as tell:
        for name, (overlays, weight) in kinds.items():
            folder, train_overlays = Path(scratch) / name, (*overlays, "data/hearts")
            methods[name] = _trained(args, tell, folder, overlays, train_overlays, 2, symmetry_weight=weight)
        cases = heart_cases(args.seeds)
        found = {row["method"]: row for row in asymmetry(cases, methods)}
        return [{**row, **found.get(row["method"], {})} for row in compare(cases, methods, tell)]


def _affine(args: argparse.Namespace) -> list[dict]:
    base = "models/avsm_affine"
    with tempfile.TemporaryDirectory() as scratch, _log(args) as tell:
        # As in the paper: first to look once, then thrice.
        for passes, share in ((1, 0.15), (3, 0.85)):
            trained = _trained(
                args,
                tell,
                Path(scratch) / "affine",
                [base],
                (base, "data/affine_phantoms"),
                3,
                share=share,
                passes=passes,
                learning_rate=2e-3,
                phantoms_training=100,
            )
        steps = {
            f"{n} step{'s' * (n > 1)}": replace(trained, settings={**trained.settings, "passes": n})
            for n in (1, 2, 3, 5, 7)
        }
        steps["7 steps, refined"] = _refined(steps["7 steps"], [base, "data/affine_phantoms"])
        return compare(affine_cases(args.seeds), {**steps, "initial alignment": align_by_steps}, tell)


def _reliability(args: argparse.Namespace) -> list[dict]:
    kinds = {
        "refined": [],
        "network alone": ["effort/no_refine"],
        "network alone, smoothed draws": ["posteriors/smoothed", "effort/no_refine"],
    }
    methods = {name: replace(_ours(args, *overlays), settings={"std_draws": 20}) for name, overlays in kinds.items()}
    return reliability(methods, args.output, args.seeds)


def _verdicts(args: argparse.Namespace) -> list[dict]:
    return verdicts(_ours(args), args.output, args.seeds)


def _contention(args: argparse.Namespace) -> list[dict]:
    return contention(_ours(args), args.threads or available_cores())


def _memory(args: argparse.Namespace) -> list[dict]:
    return memory(_ours(args))


def _cohort(args: argparse.Namespace) -> list[dict]:
    return cohort()


SUITES = {
    "synthetic": _peers,
    "warped": _peers,
    "likelihoods": _likelihoods,
    "breathing": _breathing,
    "scaling": _scaling,
    "full_size": _full_size,
    "integrators": _integrators,
    "shapes": _shapes,
    "models": _models,
    "codes": _codes,
    "surfaces": _surfaces,
    "affine": _affine,
    "symmetry": _symmetry,
    "covariance": _covariance,
    "reliability": _reliability,
    "verdicts": _verdicts,
    "contention": _contention,
    "memory": _memory,
    "cohort": _cohort,
}
