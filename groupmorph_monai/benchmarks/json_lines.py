"""Results of a suite in a file of JSON lines, from which an interrupted run resumes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """File of JSON objects, one per line, each of which is written as soon as it is appended.

    Args:
        file: file, which may be missing.
    """

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> list[dict[str, Any]]:
        """Return the objects of all earlier runs, in order, and discard an incomplete last line of a killed run."""
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            self.file.write_text(complete, encoding="utf-8")
        return [json.loads(line) for line in complete.splitlines()]

    def append(self, line: Mapping[str, Any]) -> None:
        """Append an object."""
        with open(self.file, "a", encoding="utf-8") as file:
            print(json.dumps(line), file=file)
