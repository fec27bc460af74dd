"""Describe the memory, time and outputs of a registration without running it."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from ..data.reading.names import bids_name
from ..data.reading.regions import inside_region, read_region
from ..data.series import Series
from ..data.writing.earlier_result import check_result_folder
from ..data.writing.products import REPORTS, Products
from ..space.grid import Grid
from ..workflow.cost import RegistrationCost
from ..workflow.free_memory import available_memory_gb
from ..workflow.processor_time import ProcessorTime
from ..workflow.weights import load_weights


def describe_run(parser: ConfigParser, output_dir: str, started_s: float) -> None:
    """Print the grids, memory, time and files of a registration.

    Args:
        parser: config of the registration.
        output_dir: folder for the results.
        started_s: processor time at which the command started; the time used since then is included.

    Raises:
        InputError: If there is not enough memory, if an output cannot be written, or if the weights are those of
            another network.
    """
    load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("weights"))
    parser.get_parsed_content("cost_by_headers").check()
    series: Series = parser.get_parsed_content("native")
    cost: RegistrationCost = parser.get_parsed_content("cost")
    cost.check()
    frames = series.frames
    home = parser.get_parsed_content("reference") or 0
    products: Products = parser.get_parsed_content("products")
    products.check(series, home)
    files = products.files(len(frames), bool(parser.get_parsed_content("std_draws")))
    check_result_folder(Path(output_dir), [frame.path for frame in frames], files)
    levels = ", ".join(f"{level.resolution} (at most {level.iterations} steps)" for level in cost.levels)
    at_a_time = f", {cost.scans_at_once} in memory at a time" if cost.scans_at_once else ""
    mask = parser.get_parsed_content("mask")
    lines = {
        "scans": f"{len(frames)}, the first of {_described(frames[0].grid)}{at_a_time}",
        "output grid": _described(frames[home].grid),
        "working grid": _described(cost.grid),
        **({"mask": _share(mask, series, home)} if mask else {}),
        "refinement": levels or "none",
        "memory": f"{cost.memory_gb:.2g} GB of the available {available_memory_gb():.3g} GB",
        "time": _time(cost.time, time.process_time() - started_s),
        "files": f"{', '.join(_files(products, parser, [frame.path for frame in frames]))} in {output_dir}",
    }
    width = max(map(len, lines)) + 1
    print(*(f"{name + ':':<{width}} {text}" for name, text in lines.items()), sep="\n")


def _described(grid: Grid) -> str:
    shape, spacing = (" x ".join(f"{n:.4g}" for n in numbers) for numbers in (grid.shape, grid.spacing_mm.tolist()))
    return f"{shape} voxels of {spacing} mm"


def _share(mask: str | Sequence[str], series: Series, home: int) -> str:
    grid = series.frames[home].grid
    return f"{100 * inside_region(read_region(mask, series, home), grid).mean():.3g} % of scan {home}"


def _time(estimate: ProcessorTime, spent_s: float) -> str:
    threads = torch.get_num_threads()
    over = f", summed over {threads} threads" if threads > 1 else ""
    text = f"{_duration(spent_s + estimate.seconds)} of processor time{over}"
    searching = estimate.searching_seconds
    return f"{text}; up to {_duration(searching)} more if scans are far apart" if searching else text


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.2g} min"


def _files(products: Products, config: ConfigParser, scans: Sequence[str]) -> Sequence[str]:
    """List the files that `SeriesWriter` writes for these scans."""
    names = products.names(std=bool(config.get_parsed_content("std_draws")))
    second = [bids_name(name.format("00"), scans) for name in names] if products.exports.bids_names else []
    numbers = f"00 to {len(scans) - 1:02d}"
    written = [name.format(numbers) for name in names]
    written += [name.replace("scan00", f"scan{numbers}") for name in second if name]
    return [*written, *REPORTS]
