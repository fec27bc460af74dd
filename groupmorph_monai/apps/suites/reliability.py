"""Calibration of the predicted uncertainty against known motion (compare VoxelMorph-diff, Section 4.4.4)."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from .suite import Row, add_seeds_and_weights, bundle_method, table_suite

if TYPE_CHECKING:
    from torch import Tensor

    from ...benchmarks.compare import BundleMethod

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)  # nominal coverage of the central intervals of the errors
_OVERLAYS = {"refined": [], "network alone": ["effort/no_refine"]}
_SIZE_VOXELS = (48, 48, 48)  # size of the phantoms
_NEWTON_STEPS = 5  # steps to find the points of the common space; enough, as fields change little over a step


def standardised_errors(landmarks: "Tensor", ddf: "Tensor", inverse_ddf: "Tensor", std: "Tensor") -> "Tensor":
    """Divide the errors of landmark components by their predicted standard deviations.

    As the common space is the mean of the series, points of the common space are chosen so that the mean of their
    errors over K is 0. The errors of two timepoints are then not independent: the variance of their difference is
    ``K / (K - 1)`` times the sum of their variances.

    Args:
        landmarks: ``(K, P, 3)``, voxels.
        ddf, inverse_ddf, std: ``(K, 3, *S)``, voxels; ``std`` is the standard deviation of ``ddf``.

    Returns:
        ``(K * P * 3,)``.
    """
    import torch

    from ...space.transforms import interpolate

    common = torch.stack([p + interpolate(u, p) for p, u in zip(landmarks, inverse_ddf)]).mean(dim=0)
    for _ in range(_NEWTON_STEPS):
        errors = torch.stack([common + interpolate(u, common) - p for p, u in zip(landmarks, ddf)])
        common = common - errors.mean(dim=0)
    predicted = torch.stack([interpolate(s, common) for s in std])
    return ((errors - errors.mean(dim=0)) / predicted.clamp_min(1e-6)).flatten()


def inside_share(errors: "Tensor", level: float) -> float:
    """Compute the share of standardised errors inside the central interval of probability ``level``."""
    return float(((errors.abs() / 2**0.5).erf() <= level).double().mean())


def reliability(
    args: argparse.Namespace, timepoints: Sequence[int] = (2, 4, 6, 10), noises: Sequence[float] = (0.02, 0.08)
) -> list[Row]:
    """Compare predicted coverage of the errors with the observed one, on a phantom for each seed, K and noise.

    The result of every case is a line in ``reliability.jsonl``, from which an interrupted run resumes: delete the file
    after changing a method. ``reliability.png`` shows the curves.

    Returns:
        A row for each method, K and noise, with means over the seeds: observed coverage in percent for each level, and
        mean standard deviation.
    """
    from ...benchmarks.json_lines import JsonLines
    from ...benchmarks.tables import mean_row
    from ...data.phantoms.phantom import make_phantom

    methods = {name: bundle_method(args.weights, *overlays, std_draws=20) for name, overlays in _OVERLAYS.items()}
    log = JsonLines(Path(args.output) / "reliability.jsonl")
    results = {tuple(line["case"]): line["result"] for line in log.read()}
    if results:
        print(f"{log.file}: {len(results)} results of an earlier run")
    rows: dict[tuple[str, int, float], list[dict[str, float]]] = {}
    for seed, count, noise, (name, method) in product(args.seeds, timepoints, noises, methods.items()):
        case = (name, count, noise, seed)
        if case not in results:
            results[case] = _measure(method, make_phantom(seed, _SIZE_VOXELS, count, landmarks=2000, noise=noise))
            log.append({"case": case, "result": results[case]})
            print(f"{name}, K = {count}, noise {noise}, seed {seed}: {results[case]['of 90 %']:.1f} %")
        rows.setdefault((name, count, noise), []).append(results[case])
    table = [
        {"method": name, "K": count, "noise": noise, "cases": len(cells), **mean_row(cells)}
        for (name, count, noise), cells in sorted(rows.items())
    ]
    _draw(table, Path(args.output) / "reliability.png")
    return table


def _measure(method: "BundleMethod", case: Mapping[str, "Tensor"]) -> dict[str, float]:
    import torch

    inferer, network, scaled = method.parts()
    with torch.no_grad():
        result = inferer(scaled(case["image"]), network)
    fields = [result[key][0].cpu() for key in ("ddf", "inverse_ddf", "ddf_std")]
    errors = standardised_errors(case["landmarks"], *fields)
    shares = {f"of {100 * level:g} %": 100 * inside_share(errors, level) for level in LEVELS}
    return {**shares, "mean standard deviation, voxels": float(fields[-1].mean())}


def _draw(rows: Sequence[Row], file: Path) -> None:
    from matplotlib.figure import Figure

    from ...benchmarks.figures import save_figure

    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], "k:", label="perfectly calibrated")
    for row in rows:
        shares = [row[f"of {100 * level:g} %"] for level in LEVELS]
        label = f"{row['method']}, K = {row['K']}, noise {row['noise']:g}"
        axis.plot([0, *(100 * level for level in LEVELS)], [0, *shares], "o-", label=label)
    axis.set(xlabel="predicted coverage, %", ylabel="observed coverage, %", aspect="equal")
    figure.legend(fontsize="small", loc="outside right center")
    save_figure(figure, file)


RELIABILITY = table_suite("reliability", "calibration of the predicted uncertainty", add_seeds_and_weights, reliability)
