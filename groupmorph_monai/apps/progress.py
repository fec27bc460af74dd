"""What a long run tells while it goes on."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["progress_log"]


@contextmanager
def progress_log(file: Path, mode: str = "w") -> Iterator[Callable[[str], None]]:
    """Yield a function that prints a line at once and keeps it in ``file``, which is opened in ``mode``."""
    with open(file, mode) as stream:

        def tell(line: str) -> None:
            for target in (sys.stdout, stream):
                print(line, file=target, flush=True)

        yield tell
