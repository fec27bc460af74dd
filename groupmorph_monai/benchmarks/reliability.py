"""Whether the stated uncertainty is the true one: a reliability curve (VoxelMorph-diff, Section 4.4.4, asks for the
uncertainty; here it meets the known motion)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import norm
from torch import Tensor

from ..evaluation.metrics import field_at
from .compare import BundleMethod
from .figures import save_figure

__all__ = ["LEVELS", "inside_share", "reliability"]

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


def standardised_errors(landmarks: Tensor, ddf: Tensor, inverse_ddf: Tensor, std: Tensor) -> Tensor:
    """Errors of the landmarks' components over all pairs of timepoints, in stated standard deviations.

    Args:
        landmarks: ``(K, P, 3)``, voxels.
        ddf, inverse_ddf, std: ``(K, 3, *S)``, voxels; ``std`` is that of ``ddf``.
    """
    errors = []
    for i, points in enumerate(landmarks):
        common = points + field_at(inverse_ddf[i], points)
        own = field_at(std[i], common)
        for j in range(len(landmarks)):
            if i != j:
                error = common + field_at(ddf[j], common) - landmarks[j]
                errors.append(error / (own.square() + field_at(std[j], common).square()).sqrt().clamp_min(1e-6))
    return torch.stack(errors).flatten()


def inside_share(errors: Tensor, level: float) -> float:
    """Share of standardised errors inside the central interval that should hold ``level`` of them."""
    return float((errors.abs() <= norm.ppf(0.5 + level / 2)).double().mean())


def reliability(
    cases: Sequence[Mapping],
    methods: Mapping[str, BundleMethod],
    folder: str | Path,
    progress: Callable[[str], None] = print,
) -> list[dict]:
    """A row a method: for each stated share of errors the true one, in percent, over all cases, and the mean of the
    stated standard deviations. ``reliability.png`` in ``folder`` shows the curves.

    Args:
        methods: whose inferers give ``ddf_std``.
    """
    rows = []
    for name, method in methods.items():
        inferer, network, scaled = method.parts()
        errors, spread = [], []
        for case in cases:
            with torch.no_grad():
                found = inferer(scaled(case["image"]), network)
            fields = (found[key][0] for key in ("ddf", "inverse_ddf", "ddf_std"))
            errors.append(standardised_errors(case["landmarks"], *fields))
            spread.append(float(found["ddf_std"].mean()))
        errors = torch.cat(errors)
        row = {f"of {100 * level:g} %": 100 * inside_share(errors, level) for level in LEVELS}
        rows.append({"method": name, **row, "mean standard deviation, voxels": float(np.mean(spread))})
        progress(f"{name}: {row['of 90 %']:.1f} % of the errors inside the 90 % interval")
    _picture(rows, Path(folder) / "reliability.png")
    return rows


def _picture(rows: Sequence[Mapping], file: Path) -> None:
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], "k:", label="as stated")
    for row in rows:
        shares = [row[f"of {100 * level:g} %"] for level in LEVELS]
        axis.plot([0, *(100 * level for level in LEVELS)], [0, *shares], "o-", label=row["method"])
    axis.set(xlabel="stated share of errors inside, %", ylabel="true share, %", aspect="equal")
    axis.legend()
    save_figure(figure, file)
