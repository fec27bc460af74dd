"""Write figures of benchmarks."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data.writing.output_folder import all_or_nothing

__all__ = ["save_figure"]


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG atomically, without a display."""
    FigureCanvasAgg(figure)
    with all_or_nothing(file.parent) as folder:
        figure.savefig(folder / file.name, format="png")
