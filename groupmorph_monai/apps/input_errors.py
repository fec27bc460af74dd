"""A user's mistake is answered by one line and exit code 2, not by a traceback."""

import re
import sys
from types import TracebackType

from ..errors import InputError
from .threads import limit_threads

__all__ = ["explain_input_errors", "find_input_error"]


_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Unable to allocate", re.IGNORECASE)


def find_input_error(error: BaseException | None) -> InputError | None:
    """Find the InputError behind ``error``, however often MONAI has wrapped it; None where there is none. Weights of
    another model, which PyTorch refuses, a file that there is not, and too little memory are such."""
    while error is not None and not isinstance(error, InputError):
        refused = re.match(r"Error\(s\) in loading state_dict for (\w+)", str(error))
        if refused:
            return InputError(
                f"weights: expected those of a {refused[1]} with these settings, got others; give --weights of a "
                "training with the same overlays"
            )
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return InputError(
                "memory: expected a series that fits, got one that does not; take a larger --spacing-mm, fewer scans "
                "or a smaller part of them"
            )
        if isinstance(error, FileNotFoundError) and error.filename:
            return InputError(f"{error.filename}: expected a file, found none; check the path")
        error = error.__cause__ or error.__context__
    return error


def explain_input_errors() -> None:
    """Prepare a process that MONAI started, and not this package: for the bundle's commands.

    From here on an InputError that nobody catches prints its one line on standard error and ends the process with code
    2, and as many threads run as the process may use cores.
    """
    limit_threads()

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        mistake = find_input_error(error)
        if mistake is None:
            sys.__excepthook__(kind, error, traceback)
            return
        print(f"groupmorph: {mistake}", file=sys.stderr)
        raise SystemExit(2)

    sys.excepthook = hook
