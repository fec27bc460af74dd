"""Standard output that may be closed or full while a command runs."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


def discard(stream: TextIO) -> None:
    """Discard all further output of a stream, which Python flushes again at exit and would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class StandardOutput:
    """A text stream that keeps its first error in ``error`` and ignores further output, so that a command finishes its
    work even if nobody reads its messages, or if they fill the disk.

    Args:
        stream: stream to write to.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[..., object], *arguments: str) -> None:
        if self.error is not None:
            return
        try:
            act(*arguments)
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError):
                discard(self.stream)

    @property
    def complaint(self) -> str | None:
        """Message about the error; None without one, or if the reader has closed the pipe, as `head` does."""
        if self.error is None or self.error.errno == errno.EPIPE:
            return None
        return (
            f"standard output: could not write messages ({self.error.strerror}); redirect it elsewhere; the written "
            "results are complete"
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def tolerant_output(quiet: bool) -> Iterator[StandardOutput]:
    """Replace standard output with one that ignores its errors and, with ``quiet``, everything written to it."""
    with open(os.devnull, "w", encoding="utf-8") if quiet else contextlib.nullcontext(sys.stdout) as stream:
        output = StandardOutput(cast(TextIO, stream))
        with contextlib.redirect_stdout(cast(TextIO, output)):
            yield output
            output.flush()
