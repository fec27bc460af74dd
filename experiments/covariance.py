"""Draws from posteriors with smoothed and diagonal covariance (VoxelMorph-diff, Section 3.2, Fig. 11 and Table 3)."""

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from groupmorph_monai.apps.suites.suite import table_suite
from groupmorph_monai.benchmarks.compare import BundleMethod, compare
from groupmorph_monai.benchmarks.figures import save_figure
from groupmorph_monai.benchmarks.tables import mean_row
from groupmorph_monai.data.phantoms.hearts import HEART_MOTIONS, make_heart
from groupmorph_monai.evaluation.metrics import folding_percent
from groupmorph_monai.space.field import DisplacementField, VelocityField

from .suite import add_seeds_and_minutes, trainings
from .trained_alike import HALF_THE_FILTERS


def heart_cases(seeds: Iterable[int], size: Sequence[int] = (48, 48, 32), landmarks: int = 2000) -> list[dict]:
    """Make cases for `compare`: a beating heart per seed, with alternating kinds of motion.

    Args:
        seeds: random seeds of the hearts.
        size: size of the volumes, in voxels.
        landmarks: number of landmarks inside each heart.
    """
    kinds = list(HEART_MOTIONS)
    hearts = {
        seed: make_heart(seed, kinds[n % len(kinds)], size=size, landmarks=landmarks) for n, seed in enumerate(seeds)
    }
    return [
        {"name": f"heart {seed}", "image": heart["image"], "landmarks": heart["landmarks"]}
        for seed, heart in hearts.items()
    ]


def matched_smoothing_voxels(lambda_u: float) -> float:
    """Compute the standard deviation sigma_c, in voxels, of the smoothing kernel that matches the scale of the prior
    ``lambda_u L`` (VoxelMorph-diff, Section 3.2).

    The kernel's peak ``(2 pi sigma_c^2)^(-3/2)`` equals ``1 / (6 lambda)``, the prior's variance at a voxel given its
    six neighbours: 2 voxels at the paper's lambda of 20. The paper prints ``1 / sqrt(2 pi sigma_c^3 / 2) = 1 / (6
    lambda)``, which gives 17 voxels.
    """
    return (6 * lambda_u) ** (1 / 3) / math.sqrt(2 * math.pi)


def roughness(field: Tensor) -> float:
    """Compute the roughness of a field ``(..., *S)`` of mean 0: the root mean square difference of neighbouring voxels,
    relative to that of independent ones; 1 for white noise, 0 for a constant."""
    squares = torch.stack([field.diff(dim=d).square().mean() for d in (-3, -2, -1)]).mean()
    return float((squares / (2 * field.square().mean())).sqrt())


def draws(
    cases: Sequence[Mapping], methods: Mapping[str, BundleMethod], folder: str | Path, number: int = 20
) -> list[dict]:
    """Measure draws of the velocity from each method's posterior.

    Args:
        cases: cases returned by `heart_cases`.
        methods: methods by name.
        folder: where to save ``draws.png``, a draw and the standard deviation of the last case, per method.
        number: number of draws per case.

    Returns:
        A row per method with means over cases: roughness of the draws, standard deviation in voxels of z, and folds of
        the deformations that the draws integrate to.
    """
    rows, images = [], {}
    for name, method in methods.items():
        inferer, network, scaled = method.parts()
        measured = []
        torch.manual_seed(0)
        for case in cases:
            with torch.no_grad():
                registration = inferer.fields(scaled(case["image"]), network)
                parameters = registration["z_mean"], registration["z_log_variance"]
                z = torch.cat([inferer.posterior.draw(*parameters) for _ in range(number)])
                noise = z - registration["z_mean"]
                velocity = inferer.alignment.constrain(VelocityField.on_voxels(z))
                fields = inferer.alignment(velocity, inferer.transformation).values.split(1)
            measured.append(
                {
                    "roughness of draws": roughness(noise),
                    "standard deviation, voxels of z": float(noise.std(dim=0).mean()),
                    "folds of draws, %": float(
                        np.mean([folding_percent(DisplacementField.on_voxels(u)) for u in fields])
                    ),
                }
            )
        rows.append({"method": name, **mean_row(measured)})
        images[name] = z[0, -1, 0].cpu(), noise[:, -1, 0].std(dim=0).cpu()
    _save_slices(images, Path(folder) / "draws.png")
    return rows


def _save_slices(pairs: Mapping[str, tuple[Tensor, Tensor]], file: Path) -> None:
    figure = Figure(figsize=(2.6 * len(pairs), 5), dpi=90, layout="constrained")
    axes = figure.subplots(2, len(pairs), squeeze=False)
    for column, (name, images) in enumerate(pairs.items()):
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
    with trainings(args) as training:
        for weight in (1.0, 20.0):
            for kind, smoothing in (("diagonal", 0.0), ("smoothed", matched_smoothing_voxels(weight))):
                name = f"lambda {weight:g}, {kind}"
                model = {**HALF_THE_FILTERS, "posterior_smoothing_voxels": smoothing}
                methods[name] = training.train(name, [base], (base, "data/hearts"), 2, model, lambda_u=weight)
        cases = heart_cases(args.seeds)
        draw_rows = {row["method"]: row for row in draws(cases, methods, args.output)}
        return [{**row, **draw_rows.get(row["method"], {})} for row in compare(cases, methods, training.progress)]


COVARIANCE = table_suite(
    "covariance",
    "models/voxelmorph_diff trained with smoothed and with diagonal posterior covariance",
    add_seeds_and_minutes,
    _measure,
)
