"""Where people meet it: the command line, and what the bundle's commands need of it."""

from .input_errors import explain_input_errors
from .interruptions import end_in_one_line

__all__ = ["end_in_one_line", "explain_input_errors"]
