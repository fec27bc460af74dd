"""Contrast kinetics before and after registration: summary statistics and a figure."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from ..space.grid import Grid
from .axial import AxialView


def summarise_kinetics(fits: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise a fit over the enhancing tissue, for the report and the verdict.

    Args:
        fits: returned by `ToftsFit.fit_series`.

    Returns:
        Medians ``ktrans_per_min_before``, ``kinetic_r2_before``, ``kinetic_residual_percent_before`` and the same with
        ``_after``; ``kinetic_residual_ratio``, after over before; ``enhancing_voxels``; ``settings`` of the fit and
        ``sources`` of the sequence parameters.
    """
    enhancing, summary = fits["enhancing"], {}
    for when in ("before", "after"):
        maps = fits[when]
        summary[f"ktrans_per_min_{when}"] = float(np.median(maps.ktrans_per_min[enhancing]))
        summary[f"kinetic_r2_{when}"] = float(np.median(maps.r2[enhancing]))
        summary[f"kinetic_residual_percent_{when}"] = float(np.nanmedian(maps.residual_percent[enhancing]))
    before, after = (summary[f"kinetic_residual_percent_{when}"] for when in ("before", "after"))
    return {
        **summary,
        "kinetic_residual_ratio": after / max(before, 1e-6),
        "enhancing_voxels": int(enhancing.sum()),
        "settings": fits["settings"],
        "sources": fits["sources"],
    }


@style.context("default")
def draw_kinetics(fits: Mapping[str, Any], grid: Grid) -> bytes:
    """Draw R2 and Ktrans before and after registration, in the axial slice with most enhancing tissue, as a PNG."""
    view, enhancing = AxialView(grid), fits["enhancing"]
    k = int(view.turned(enhancing[None])[0].sum(axis=(0, 1)).argmax())
    high = max(float(np.percentile(fits["after"].ktrans_per_min[enhancing], 98)), 1e-3)
    rows = (("r2", "R2 of the fit", "viridis", 1.0), ("ktrans_per_min", "Ktrans (1/min)", "inferno", high))
    figure = Figure(figsize=(9, float(np.clip(9 * view.ratio, 4, 10))), dpi=90, layout="constrained")
    for axes, (name, title, colours, limit) in zip(figure.subplots(2, 2), rows):
        for panel, when in zip(axes, ("before", "after")):
            values = view.turned(getattr(fits[when], name)[None])[0, ..., k]
            image = view.show(panel, values, f"{title}, {when}", cmap=colours, vmin=0, vmax=limit)
        figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    figure.suptitle(view.name(k).capitalize(), fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
