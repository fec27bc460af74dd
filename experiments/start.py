"""Where the refinement starts: from the network's prediction or from zero, at several efforts."""

import argparse
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from groupmorph_monai.apps.suites.suite import add_seeds_and_weights, bundle_method, table_suite
from groupmorph_monai.benchmarks.cases import synthetic_cases, with_landmarks_mm
from groupmorph_monai.benchmarks.compare import BundleMethod, compare
from groupmorph_monai.data import make_breast, make_thorax

_COLUMNS = ("mean error, voxels", "95 %, voxels", "folds, %", "seconds")


def start_methods(weights: str | None, folder: str | Path) -> dict[str, BundleMethod]:
    """Make the methods to compare. A network that compares neither features nor images predicts no motion; its file is
    written to ``folder``."""
    network = bundle_method(weights)
    state = torch.load(network.weights, map_location="cpu", weights_only=True)
    zero = Path(folder) / "zero.pt"
    omitted = re.compile(r"compared\.|.*\.head\.")
    torch.save({name: values * (not omitted.match(name)) for name, values in state.items()}, zero)
    images_not_compared = {"network_def#updates": [2, 1, 1, 1, 0]}
    methods = {"network alone": bundle_method(weights, "effort/no_refine")}
    for effort, overlays in (("fast", ["effort/fast"]), ("default", [])):
        methods[f"{effort}, from zero"] = bundle_method(str(zero), *overlays, **images_not_compared)
        methods[f"{effort}, from the network"] = bundle_method(weights, *overlays)
    return methods


def start(
    cases: Mapping[str, Iterable[Mapping]],
    methods: Mapping[str, BundleMethod],
    progress: Callable[[str], None] = print,
) -> list[dict]:
    """Compare the methods on each kind of series: one row per kind and method, with means over the series."""
    rows = []
    for kind, series in cases.items():
        for row in compare(series, methods, progress):
            if row["method"] != "true motion":
                rows.append({"series": kind, "method": row["method"], **{c: row[c] for c in _COLUMNS if c in row}})
    return rows


def breast_cases(
    seeds: Iterable[int], size: Sequence[int], spacing_mm: Sequence[float], landmarks: int = 2000
) -> list[dict]:
    """Generate breast DCE-MRI series with known motion and ``landmarks_mm`` in RAS mm."""
    series = {seed: make_breast(seed, size, spacing_mm, landmarks=landmarks) for seed in seeds}
    return [{"name": f"breast {seed}", **with_landmarks_mm(phantom)} for seed, phantom in series.items()]


def thorax_cases(seeds: Iterable[int], size: Sequence[int], timepoints: int = 6) -> list[dict]:
    """Generate 4D CT phantoms with known motion and ``landmarks_mm`` in RAS mm."""
    return [{"name": f"thorax {seed}", **with_landmarks_mm(make_thorax(seed, size, timepoints))} for seed in seeds]


def _cases(seeds: Sequence[int]) -> dict[str, Iterable[Mapping]]:
    return {
        "phantom": synthetic_cases(seeds, (72, 72, 64)),
        "breast": breast_cases(seeds, (96, 96, 48), (3.864, 3.864, 3.75)),
        "thorax": thorax_cases(seeds, (96, 96, 60)),
    }


def _measure(args: argparse.Namespace) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        return start(_cases(args.seeds), start_methods(args.weights, folder))


START = table_suite(
    "start",
    "error of the refinement from the network's prediction and from zero",
    add_seeds_and_weights,
    _measure,
)
