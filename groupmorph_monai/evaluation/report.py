"""Report of a run: a JSON file, a figure for the radiologist, and a table for the terminal."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import __version__
from ..data.writing.output_folder import atomic_folder
from ..space.grid import Grid
from ..space.transforms import Transform
from .axial import AxialView


def plain(value: object) -> Any:
    """Convert to types that JSON supports: arrays to lists, paths to text, NaN and infinity to None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


def to_json(report: Mapping[str, Any]) -> str:
    """Serialise ``report`` as JSON, with NaN and infinity as null."""
    return json.dumps(plain(report), indent=2, allow_nan=False) + "\n"


def write_json(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``report`` atomically."""
    path = Path(path)
    with atomic_folder(path.parent) as folder:
        (folder / path.name).write_text(to_json(report), encoding="utf-8")


def versions() -> dict[str, str]:
    """Collect the versions of Python and of the packages on which the numbers in a report depend."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "monai": monai.__version__,
        "numpy": np.__version__,
        "groupmorph_monai": __version__,
    }


def format_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Format ``columns`` of ``rows`` as aligned text, with three decimals, and ``-`` for missing values."""

    def text(value: object) -> str:
        if isinstance(value, (torch.Tensor, np.generic)):
            value = value.item()
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "-"
        if isinstance(value, float):
            return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
        return str(value)

    cells = [[text(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(line[n]) for line in [list(columns), *cells]) for n in range(len(columns))]
    left = [any(isinstance(row.get(c), str) for row in rows) for c in columns]

    def line(words: Sequence[str]) -> str:
        return "  ".join(w.ljust(n) if to_left else w.rjust(n) for w, n, to_left in zip(words, widths, left)).rstrip()

    return "\n".join([line(columns), "  ".join("-" * n for n in widths), *map(line, cells)])


def _most_changed(native: np.ndarray, warped: np.ndarray) -> tuple[int, int]:
    """Find the timepoint and axial slice that differ most from timepoint 0, after registration if inputs are equal."""
    series = native if np.any(native[1:] != native[:1]) else warped
    change = np.stack([np.abs(v - series[0]).sum(axis=(0, 1)) for v in series])  # (K, k)
    return int(change.sum(axis=1).argmax()), int(change.sum(axis=0).argmax())


def _show_before_and_after(
    axes: np.ndarray, native: np.ndarray, warped: np.ndarray, late: int, view: AxialView, subtraction: str
) -> None:
    """Draw mean and subtraction of slices ``(K, right, anterior)``, before in the first and after in the second row."""
    low, high = float(native.min()), float(np.percentile(native, 99.5))
    limits = [float(np.percentile(np.abs(series[late] - series[0]), 99.5)) for series in (native, warped)]
    limit = max(limits[0] or limits[1], 1e-6)
    for (left, right), series, name in zip(axes, (native, warped), ("before", "after")):
        mean, change = series.mean(axis=0), series[late] - series[0]
        view.show(left, mean, f"Mean of {len(series)} timepoints, {name}", cmap="gray", vmin=low, vmax=high)
        shown = view.show(right, change, f"{subtraction}, {name}", cmap="gray", vmin=-limit, vmax=limit)
    right.figure.colorbar(shown, ax=axes[:, 1], shrink=0.6, pad=0.02, label="signal difference")


def _axial_jacobian(transform: Transform, grid: Grid, k: int) -> np.ndarray:
    """Compute the Jacobian determinants of a transform at the k-th slice of a grid along its last axis."""
    low = max(0, k - 1)  # central differences need a slice on either side
    affine = grid.affine.clone()
    affine[:3, 3] += low * affine[:3, 2]
    slab = Grid((*grid.shape[:2], min(grid.shape[2], k + 2) - low), affine)
    return transform.jacobian_determinant(slab)[..., k - low].numpy()


def _show_jacobian(axes: Axes, determinant: np.ndarray, view: AxialView, title: str) -> None:
    # A minimum range keeps rounding errors from looking like motion.
    spread = max(0.05, float(np.percentile(np.abs(determinant - 1), 99.5)))
    shown = view.show(axes, determinant, title, cmap="RdBu_r", vmin=1 - spread, vmax=1 + spread)
    axes.figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02, label="Jacobian determinant")


def _show_motion(axes: Axes, displacement_mm: np.ndarray) -> None:
    places = np.arange(len(displacement_mm))
    axes.boxplot(
        [d[np.isfinite(d)] for d in displacement_mm],
        positions=places,
        widths=0.6,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": "0.85"},
        medianprops={"color": "black"},
        manage_ticks=False,
    )
    every = -(-len(places) // 10)  # more than ten labels would overlap
    axes.set_xticks(places[::every])
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_ylim(bottom=0)
    axes.set_title("Displacement (box: quartiles, whiskers: 5 to 95 %)", fontsize=10)
    axes.set_xlabel("timepoint")
    axes.set_ylabel("displacement (mm)")
    axes.spines[["top", "right"]].set_visible(False)


@style.context("default")
def draw_report(
    path: str | os.PathLike[str],
    volumes: Mapping[str, np.ndarray],
    transforms: Sequence[Transform],
    displacement_mm: np.ndarray,
    grid: Grid,
    title: str,
    timepoints: Sequence[int],
) -> None:
    """Draw a one-page figure (PNG): the axial slice and timepoint with the largest change, before and after
    registration; volume change; motion.

    Before and after share one grey scale. In a perfectly aligned series the subtraction shows enhancement alone; pairs
    of bright and dark edges indicate motion.

    Args:
        volumes: ``native`` and ``warped``, intensities in any unit, ``(K, *S)`` each.
        transforms: K, from the common space to each timepoint.
        displacement_mm: ``(K, P)``, sampled displacement magnitudes.
        grid: grid of the volumes.
        title: figure title.
        timepoints: indices of the K timepoints in the series.

    Raises:
        ValueError: If the volumes differ in shape.
    """
    native, warped = (np.asarray(volumes[name], dtype=np.float32) for name in ("native", "warped"))
    if not native.ndim == 4 or not native.shape == warped.shape:
        raise ValueError(f"native and warped: expected one shape (K, i, j, k), got {native.shape} and {warped.shape}")
    view = AxialView(grid)
    native, warped = map(view.turned, (native, warped))
    late, k = _most_changed(native, warped)
    late_name = f"timepoint {timepoints[late]}"

    height = float(np.clip(3.4 * view.ratio, 1.8, 5.0))
    figure = Figure(figsize=(12.5, 2 * height + 1.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    subtraction = f"Subtraction {late_name} − timepoint 0"
    _show_before_and_after(axes[:, :2], native[..., k], warped[..., k], late, view, subtraction)
    volume = f"Volume at {late_name} relative to common space"
    _show_jacobian(axes[0, 2], _axial_jacobian(transforms[late], view.grid, k), view, volume)
    _show_motion(axes[1, 2], displacement_mm)
    readable = title.encode(errors="replace").decode()  # file names may contain bytes that are not text
    figure.suptitle(f"{readable}, {view.name(k)}", fontsize=12)
    figure.savefig(path, format="png")
