"""Progress messages of long runs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def progress_log(file: Path, mode: str = "w") -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line immediately and also writes it to ``file``, opened with ``mode``."""
    with open(file, mode, encoding="utf-8") as stream:

        def log(line: str) -> None:
            for target in (sys.stdout, stream):
                print(line, file=target, flush=True)

        yield log
