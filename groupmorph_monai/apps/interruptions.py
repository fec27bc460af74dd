"""End a command after Ctrl-C, SIGTERM or a closed terminal: clean up, print one line, and exit with the code that
shells expect."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from .input_errors import chain_of_causes
from .signals import stopping_signals

_STATS_HANDLERS = ("train", "validate")  # names in train.yaml; their loggers have their own handlers


class Stopped(KeyboardInterrupt):
    """A signal that ends a run. After a plain KeyboardInterrupt Python ends by the signal and ignores the exit code."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.exit_code = 128 + number


def _stop(received: int, frame: FrameType | None) -> None:
    for number in stopping_signals():  # further signals must not interrupt the cleanup
        signal.signal(number, signal.SIG_IGN)
    raise Stopped(received)


def exit_code(error: BaseException) -> int | None:
    """Return the exit code of a run that a signal ended, by shell convention: 128 plus the number of the signal.

    Args:
        error: the error that ended the run; the signal may be among its causes, as Python's `pydoc`, by which MONAI
            imports classes, converts all errors during an import.

    Returns:
        None for an error of another kind.
    """
    stop = next((cause for cause in chain_of_causes(error) if isinstance(cause, KeyboardInterrupt)), None)
    return None if stop is None else getattr(stop, "exit_code", 128 + signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make signals raise `Stopped`, without tracebacks from loggers, and release output folders at exit."""
    previous_handlers = {number: signal.getsignal(number) for number in stopping_signals()}
    filterers = catch_signals()
    try:
        yield
    finally:
        release_folders()
        for filterer in filterers:
            filterer.removeFilter(_is_news)
        if _may_catch():
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)


def catch_signals() -> list[logging.Filterer]:
    """Make signals raise `Stopped`, and filter its tracebacks from what prints them: the root logger's handlers, and
    the loggers of MONAI's StatsHandlers. Return what is filtered."""
    if _may_catch():
        for number in stopping_signals():
            signal.signal(number, _stop)
    from monai.apps.utils import get_logger  # imports PyTorch, during which signals must already be caught

    filterers = [*logging.getLogger().handlers, *map(get_logger, _STATS_HANDLERS)]
    for filterer in filterers:
        filterer.addFilter(_is_news)
    return filterers


def release_folders() -> None:
    """Release the output folders of this process."""
    from ..data.writing.output_folder import release_all  # imports PyTorch

    release_all()


def _may_catch() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_news(record: logging.LogRecord) -> bool:
    """Drop the records in which Ignite and MONAI's handlers log the exception that ends a run; it is reported later."""
    by_monai = record.name in _STATS_HANDLERS and record.exc_info
    return not (by_monai or "terminating due to exception" in str(record.msg))
