"""Draws from posteriors that smooth and that do not (VoxelMorph-diff, Section 3.2, Fig. 11 and Table 3)."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import BundleMethod, compare
from groupmorph_monai.benchmarks.figures import save_figure
from groupmorph_monai.data.phantoms.hearts import HEART_MOTIONS, make_heart
from groupmorph_monai.evaluation.metrics import folding_percent
from groupmorph_monai.probability.posterior import matched_smoothing_voxels

from .suite import add_seeds_and_minutes, trainings
from .trained_alike import HALF_THE_FILTERS, train_model

__all__ = ["COVARIANCE", "draws", "heart_cases", "roughness"]


def heart_cases(seeds: Iterable[int], size: Sequence[int] = (48, 48, 32), landmarks: int = 2000) -> list[dict]:
    """Beating hearts, a kind of motion after the other, with landmarks within the heart: cases for `compare`."""
    kinds = list(HEART_MOTIONS)
    hearts = {
        seed: make_heart(seed, kinds[n % len(kinds)], size=size, landmarks=landmarks) for n, seed in enumerate(seeds)
    }
    return [
        {"name": f"heart {seed}", "image": heart["image"], "landmarks": heart["landmarks"]}
        for seed, heart in hearts.items()
    ]


def roughness(field: Tensor) -> float:
    """Root mean square difference of neighbours over that of any two voxels of ``(..., *S)``: 1 for white noise, 0 for
    a constant."""
    squares = torch.stack([field.diff(dim=d).square().mean() for d in (-3, -2, -1)]).mean()
    return float((squares / (2 * field.square().mean())).sqrt())


def draws(
    cases: Sequence[Mapping], methods: Mapping[str, BundleMethod], folder: str | Path, number: int = 20
) -> list[dict]:
    """A row a method: of ``number`` draws of the velocity of each case, how rough they are, the mean of their standard
    deviations, and the folds of the deformations that they integrate to. ``draws.png`` in ``folder`` shows a draw and
    the standard deviations of each."""
    rows, shown = [], {}
    for name, method in methods.items():
        inferer, network, scaled = method.parts()
        rough, spread, folds = [], [], []
        torch.manual_seed(0)
        for case in cases:
            with torch.no_grad():
                found = inferer(scaled(case["image"]), network)
                parameters = found["z_mean"], found["z_log_variance"]
                drawn = torch.cat([inferer.posterior.draw(*parameters) for _ in range(number)])
                deviation = drawn - found["z_mean"]
                fields = inferer.alignment(inferer.alignment.constrain(drawn), inferer.transformation)
            rough.append(roughness(deviation))
            spread.append(float(deviation.std(dim=0).mean()))
            folds.append(float(np.mean([folding_percent(u) for u in fields])))
        means = {
            "roughness of draws": rough,
            "standard deviation, voxels of z": spread,
            "folds of draws, %": folds,
        }
        rows.append({"method": name, **{key: float(np.mean(values)) for key, values in means.items()}})
        shown[name] = drawn[0, -1, 0].cpu(), deviation[:, -1, 0].std(dim=0).cpu()
    _picture(shown, Path(folder) / "draws.png")
    return rows


def _picture(shown: Mapping[str, tuple[Tensor, Tensor]], file: Path) -> None:
    figure = Figure(figsize=(2.6 * len(shown), 5), dpi=90, layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, (name, images) in enumerate(shown.items()):
        axes[0, column].set_title(name)
        for axis, image in zip(axes[:, column], images):
            axis.imshow(image[:, :, image.shape[2] // 2].T, origin="lower", cmap="viridis")
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].set_ylabel("a draw")
    axes[1, 0].set_ylabel("standard deviation")
    save_figure(figure, file)


def _measure(args: argparse.Namespace) -> list[dict]:
    base, methods = "models/voxelmorph_diff", {}
    with trainings(args) as (scratch, tell):
        for weight in (1.0, 20.0):
            for kind, smoothing in (("diagonal", 0.0), ("smoothed", matched_smoothing_voxels(weight))):
                name = f"lambda {weight:g}, {kind}"
                model = {**HALF_THE_FILTERS, "posterior_smoothing_voxels": smoothing}
                overlays = (base, "data/hearts")
                methods[name] = train_model(
                    scratch / name, args.minutes, [base], overlays, 2, tell, model, lambda_u=weight
                )
        cases = heart_cases(args.seeds)
        drawn = {row["method"]: row for row in draws(cases, methods, args.output)}
        return [{**row, **drawn.get(row["method"], {})} for row in compare(cases, methods, tell)]


COVARIANCE = table_suite(
    "covariance",
    "models/voxelmorph_diff trained with posteriors whose draws are smooth, and with unsmoothed ones",
    add_seeds_and_minutes,
    _measure,
)
