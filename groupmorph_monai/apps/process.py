"""Set up the process that MONAI starts for the bundle's commands."""

import sys

from .input_errors import explain_input_errors
from .interruptions import end_in_one_line

__all__ = ["prepare_process"]


def prepare_process() -> None:
    """Prepare the process of ``python -m monai.bundle``: limit threads to the available cores, keep freed memory, and
    report invalid input or a signal in one line on standard error.

    A program that runs the bundle in memory (a notebook, MONAI Label, federated learning) is left unchanged.
    """
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "monai.bundle.__main__":
        return
    from ..workflow.memory import keep_freed_memory  # imports PyTorch

    explain_input_errors()
    end_in_one_line()
    keep_freed_memory()
