"""Recognise DICOM files by their first bytes, without pydicom, which is an optional dependency."""

from pathlib import Path

__all__ = ["is_dicom"]

# Old exports lack the preamble; their files begin with an element of group 2 or 8.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def is_dicom(path: Path) -> bool:
    """Check whether this is a DICOM file, regardless of its name."""
    if not path.is_file() or path.name.startswith("."):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:  # not readable; reported later if the file was listed explicitly
        return False
    if head[128:] == b"DICM":
        return True
    element, length_or_type = head[:4], head[4:6]
    return element[:2] in _FIRST_GROUPS and (length_or_type.isalpha() or head[6:8] == b"\x00\x00") and len(head) == 132
