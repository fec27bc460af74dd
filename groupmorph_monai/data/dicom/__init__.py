"""DICOM in: from a folder as a scanner exports it to a series of frames.

`find` reads the headers of all files, `choose` takes the stacks of slices that are to be aligned, `order` makes volumes
of them and tells their times, `geometry` places them and `pixels` reads their values.
"""

from .reader import list_dicom, read_dicom

__all__ = ["list_dicom", "read_dicom"]
