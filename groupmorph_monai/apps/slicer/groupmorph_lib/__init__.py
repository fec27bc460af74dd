"""What the module needs beside Slicer's own: plain Python, and SimpleITK, which Slicer brings."""

from .command import Settings, register_command
from .run import Run
from .volumes import fields_of, report_page, split_volumes

__all__ = ["Run", "Settings", "fields_of", "register_command", "report_page", "split_volumes"]
