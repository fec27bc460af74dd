"""`groupmorph evaluate` on workers: measure every series of a data list, and write the table of one process."""

import argparse
import math
import os
from functools import partial
from pathlib import Path

from monai.bundle import ConfigParser

from ...data import MakePhantomd, read_series, series_items
from ...data.reading.datalist import Item, scans_of
from ...data.reading.readers import header_grids
from ...errors import InputError
from ...evaluation.metrics_table import check_place_of_table, read_metrics, remove_table, write_metrics
from ...space.grid import Grid
from ...workflow.parsed_config import parsed_config
from ...workflow.weights import load_weights
from ..places import check_place_of_study
from ..registration_options import check_modes
from ..run import checked_run
from .checks import (
    check_apart,
    check_exist,
    check_folder_name,
    check_not_overwritten,
    check_options_not_overwritten,
    check_scans,
    folder_name,
)
from .clusters import check_installed
from .folders import CohortFolder, Job
from .study import Study, make_job, run_study, settings_hash
from .summary import Results, Row

_COLUMNS = (
    "landmark_before_mm_mean",
    "landmark_after_mm_mean",
    "dice",
    "nmi_before",
    "nmi_after",
    "folding_percent",
)
_OPTIONS = ("overlay", "set", "device", "weights", "spacing_mm", "quiet", "verbose")


def run_evaluation(args: argparse.Namespace) -> int:
    """Measure the remaining series of a data list, and write ``metrics.csv`` and ``metrics.json``.

    Returns:
        Exit code: 3 if any series failed, else 0.

    Raises:
        InputError: If an option, the data list or the output folder is invalid, before any series is measured.
    """
    check_installed(args)
    check_modes(args.overlay, "evaluate")
    cohort = CohortFolder(Path(args.output).resolve() / "evaluation")
    if args.dataset:
        for folder in (args.output, str(cohort.root)):
            check_place_of_study(folder, args.dataset)
    check_place_of_table(Path(args.output))
    check_options_not_overwritten(args, cohort.root)
    options = {name: getattr(args, name) for name in _OPTIONS}
    overrides = {name: getattr(args, name) for name in ("weights", "spacing_mm", "series_description")}
    parser = parsed_config(*checked_run("evaluate", args.overlay, args.set, args.device, **overrides))
    load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("weights"))
    settings = settings_hash(options)
    arguments = {**options, "threads": None, "command": "measure"}
    jobs = [
        make_job(cohort, name, scans_of(item), {**arguments, "item": item}, settings, item)
        for name, item in _items(args, parser, cohort).items()
    ]

    def write_table() -> None:
        rows = [row for job in jobs if cohort.finished(job) for row in read_metrics(cohort.series(job["name"]))]
        if rows:
            write_metrics(args.output, rows)
        else:  # a table left by an earlier run could be mistaken for this run's
            remove_table(args.output)

    return run_study(args, Study(cohort, jobs, EVALUATIONS, partial(_memory_gb, parser), write_table))


def _items(args: argparse.Namespace, parser: ConfigParser, cohort: CohortFolder) -> dict[str, Item]:
    """List the items to measure by the names of their folders, checked as far as their file headers allow."""
    split, held_out, description, reference = map(
        parser.get_parsed_content, ("split", "held_out", "series_description", "reference")
    )
    dataset = args.dataset and os.path.abspath(args.dataset)
    phantoms = [] if dataset else parser.get_parsed_content("validation_phantoms")
    items: dict[str, Item] = {}
    names: dict[str, str] = {}  # by case-folded folder name
    for number, item in enumerate(series_items(dataset, split, phantoms, held_out=held_out, description=description)):
        item = {"name": f"series {number}", **item}
        name, folder = item["name"], folder_name(item["name"])
        try:
            check_folder_name(folder)
            _check(item, reference, cohort)
        except InputError as error:
            raise InputError(f"{args.dataset}: {name}: {error}") from None
        if folder.casefold() in names:
            raise InputError(
                f"{args.dataset}: expected series whose names differ in letters or digits, got "
                f"{names[folder.casefold()]!r} and {name!r}; rename one, or list them with names in dataset.json"
            )
        names[folder.casefold()], items[folder] = name, item
    return items


def _check(item: Item, reference: int | None, cohort: CohortFolder) -> None:
    files = scans_of(item)
    check_exist("scans", files)
    for key in ("landmarks", "labels"):
        check_exist(key, item.get(key, ()))
        check_not_overwritten(key, item.get(key, ()), cohort.root)
    if files:
        check_apart(files, cohort.root)
        check_scans(files, item.get("description"), reference)


def _memory_gb(parser: ConfigParser, job: Job) -> float:
    item = job["arguments"]["item"]
    if "image" in item:
        image, description = item["image"], item.get("description")
        grids = header_grids(image, description) or header_grids(read_series(image, description=description))
    else:
        phantom = MakePhantomd()(item)
        grids = [Grid(phantom["image"].shape[1:], phantom["affine"])] * len(phantom["image"])
    return parser.get_parsed_content("cost_of")(grids).memory_gb


def _read(folder: Path) -> Row:
    (row,) = read_metrics(folder)
    return {name: row[name] for name in _COLUMNS if math.isfinite(row.get(name, math.nan))}


EVALUATIONS = Results(_COLUMNS, _read, "metrics.csv")
