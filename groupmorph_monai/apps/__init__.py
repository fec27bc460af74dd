"""Where people meet it: the command line, and what the bundle's commands need of it."""

from .input_errors import explain_input_errors

__all__ = ["explain_input_errors"]
