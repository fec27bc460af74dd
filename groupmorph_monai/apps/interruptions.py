"""Ctrl-C and SIGTERM end a command in one line with the exit code that shells expect, after it has tidied up."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from ..data.output_folder import release_all
from .input_errors import find_input_error

__all__ = ["end_in_one_line", "exit_code", "interruptible"]

STOPPED = "groupmorph: stopped; an earlier result is as it was"


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: the next must not stop the tidying up
    raise Terminated


def exit_code(stop: BaseException) -> int:
    """128 and the signal's number."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM raise a KeyboardInterrupt within, and release the output folders in the end."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        yield
    finally:
        release_all()
        if main:
            signal.signal(signal.SIGTERM, before)


def end_in_one_line() -> None:
    """The same from here on for a process in which MONAI, and not this package, calls; and no logger prints the
    traceback of what ends in one line."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_is_told_by_no_other)
    other_hook = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, KeyboardInterrupt):
            other_hook(kind, error, traceback)
            return
        release_all()
        print(STOPPED, file=sys.stderr)
        raise SystemExit(exit_code(error))

    sys.excepthook = hook


def _is_told_by_no_other(record: logging.LogRecord) -> bool:
    """Ignite and MONAI's handlers log every exception that passes them, one after the other."""
    error = sys.exc_info()[1]
    told = "terminating due to exception" in str(record.msg) or record.exc_info
    return not (told and error and (isinstance(error, KeyboardInterrupt) or find_input_error(error)))
