"""Figures beside the tables."""

import os
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["save_figure"]


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG, whole or not at all, without a display."""
    FigureCanvasAgg(figure)
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format="png")
    os.replace(partial, file)
