"""What the name of an image file tells: its format, and its place in a series."""

import re
from pathlib import Path

__all__ = ["IMAGE_ENDINGS", "NIFTI_ENDINGS", "image_stem", "natural_order"]

NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".hdr.gz", ".img", ".img.gz")
# What counts as an image in a folder; a file that is named outright may be anything that nibabel or ITK reads.
IMAGE_ENDINGS = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".gipl.gz", ".vtk")


def natural_order(path: Path) -> list:
    """Key that sorts scan2 before scan10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name.lower())]


def image_stem(name: str) -> str:
    """The name of an image file without what tells its format; other dots stay, as in scan.t1.nii.gz."""
    ending = max((e for e in (*IMAGE_ENDINGS, *NIFTI_ENDINGS) if name.lower().endswith(e)), key=len, default="")
    return name.removesuffix(name[len(name) - len(ending) :]) if ending else name
