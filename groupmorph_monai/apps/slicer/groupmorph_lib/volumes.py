"""Files between Slicer and `groupmorph register`."""

from __future__ import annotations  # Slicer 5.2 has Python 3.9

import json
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

_SECONDS = {"s": 1.0, "ms": 1e-3}  # units of the index values of a sequence


def write_times(files: Sequence[str], values: Sequence[str], unit: str) -> None:
    """Write the index values of a sequence as times to the sidecars of its volumes; nothing if its unit is not one of
    time, or if they only count the volumes, as those of volumes that a user adds to a sequence."""
    if unit not in _SECONDS or [float(value) for value in values] == list(range(len(values))):
        return
    for file, value in zip(files, values):
        content = {"FrameTimesStart": [float(value) * _SECONDS[unit]]}
        Path(file).with_suffix(".json").write_text(json.dumps(content))


def split_volumes(file: str, folder: str) -> list[str]:
    """Write each volume of a 4D image to a 3D file in ``folder`` and return the files in temporal order."""
    series = sitk.ReadImage(file)
    *size, number = series.GetSize()
    files = []
    for k in range(number):
        files.append(str(Path(folder) / f"aligned_{k:03d}.nrrd"))
        sitk.WriteImage(sitk.Extract(series, [*size, 0], [0, 0, 0, k]), files[-1])
    return files


def fields_of(output: str) -> list[str]:
    """List the displacement fields from the common space to each volume. Slicer loads them as transforms: apply one to
    its volume to move the volume to the common space."""
    # Count instead of sorting by name, which would put ddf_100 before ddf_11.
    names = (Path(output) / f"ddf_{k:02d}.nii.gz" for k in count())
    return [str(path) for path in takewhile(Path.is_file, names)]


def report_page(output: str) -> str | None:
    """Locate the report for display."""
    pages = (Path(output) / name for name in ("report.html", "report.png"))
    return next((str(page) for page in pages if page.is_file()), None)
