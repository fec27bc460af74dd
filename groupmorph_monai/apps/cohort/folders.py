"""Layout of a cohort's output folder. Every worker imports this module, so it has no heavy imports.

```
DIR/series/NAME/   a registered series with its status.json; either complete or absent
DIR/failed/NAME/   status.json and log.txt of a failed series
DIR/.work/         locks and unfinished series
```
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CohortFolder", "write_status"]

_STATUS = "status.json"


@dataclass(frozen=True)
class CohortFolder:
    """The output folder of a cohort."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / ".work"

    def lock(self, name: str) -> Path:
        return self.work / f"{name}.lock"

    def series(self, name: str) -> Path:
        return self.root / "series" / name

    def failed(self, name: str) -> Path:
        return self.root / "failed" / name

    def finished(self, job: Mapping) -> dict | None:
        """Read the status of a series registered from the same inputs with the same settings; None if there is none."""
        return self._status(self.series(job["name"]), job)

    def failure(self, job: Mapping) -> dict | None:
        """Read the status of a series that failed with the same inputs and settings; None if there is none."""
        return self._status(self.failed(job["name"]), job)

    @staticmethod
    def _status(folder: Path, job: Mapping) -> dict | None:
        try:
            status = json.loads((folder / _STATUS).read_text(encoding="utf-8"))
            same = all(status[name] == job[name] for name in ("inputs", "settings"))
        except (OSError, ValueError, KeyError, TypeError):  # absent, or broken
            return None
        return status if same else None

    def write_failure(self, status: Mapping) -> None:
        """Record the failure of a series whose server could not do so itself."""
        folder = self.failed(status["name"])
        folder.mkdir(parents=True, exist_ok=True)
        write_status(folder, status)


def write_status(folder: Path, status: Mapping) -> None:
    """Write the status of a series to its ``folder``."""
    (folder / _STATUS).write_text(json.dumps(status, indent=2) + "\n", encoding="utf-8")
