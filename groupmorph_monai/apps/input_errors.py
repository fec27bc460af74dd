"""A user's mistake is answered by one line and exit code 2, not by a traceback."""

import logging
import re
import sys
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from .configs import bundle_root

__all__ = ["explain_input_errors", "find_input_error"]


def find_input_error(error: BaseException | None) -> InputError | None:
    """The InputError behind ``error``, however often MONAI has wrapped it; None where there is none. Weights of another
    model, which PyTorch refuses, and a file that there is not are such."""
    while error is not None and not isinstance(error, InputError):
        refused = re.match(r"Error\(s\) in loading state_dict for (\w+)", str(error))
        if refused:
            return InputError(
                f"weights: expected those of a {refused[1]} with these settings, got others; give --weights of a "
                "training with the same overlays"
            )
        if isinstance(error, FileNotFoundError) and error.filename:
            return _missing(Path(error.filename))
        error = error.__cause__ or error.__context__
    return error


def _missing(file: Path) -> InputError:
    overlay = bundle_root() / "configs" / "models" / f"{file.stem}.yaml"
    if file.resolve().parent != bundle_root() / "models" or not overlay.is_file():
        return InputError(f"{file}: expected a file, found none; check the path")
    # An overlay names its weights by its own name; those of AVSM's first stage are a setting of its second.
    option = "--set affine_weights=" if file.stem == "avsm_affine" else "--weights "
    return InputError(
        f"{file}: no weights ship for models/{file.stem}; train them, groupmorph train --overlay models/{file.stem} "
        f"--output DIR, with a recipe of bundle/docs/models.md, and give {option}DIR/model_best.pt"
    )


def explain_input_errors() -> None:
    """From here on an InputError that nobody catches prints its one line on standard error and ends the process with
    code 2.

    For the bundle's commands, where MONAI, and not this package, calls.
    """
    # Ignite would print the wrapped error too, before it passes it on.
    logging.getLogger("ignite.engine.engine").addFilter(lambda record: "terminating due to exception" not in record.msg)

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        mistake = find_input_error(error)
        if mistake is None:
            sys.__excepthook__(kind, error, traceback)
            return
        print(f"groupmorph: {mistake}", file=sys.stderr)
        raise SystemExit(2)

    sys.excepthook = hook
