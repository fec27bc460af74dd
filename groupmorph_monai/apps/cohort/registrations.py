"""`groupmorph cohort`: register every series of a manifest."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ...errors import InputError
from ...workflow.parsed_config import parsed_config
from ...workflow.weights import load_weights
from ..arguments import make_parser
from ..configs import read_configs
from ..registration_options import registration
from ..run import checked_run
from ..setting_values import setting_value
from .checks import check_not_overwritten, check_options_not_overwritten, check_outputs
from .clusters import check_installed
from .folders import CohortFolder, Job
from .manifest import ManifestRow, read_manifest
from .study import Study, make_job, run_study, settings_hash
from .summary import Results, Row

_FILES = ("series", "mask", "region")  # options that are files of one series
_METRICS = ("nmi_before", "nmi_after", "folding_percent", "displacement_max_mm")


def run_cohort(args: argparse.Namespace) -> int:
    """Register the remaining series of a manifest.

    Returns:
        Exit code: 3 if any series failed, else 0.

    Raises:
        InputError: If the shared options, the manifest or the output folder are invalid, before any registration.
    """
    check_not_overwritten("manifest", [args.manifest], args.output)
    check_options_not_overwritten(args, args.output)
    options = register_options(args)
    parser = _config({**options, "files": []})
    load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("weights"))
    check_installed(args)
    series = read_manifest(args.manifest, args.output, args.reference)
    cohort = CohortFolder(Path(args.output).resolve())
    settings = settings_hash(options)
    jobs = [registration_job(series_row, options, cohort, settings) for series_row in series]
    _check_options(args.manifest, series, jobs)
    _check_outputs(args.manifest, jobs, parser)
    return run_study(args, Study(cohort, jobs, REGISTRATIONS, _memory_gb))


def registration_job(series: ManifestRow, options: Mapping[str, Any], cohort: CohortFolder, settings: str) -> Job:
    """Describe the registration of one series."""
    arguments = {**options, **series.options, "command": "register", "files": series.files}
    return make_job(cohort, series.name, series.files, arguments, settings, series.files, series.options)


def register_options(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the options of `groupmorph register`, with defaults for those that are not set."""
    defaults = vars(make_parser().parse_args(["register", "-"]))
    options = {name: getattr(args, name, default) for name, default in defaults.items() if name != "output"}
    return {**options, "threads": None}


def _check_options(manifest: str, series: Sequence[ManifestRow], jobs: Sequence[Job]) -> None:
    """Refuse options of a series that contradict those of the study, and a number of scans that the model does not
    accept. Series with the same options are checked once."""
    timepoints: dict[str, int | None] = {}  # required by the model, by options
    for row, job in zip(series, jobs):
        try:
            positional, options = registration(argparse.Namespace(**job["arguments"]))
            same = repr((positional, {name: value for name, value in options.items() if name not in _FILES}))
            if same not in timepoints:
                files, values = checked_run(*positional, **options)
                timepoints[same] = setting_value({**read_configs(files), **values}, "timepoints")
            if row.count and timepoints[same] not in (None, row.count):
                raise InputError(f"scans: expected {timepoints[same]}, as the settings require, got {row.count}")
        except InputError as error:
            raise InputError(f"{manifest}: {row.name}: {error}; nothing was registered") from None


def _check_outputs(manifest: str, jobs: Sequence[Job], parser: ConfigParser) -> None:
    """Refuse outputs that cannot be written for one of the series."""
    dicom, kinetics = (parser.get_parsed_content(name) for name in ("write_dicom", "write_kinetics"))
    for job in jobs:
        try:
            check_outputs(job["files"], job["arguments"]["series_description"], dicom, kinetics)
        except InputError as error:
            raise InputError(f"{manifest}: {job['name']}: {error}; nothing was registered") from None


def _config(arguments: Mapping[str, Any]) -> ConfigParser:
    """Parse the configs of `groupmorph register` with these options."""
    positional, options = registration(argparse.Namespace(**arguments))
    return parsed_config(*checked_run(*positional, **options))


def _memory_gb(job: Job) -> float:
    parser = _config(job["arguments"])
    cost = parser.get_parsed_content("cost_by_headers")
    return (cost if cost.scans else parser.get_parsed_content("cost")).memory_gb


def _read(folder: Path) -> Row:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    verdict = report.get("verdict") or {}
    row: Row = {"verdict": verdict.get("verdict"), "reasons": "; ".join(verdict.get("reasons", ()))}
    return row | {name: report.get("metrics", {}).get(name) for name in _METRICS}


REGISTRATIONS = Results(("verdict", "reasons", *_METRICS), _read, "report.html")
