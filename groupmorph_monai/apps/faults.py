"""Internal errors: three lines on standard error, and a log file with the details."""

import importlib.metadata
import logging
import os
import platform
import sys
import tempfile
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from .. import __version__
from .input_errors import chain_of_causes

logger = logging.getLogger(__name__)

_FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
FAULT_LOGS = "groupmorph-*.log"  # pattern of the names of logs of internal errors
_PACKAGE = __name__.split(".")[0]
_INPUT = f"{_PACKAGE}.data."  # prefix of the loggers of modules that read the input
_LONGEST_WAIT_S = 10  # longest time for which messages about the input are held back
_MOST_RECORDS = 10000  # maximum number of log lines kept in memory
_LIBRARIES = ("torch", "monai", "pytorch-ignite", "nibabel", "itk-io", "numpy")
_REPORT = "the maintainers, with this log and, if you may share them, the input files"
_handlers: list[logging.Handler] = []  # attached by `keep_log`


class _Memory(logging.Handler):
    """Keep the latest records for the log of an internal error."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: deque[str] = deque(maxlen=_MOST_RECORDS)
        self.setFormatter(_FORMAT)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _Screen(logging.StreamHandler[TextIO]):
    """Print this package's messages and other packages' warnings and errors; with ``verbose``, print everything.

    Messages about the input wait for the first one about the work, so that a mistake is reported in one line alone; if
    reading takes longer, for 10 seconds at most.
    """

    def __init__(self, quiet: bool, verbose: bool):
        super().__init__(sys.stderr)
        self.verbose, self.level_of_ours = verbose, logging.WARNING if quiet else logging.INFO
        self.waiting: list[logging.LogRecord] = []
        self.setFormatter(_FORMAT)
        self.addFilter(self._is_shown)

    def emit(self, record: logging.LogRecord) -> None:
        self.waiting.append(record)
        late = record.created - self.waiting[0].created > _LONGEST_WAIT_S
        if self.verbose or late or not record.name.startswith(_INPUT):
            self.print_waiting()

    def print_waiting(self) -> None:
        waiting, self.waiting = self.waiting, []
        for record in waiting:
            super().emit(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        ours = record.name.split(".")[0] == _PACKAGE
        if record.name in ("py.warnings", "matplotlib"):  # meant for developers, or about a cache without a home folder
            return self.verbose
        return self.verbose or record.levelno >= (self.level_of_ours if ours else logging.WARNING)


def keep_log(quiet: bool = False, verbose: bool = False) -> deque[str]:
    """Print log messages to standard error, one line each, and record them.

    Returns:
        The recorded lines, at most the latest 10000.
    """
    root = logging.getLogger()
    while _handlers:
        root.removeHandler(_handlers.pop())
    memory = _Memory()
    for handler in (memory, _Screen(quiet, verbose)):
        _handlers.append(handler)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.getLogger(_PACKAGE).setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a message that cannot be written, as on a full disk, is lost without a traceback
    _tolerate_warnings()
    return memory.lines


def _tolerate_warnings() -> None:
    """Ignore warnings, also in workers, if ``-W error`` or ``PYTHONWARNINGS`` make them errors: PyTorch causes some."""
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("ignore")
        sys.warnoptions.clear()
        os.environ.pop("PYTHONWARNINGS", None)


@contextmanager
def thread_errors_logged() -> Iterator[None]:
    """Log errors that end a thread, such as TensorBoard's on a full disk, instead of printing them with a traceback."""

    def log(args: threading.ExceptHookArgs) -> None:
        logger.debug("A thread ended", exc_info=args.exc_value)

    previous, threading.excepthook = threading.excepthook, log
    try:
        yield
    finally:
        threading.excepthook = previous


def print_waiting_log() -> None:
    """Print the messages that wait for work to start, at the end of a command that had none."""
    for handler in _handlers:
        if isinstance(handler, _Screen):
            handler.print_waiting()


def report_fault(error: BaseException, arguments: Sequence[str], log: Sequence[str]) -> None:
    """Report an internal error in three lines on standard error: the error, the log file, and where to report it."""
    cause = chain_of_causes(error)[-1]
    try:
        place = _write_log(error, arguments, log)
    except OSError as failure:
        place = f"not written ({failure.strerror}); set TMPDIR to a folder with space, and repeat the command"
    what = (str(cause).strip().splitlines() or [""])[0][:200]
    print(f"groupmorph: internal error, not caused by your input: {type(cause).__name__}: {what}", file=sys.stderr)
    print(f"groupmorph: full log: {place}", file=sys.stderr)
    print(f"groupmorph: please report it to {_REPORT}", file=sys.stderr)


def _write_log(error: BaseException, arguments: Sequence[str], log: Sequence[str]) -> str:
    prefix, suffix = FAULT_LOGS.split("*")
    with tempfile.NamedTemporaryFile("w", prefix=prefix, suffix=suffix, delete=False, encoding="utf-8") as file:
        file.write(f"groupmorph {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        file.write(", ".join(f"{name} {_version(name)}" for name in _LIBRARIES) + f"\n{list(arguments)!a}\n\n")
        file.write("\n".join([*log, ""]).encode("utf-8", "backslashreplace").decode())
        file.write("".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace").decode())
    return file.name


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
