"""DICOM in and out.

In: from a folder as a scanner exports it to a series of frames.

`find` reads the headers of all files, `choose` takes the stacks of slices that are to be aligned, `order` makes volumes
of them and tells their times, `geometry` places them and `pixels` reads their values. Out: `writer` makes a new
series of the aligned scans, with the headers of `derived`, and `registration` an object that holds their motion.
"""

from .derived import check_modality
from .parametric_map import write_parametric_maps
from .reader import list_dicom, read_dicom
from .registration import write_registration_object
from .writer import write_dicom

__all__ = [
    "check_modality",
    "list_dicom",
    "read_dicom",
    "write_dicom",
    "write_parametric_maps",
    "write_registration_object",
]
