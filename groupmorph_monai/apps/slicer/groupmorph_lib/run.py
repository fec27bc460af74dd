"""A registration that runs beside Slicer, so that its window stays alive."""

from __future__ import annotations  # Slicer 5.2 has Python 3.9

import re
import subprocess
import threading
from collections.abc import Sequence

__all__ = ["Run"]

# What the command prints when a stage is done, and the share of the work that is behind it then.
_STAGES = (
    (r"Read \d+ timepoints", 0.05),
    (r"Brought \d+ whole scans together", 0.3),
    (r"Refined the motion.* n = 16\b", 0.4),
    (r"Refined the motion.* n = 8\b", 0.45),
    (r"Refined the motion.* n = 4\b", 0.5),
    (r"Refined the motion.* n = 2\b", 0.6),
    (r"Refined the motion.* n = 1\b", 0.85),
    (r"Wrote \d+ files", 1.0),
)


class Run:
    """Run a command and follow it.

    Args:
        command: its words.
        environment: of the process. Slicer's own points Python to Slicer's libraries: give that of its start.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None):
        self.progress, self.message = 0.0, "Starting"
        self._lines: list[str] = []
        self._cancelled = False
        self._process = subprocess.Popen(
            list(command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stderr:
            self._lines.append(line.rstrip())
            for pattern, progress in _STAGES:
                if re.search(pattern, line):
                    self.progress, self.message = max(self.progress, progress), line.split(": ", 1)[-1].strip()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def error(self) -> str | None:
        """Why it failed, in the command's own line; None where it did not, or was cancelled, or still runs."""
        if self.running or self._process.returncode == 0 or self._cancelled:
            return None
        self._reader.join()
        own = [line for line in self._lines if line.startswith("groupmorph")]
        return "\n".join(own or self._lines[-5:]) or f"{self._process.args[0]} ended with {self._process.returncode}"

    @property
    def succeeded(self) -> bool:
        return not self.running and self._process.returncode == 0

    def cancel(self) -> None:
        """Stop it; it removes what it has begun to write."""
        self._cancelled = True
        if self.running:
            self._process.terminate()

    def wait(self, seconds: float | None = None) -> None:
        self._process.wait(seconds)
        self._reader.join(seconds)
