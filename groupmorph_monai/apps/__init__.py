"""Where people meet it: the command line, and what the bundle's commands need of it."""

from .process import prepare_process

__all__ = ["prepare_process"]
