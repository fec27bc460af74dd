"""Figures for the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..figures import save_figure
from .cells import Cell


def draw_slices(cells: Sequence[Cell], titles: Mapping[str, str], file: Path) -> None:
    """Draw the paper's Fig. 4 for the first series: mean of the timepoints minus the first one, and Jacobian
    determinant averaged over the timepoints, in the middle axial slice."""
    shown = [cell for cell in cells if cell.case == cells[0].case and "subtraction" in cell.arrays]
    figure = Figure(figsize=(1.9 * len(shown), 4.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    widest = np.percentile(np.abs(shown[0].arrays["subtraction"]), 99.5) or 1.0
    for column, cell in enumerate(shown):
        kinds = (("subtraction", "gray", (-widest, widest)), ("jacobian", "RdBu_r", (0.5, 1.5)))
        for row, (kind, colours, (low, high)) in enumerate(kinds):
            picture = axes[row, column].imshow(cell.arrays[kind].T, colours, origin="lower", vmin=low, vmax=high)
            axes[row, column].set(xticks=[], yticks=[])
        axes[0, column].set_title(titles.get(cell.method, cell.method), fontsize=7)
    figure.colorbar(picture, ax=axes[1], shrink=0.8)
    axes[0, 0].set_ylabel("mean - first", fontsize=8)
    axes[1, 0].set_ylabel("Jacobian", fontsize=8)
    save_figure(figure, file)


def draw_landmarks(cells: Sequence[Cell], titles: Mapping[str, str], file: Path) -> bool:
    """Draw a box plot of landmark distances over all series: quartiles, and whiskers to the 5th and 95th percentiles.

    Returns:
        False if no series has landmarks.
    """
    distances: dict[str, list[np.ndarray]] = {}
    for cell in cells:
        if "landmark_quantiles_mm" in cell.arrays:
            distances.setdefault(cell.method, []).append(cell.arrays["landmark_quantiles_mm"])
    if not distances:
        return False
    figure = Figure(figsize=(8, 0.8 + 0.32 * len(distances)), dpi=110, layout="constrained")
    axes = figure.subplots()
    boxes = [np.concatenate(parts) for parts in reversed(distances.values())]
    names = [titles.get(name, name) for name in reversed(distances)]
    axes.boxplot(boxes, orientation="horizontal", tick_labels=names, whis=(5, 95), showfliers=False)
    axes.set_xlabel("landmark distance (mm)")
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, file)
    return True


def draw_scaling(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str], file: Path) -> None:
    """Draw the time of each method against the number of voxels, and against the number of timepoints.

    Args:
        rows: ``{"method", "axis" ("voxels" or "timepoints"), "at", "seconds"}``.
    """
    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, axis in zip(panels, ("voxels", "timepoints")):
        for name in dict.fromkeys(row["method"] for row in rows):
            points = sorted((row["at"], row["seconds"]) for row in rows if (row["method"], row["axis"]) == (name, axis))
            if points:
                panel.loglog(*zip(*points), "o-", markersize=3, linewidth=1, label=titles.get(name, name))
        panel.set(xlabel=axis, ylabel="seconds")
        panel.grid(alpha=0.3, which="both")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=7)
    save_figure(figure, file)
