"""Signals that end a command. This module imports little, as signals must be caught before slow imports start."""

import os
import signal
from types import FrameType

__all__ = ["STOPPED", "end_at_once", "stopping_signals"]

STOPPED = "groupmorph: stopped; earlier results are unchanged"


def stopping_signals() -> list[signal.Signals]:
    """List the signals that end a command: Ctrl-C, SIGTERM, and a closed terminal, unless ``nohup`` ignores it."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows lacks it
        signals.append(signal.SIGHUP)
    return signals


def end_at_once() -> None:
    """Make these signals end the process in one line, without cleanup: for imports, which convert or ignore errors."""
    for number in stopping_signals():
        signal.signal(number, _end)


def _end(received: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"{STOPPED}\n".encode())
    finally:
        os._exit(128 + received)
