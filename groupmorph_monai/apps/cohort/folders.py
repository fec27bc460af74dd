"""Layout of a cohort's output folder. Every worker imports this module, so it has no heavy imports.

```
DIR/series/NAME/   the result of a series with its status.json; either complete or absent
DIR/failed/NAME/   status.json and log.txt of a failed series
DIR/.work/         locks and unfinished series
DIR/cohort.*       the summary as a table and as a page, and the log of progress
```
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from ...errors import InputError

TABLE, PAGE, PROGRESS = "cohort.tsv", "cohort.html", "cohort.log"
LOG = "log.txt"
STATUS = "status.json"
TABLE_START = "name\tstate\t"
PAGE_START = '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Cohort</title>\n'
_STARTS = {TABLE: TABLE_START, PAGE: PAGE_START}  # how the files of a summary begin


class SeriesKey(TypedDict):
    """A series, and all that its result depends on.

    Args:
        name: name of the series and of its folder.
        inputs, settings: hashes of the files, and of everything else that determines the result.
    """

    name: str
    inputs: str
    settings: str


class Job(SeriesKey):
    """A command to run on one series.

    Args:
        files: the scans, or a folder of scans; empty for synthetic series.
        output: the cohort's folder.
        arguments: the command, one of `COMMANDS`, and its options, by name.
        cwd: folder in which the command was called.
        attempt: number of the attempt, from 1.
        threads: threads for the series; None for the worker's share of the cores.
        gpus: number of GPUs, assigned to local workers in turn.
    """

    files: list[str]
    output: str
    arguments: dict[str, Any]
    cwd: str
    attempt: NotRequired[int]
    threads: NotRequired[int | None]
    gpus: NotRequired[int]


class Status(SeriesKey):
    """Outcome of the last attempt of a series, the contents of ``status.json``. Fields that only the
    process of the series knows are missing if that process died."""

    state: Literal["failed", "finished"]
    error: str | None
    attempt: int
    seconds: float
    memory_gb: NotRequired[float]
    host: NotRequired[str]
    ended: NotRequired[str]


@dataclass(frozen=True)
class CohortFolder:
    """The output folder of a cohort."""

    root: Path

    def check(self) -> None:
        """Check that no file has the name of one of the folders, and no other file that of a summary.

        Raises:
            InputError: If there is such a file.
        """
        for name, start in _STARTS.items():
            path = self.root / name
            if path.is_file() and _start_of(path, len(start)) != start.encode():
                raise InputError(
                    f"--output: expected no file that a study would replace, got {path}, which none wrote; move it, or "
                    "choose another folder"
                )
        for path in self.folders:
            if os.path.lexists(path) and not path.is_dir():
                raise InputError(f"--output: expected a folder or none, got a file, {path}; choose another folder")

    def check_results(self, names: Iterable[str]) -> None:
        """Check that only results of a study are in the places of these series.

        Raises:
            InputError: If there is another file or folder.
        """
        from ...data.writing.replacement import journals

        for path in map(self.series, names):
            if os.path.lexists(path) and not (path / STATUS).is_file() and not (path.is_dir() and journals(path)):
                raise InputError(
                    f"--output: expected no file or folder of another kind in place of a result, got {path}; move it, "
                    "or choose another folder"
                )

    @property
    def folders(self) -> tuple[Path, Path, Path]:
        return self.root / "series", self.root / "failed", self.work

    @property
    def work(self) -> Path:
        return self.root / ".work"

    def lock(self, name: str) -> Path:
        return self.work / f"{name}.lock"

    def unfinished(self, name: str) -> Path:
        return self.work / f"{name}.part"

    def series(self, name: str) -> Path:
        return self.root / "series" / name

    def failed(self, name: str) -> Path:
        return self.root / "failed" / name

    def finished(self, job: Job) -> Status | None:
        """Read the status of a series finished from the same inputs with the same settings; None if there is none."""
        return self._status(self.series(job["name"]), job)

    def failure(self, job: Job) -> Status | None:
        """Read the status of a series that failed with the same inputs and settings; None if there is none."""
        return self._status(self.failed(job["name"]), job)

    @staticmethod
    def _status(folder: Path, job: Job) -> Status | None:
        try:
            status: Status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
            same = status["inputs"] == job["inputs"] and status["settings"] == job["settings"]
        except (OSError, ValueError, KeyError, TypeError):  # absent, or broken
            return None
        return status if same else None

    def write_failure(self, status: Status) -> None:
        """Record the failure of a series whose server could not do so itself."""
        folder = self.failed(status["name"])
        folder.mkdir(parents=True, exist_ok=True)
        write_status(folder, status)


def _start_of(path: Path, length: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(length)


def write_status(folder: Path, status: Status) -> None:
    """Write the status of a series to its ``folder``."""
    (folder / STATUS).write_text(json.dumps(status, indent=2) + "\n", encoding="utf-8")
