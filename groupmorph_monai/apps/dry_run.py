"""What a registration would do."""

from collections.abc import Sequence

import torch
from monai.bundle import ConfigParser

from ..space.geometry import Grid
from ..workflow.cost import RegistrationCost
from ..workflow.free_memory import available_memory_gb
from .run import checked_run

__all__ = ["describe_run"]


def describe_run(*arguments: object, output_dir: str, **options: object) -> None:
    """Print the grids, memory, time and files of the registration that ``checked_run(*arguments, **options)`` gives.

    Raises: InputError where the memory will not do.
    """
    files, values = checked_run(*arguments, **options)
    config = ConfigParser()
    config.read_config(files)
    for name, value in {**values, "initialize": []}.items():
        config[name] = value
    config.parse()
    cost: RegistrationCost = config.get_parsed_content("cost")
    cost.check()
    frames = cost.series.frames
    home = config.get_parsed_content("reference") or 0
    levels = ", ".join(f"every {factor}. voxel ({n} steps at most)" for factor, n in cost.levels)
    lines = {
        "scans": f"{len(frames)}, the first of {_described(frames[0].grid)}",
        "output grid": _described(frames[home].grid),
        "working grid": _described(cost.grid),
        "refinement": levels or "none",
        "memory": f"{cost.memory_gb:.2g} GB of {available_memory_gb():.3g} GB that are free",
        "time": f"{_duration(cost.seconds)} with {torch.get_num_threads()} threads, if nothing else is busy",
        "files": f"{', '.join(_files(config, len(frames)))} in {output_dir}",
    }
    width = max(map(len, lines)) + 1
    print(*(f"{name + ':':<{width}} {text}" for name, text in lines.items()), sep="\n")


def _described(grid: Grid) -> str:
    shape, spacing = (" x ".join(f"{n:.4g}" for n in numbers) for numbers in (grid.shape, grid.spacing_mm.tolist()))
    return f"{shape} voxels of {spacing} mm"


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.2g} min"


def _files(config: ConfigParser, timepoints: int) -> Sequence[str]:
    """Names of what `SeriesWriter` writes."""
    kinds = ["ddf", "inverse_ddf"]
    kinds += ["jacobian"] * bool(config.get_parsed_content("write_jacobian"))
    kinds += ["std_mm"] * bool(config.get_parsed_content("std_draws"))
    fields = [f"{kind}_00 to {timepoints - 1:02d}.nii.gz" for kind in kinds]
    return ["warped.nii.gz", "mean.nii.gz", "coverage.nii.gz", *fields, "report.json", "report.png"]
