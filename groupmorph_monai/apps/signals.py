"""Signals that end a command. This module imports little, as signals must be caught before slow imports start."""

import os
import signal
from types import FrameType

STOPPED = "groupmorph: stopped; results are the earlier or the new ones, never a mixture"


def stopping_signals() -> list[signal.Signals]:
    """List the signals that end a command: Ctrl-C, SIGTERM, the limit of processor time, and a closed terminal, unless
    ``nohup`` ignores it."""
    names = ("SIGINT", "SIGTERM", "SIGXCPU", "SIGHUP")
    signals = [signal.Signals[name] for name in names if hasattr(signal, name)]  # Windows has only the first two
    return [s for s in signals if s.name != "SIGHUP" or signal.getsignal(s) is not signal.SIG_IGN]


def end_at_once() -> None:
    """Make these signals end the process in one line, without cleanup: for imports, which convert or ignore errors."""
    for number in stopping_signals():
        signal.signal(number, _end)


def _end(received: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"{STOPPED}\n".encode())
    finally:
        os._exit(128 + received)
