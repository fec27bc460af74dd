"""Read and write DICOM.

Reading a folder as exported by a scanner: `find` reads the headers of all files, `stack` forms stacks of parallel
slices, `choose` selects those to align, `split` divides them into volumes, `order` sorts these by time, `geometry`
computes their positions, and `pixels` reads their values. Writing: `writer` makes a new series of the aligned scans,
`registration` an object with their motion, and `parametric_map` objects with maps, with headers of `derived`.
"""

from .derived import check_sources
from .parametric_map import write_parametric_maps
from .reader import list_dicom, read_dicom
from .registration import write_registration_object
from .writer import write_dicom

__all__ = [
    "check_sources",
    "list_dicom",
    "read_dicom",
    "write_dicom",
    "write_parametric_maps",
    "write_registration_object",
]
