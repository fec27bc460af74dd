"""Ctrl-C and SIGTERM end a command in one line with the exit code that shells expect, after it has tidied up."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from .input_errors import find_input_error

__all__ = ["STOPPED", "end_in_one_line", "exit_code", "interruptible"]

STOPPED = "groupmorph: stopped; an earlier result is as it was"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STATS_HANDLERS = ("train", "validate")  # by their names in train.yaml; their loggers have handlers of their own


class Stopped(KeyboardInterrupt):
    """A signal that ends a run. After a KeyboardInterrupt itself Python ends by the signal, whatever the exit code."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.exit_code = 128 + number


def _stop(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:  # one is enough: the next must not stop the tidying up
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def exit_code(stop: KeyboardInterrupt) -> int:
    """128 and the signal's number, as shells have it."""
    return getattr(stop, "exit_code", 128 + signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` within, with no traceback from any logger, and release the output folders
    in the end."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _catch_signals()
    places = _places()
    for place in places:
        place.addFilter(_is_news)
    try:
        yield
    finally:
        _release_folders()
        for place in places:
            place.removeFilter(_is_news)
        if _may_catch():
            for number, handler in before.items():
                signal.signal(number, handler)


def _release_folders() -> None:
    from ..data.output_folder import release_all  # which imports PyTorch, and signals are to be caught meanwhile

    release_all()


def _may_catch() -> bool:
    return threading.current_thread() is threading.main_thread()


def _catch_signals() -> None:
    if _may_catch():
        for number in _SIGNALS:
            signal.signal(number, _stop)


def end_in_one_line() -> None:
    """The same from here on for a process in which MONAI, and not this package, calls; and no logger prints the
    traceback of what ends in one line."""
    _catch_signals()
    for place in _places():
        place.addFilter(_is_news)
    other_hook = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not isinstance(error, KeyboardInterrupt):
            other_hook(kind, error, traceback)
            return
        _release_folders()
        print(STOPPED, file=sys.stderr)
        raise SystemExit(exit_code(error))

    sys.excepthook = hook


def _places() -> list[logging.Filterer]:
    """Where tracebacks would be printed: the root's handlers, and the loggers of MONAI's StatsHandlers."""
    from monai.apps.utils import get_logger  # which imports PyTorch

    return [*logging.getLogger().handlers, *map(get_logger, _STATS_HANDLERS)]


def _is_news(record: logging.LogRecord) -> bool:
    """Ignite and MONAI's handlers log every exception that passes them, one after the other."""
    error = sys.exc_info()[1]
    logged = "terminating due to exception" in str(record.msg) or record.exc_info
    return not (logged and error and (isinstance(error, KeyboardInterrupt) or find_input_error(error)))
