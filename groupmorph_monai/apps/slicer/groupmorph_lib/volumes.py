"""What `groupmorph register` has written, as Slicer takes it."""

from __future__ import annotations  # Slicer 5.2 has Python 3.9

from itertools import count, takewhile
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

__all__ = ["fields_of", "report_page", "split_volumes"]


def split_volumes(file: str, folder: str) -> list[str]:
    """Write each volume of a 4D image as a 3D file to ``folder``, in the order of time, and return their names."""
    series = sitk.ReadImage(file)
    *size, number = series.GetSize()
    files = []
    for k in range(number):
        files.append(str(Path(folder) / f"aligned_{k:03d}.nrrd"))
        sitk.WriteImage(sitk.Extract(series, [*size, 0], [0, 0, 0, k]), files[-1])
    return files


def fields_of(output: str) -> list[str]:
    """The displacement fields from the common space to each volume, which Slicer loads as transforms: put a volume
    under its own, and it lies in the common space."""
    # By number: sorted by name, ddf_100 would come before ddf_11.
    names = (Path(output) / f"ddf_{k:02d}.nii.gz" for k in count())
    return [str(path) for path in takewhile(Path.is_file, names)]


def report_page(output: str) -> str | None:
    """The report that a person looks at."""
    pages = (Path(output) / name for name in ("report.html", "report.png"))
    return next((str(page) for page in pages if page.is_file()), None)
