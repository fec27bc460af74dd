"""Run a registration in the background, so that Slicer stays responsive."""

from __future__ import annotations  # Slicer 5.2 has Python 3.9

import re
import subprocess
import threading
from collections.abc import Sequence

# Messages of the command at the end of each stage, and the fraction of the work completed by then.
_STAGES = (
    (r"Read \d+ timepoints", 0.05),
    (r"Aligned \d+ scans by", 0.3),
    (r"Refined the motion at 1/16 of", 0.4),
    (r"Refined the motion at 1/8 of", 0.45),
    (r"Refined the motion at 1/4 of", 0.5),
    (r"Refined the motion at 1/2 of", 0.6),
    (r"Refined the motion at full resolution", 0.85),
    (r"Wrote \d+ files", 1.0),
)


class Run:
    """Run a command and monitor its progress.

    Args:
        command: arguments of the process.
        environment: environment of the process. Pass Slicer's startup environment, as its current one makes Python use
            Slicer's libraries.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None):
        self.progress, self.message = 0.0, "Starting"
        self._lines: list[str] = []
        self._program, self._cancelled = command[0], False
        self._process = subprocess.Popen(
            list(command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self._lines.append(line.rstrip())
            for pattern, progress in _STAGES:
                if re.search(pattern, line):
                    self.progress, self.message = max(self.progress, progress), line.split(": ", 1)[-1].strip()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def error(self) -> str | None:
        """Error message of the command; None if it succeeded, was cancelled, or is still running."""
        if self.running or self._process.returncode == 0 or self._cancelled:
            return None
        self._reader.join()
        own = [line for line in self._lines if line.startswith("groupmorph")]
        return "\n".join(own or self._lines[-5:]) or f"{self._program} ended with {self._process.returncode}"

    @property
    def succeeded(self) -> bool:
        return not self.running and self._process.returncode == 0

    def cancel(self) -> None:
        """Stop the command, which then removes its incomplete output."""
        self._cancelled = True
        if self.running:
            self._process.terminate()

    def wait(self, seconds: float | None = None) -> None:
        self._process.wait(seconds)
        self._reader.join(seconds)
