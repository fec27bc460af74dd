"""Write the metrics of many series as a table."""

import csv
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..data.preprocessing.fingerprint import fingerprint
from ..data.writing.output_folder import atomic_file, atomic_folder, claim, release
from ..data.writing.replacement import check_names
from ..errors import InputError
from .report import format_table, to_json, versions, write_json

logger = logging.getLogger(__name__)
METRICS = ("metrics.csv", "metrics.json")  # files of a table
MEASURED = ".measured"  # folder of intermediate results, one file per series, until the table is complete
# Columns printed in the terminal; the files have all of them.
SHOWN = (
    "series",
    "landmark_before_mm_mean",
    "landmark_after_mm_mean",
    "landmark_after_mm_median",
    "landmark_after_mm_sd",
    "dice",
    "surface_distance_mm",
    "rmse_before",
    "rmse_after",
    "nmi_before",
    "nmi_after",
    "folding_percent",
    "seconds",
)


class MetricsTable:
    """Print the metrics of every series and their mean as a table, and write them to ``metrics.csv`` and
    ``metrics.json``.

    Results are saved per series, so an interrupted run resumes with the remaining ones, unless their files or the
    settings have changed. The processes of a distributed run share the series; rank 0 writes the table.

    Args:
        output_dir: created if it does not exist; no other run may write to it in the meantime.
        settings: everything else on which the metrics depend, such as parts of the configuration and files.
    """

    def __init__(self, output_dir: str, settings: Sequence[object] = ()):
        if idist.get_rank() == 0:
            claim(output_dir)
            check_place_of_table(Path(output_dir))
        self.output_dir, self.settings = Path(output_dir), list(settings)
        self.items: list[Mapping[str, Any]] = []

    def remaining(self, items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the series without saved metrics, or the last series if all have them, as an engine needs one.

        Raises:
            InputError: If there are no series.
        """
        self.items = list(items)
        if not self.items:
            raise InputError("series: expected at least one, got none; specify a dataset, or set phantoms to 1 or more")
        self.keys = [fingerprint(item, self.settings, versions()) for item in self.items]
        pending = [n for n, key in enumerate(self.keys) if self._row(key) is None]
        if len(pending) < len(self.items):
            logger.info("Resuming: %d of %d series remain to be measured.", len(pending), len(self.items))
        idist.barrier()  # all processes list the pending series before any of them starts
        self.pending = pending[idist.get_rank() :: idist.get_world_size()] or [len(self.items) - 1]
        return [self.items[n] for n in self.pending]

    def _file(self, key: str) -> Path:
        return self.output_dir / MEASURED / f"{key}.json"

    def _row(self, key: str) -> dict[str, Any] | None:
        """Read the saved metrics of a series; None if its file is missing or corrupt."""
        try:
            return _with_nan(json.loads(self._file(key).read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError):
            return None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _clock(self, engine: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        number = self.pending[engine.state.iteration - 1]
        name = self.items[number].get("name") or f"series {number}"
        seconds = time.perf_counter() - self.started
        row = {"series": name, **engine.state.output[0]["metrics"], "seconds": seconds}  # type: ignore[index]
        file = self._file(self.keys[number])
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as path:
            path.write_text(to_json(row), encoding="utf-8")

    def _saved(self, key: str) -> dict[str, Any]:
        row = self._row(key)
        if row is None:
            raise RuntimeError(f"{self._file(key)}: expected the metrics of a series, got none")
        return row

    def _finish(self, engine: Engine) -> None:
        idist.barrier()
        if idist.get_rank() != 0:
            return
        write_metrics(self.output_dir, [self._saved(key) for key in self.keys])
        release(self.output_dir)


def write_metrics(output_dir: str | Path, series: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of all series and their mean to ``metrics.csv`` and ``metrics.json``, and print the main columns.

    Args:
        series: one row per series: its name as ``series``, and its metrics.
    """
    columns = list(dict.fromkeys(name for row in series for name in row))
    means = {}
    for name in columns[1:]:
        values = [row[name] for row in series if name in row]
        means[name] = sum(values) / len(values)
    rows = [*series, {"series": "mean", **means}]
    with atomic_folder(output_dir, stale=[MEASURED]) as folder:
        with open(folder / "metrics.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)
        write_json({"series": series, "mean": means, "versions": versions()}, folder / "metrics.json")
    print(format_table(rows, [name for name in columns if name in SHOWN]))
    print(f"All metrics: {Path(output_dir) / 'metrics.csv'}")


def check_place_of_table(output_dir: Path) -> None:
    """Check that a table replaces only the files of an earlier one.

    Raises:
        InputError: If another file or folder in ``output_dir`` has the name of one of its files.
    """
    check_names(output_dir, METRICS)
    if (measured := output_dir / MEASURED).is_file():
        raise InputError(f"{measured}: expected a folder or none, got a file; choose another output folder")
    files = [output_dir / name for name in METRICS if (output_dir / name).exists()]
    if files and not _is_table(output_dir):
        raise InputError(
            f"{files[0]}: expected no file that an evaluation would replace, got one that none wrote; move it, or "
            "choose another output folder"
        )


def _is_table(output_dir: Path) -> bool:
    """Check whether the folder has the files of an earlier table, which are written together."""
    try:
        return all("series" in row for row in read_metrics(output_dir))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def remove_table(output_dir: str | Path) -> None:
    """Remove the files of a table."""
    for name in METRICS:
        Path(output_dir, name).unlink(missing_ok=True)


def read_metrics(output_dir: str | Path) -> list[dict[str, Any]]:
    """Read the rows written by `write_metrics`, without the mean."""
    content = json.loads((Path(output_dir) / "metrics.json").read_text(encoding="utf-8"))
    return [_with_nan(row) for row in content["series"]]


def _with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Restore the NaN of a row, which JSON stores as null."""
    return {name: math.nan if value is None else value for name, value in row.items()}
