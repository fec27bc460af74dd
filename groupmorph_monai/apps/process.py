"""What the bundle's commands change in the process that MONAI started for them."""

import sys

from .input_errors import explain_input_errors
from .interruptions import end_in_one_line

__all__ = ["prepare_process"]


def prepare_process() -> None:
    """Prepare the process of ``python -m monai.bundle``: as many threads as it may use cores, freed memory that is
    kept, and one line on standard error for a user's mistake or a signal.

    A program that runs the bundle in memory (a notebook, MONAI Label, federated learning) stays as it is.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__":
        return
    from ..workflow.memory import keep_freed_memory  # which imports PyTorch

    explain_input_errors()
    end_in_one_line()
    keep_freed_memory()
