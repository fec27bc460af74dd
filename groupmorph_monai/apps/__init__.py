"""User interfaces: the command line, Python, 3D Slicer, MONAI Label and monai-physio."""

from .process import prepare_process

__all__ = ["prepare_process"]
