"""What `groupmorph cohort` takes beside the options of `groupmorph register`."""

import argparse
import re

from .kinds import Number
from .option_types import number, path, positive

__all__ = ["COHORT_TEXTS", "add_cohort_options"]

COHORT_TEXTS = {
    "help": "align every series of a study, on this machine or on a cluster",
    "description": "Align every series of a table as 'register' does, and write a folder each, cohort.tsv and "
    "cohort.html. Given again, the command skips what is finished. The exit code is 3 where a series failed.",
}


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N, such as 1/8 to 8/8, got {text!r}")
    return int(match[1]), int(match[2])


def _address(text: str) -> str:
    if not re.fullmatch(r"(tcp|tls|ws|wss)://\S+:\d{1,5}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected an address such as tcp://host:8786, got {text!r}")
    return text


def add_cohort_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "manifest",
        type=path,
        metavar="MANIFEST",
        help="table of tab-separated values: name, scans (a folder, or files separated by ';') and, if need be, "
        "reference, mask, spacing_mm, series_description",
    )
    p.add_argument("--output", required=True, type=path, metavar="DIR", help="folder for the results of the study")
    group = p.add_argument_group("where it runs (default: on this machine)")
    places = group.add_mutually_exclusive_group()
    places.add_argument("--scheduler", type=_address, metavar="ADDRESS", help="a running Dask scheduler")
    places.add_argument(
        "--jobqueue", choices=["slurm", "pbs", "sge"], help="start the workers as jobs of this queue, by dask-jobqueue"
    )
    places.add_argument(
        "--shard", type=_shard, metavar="I/N", help="register every N-th series from the I-th on, without Dask"
    )
    group.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="series registered at a time (default: one per GPU, or as many as cores and memory allow; jobs: 1)",
    )
    group.add_argument(
        "--memory-gb",
        type=number(Number(0, 1e5, above=True)),
        metavar="GB",
        help="memory for one series (default: estimated from the largest one)",
    )
