"""Write figures of benchmarks."""

from pathlib import Path

from matplotlib.figure import Figure

from ..data.writing.output_folder import atomic_folder


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG atomically."""
    with atomic_folder(file.parent) as folder:
        figure.savefig(folder / file.name, format="png")
