"""Slicer-independent part of the module. It needs only Python and SimpleITK, which Slicer provides."""

from .command import Settings, register_command
from .run import Run
from .volumes import fields_of, report_page, split_volumes, write_times

__all__ = ["Run", "Settings", "fields_of", "register_command", "report_page", "split_volumes", "write_times"]
