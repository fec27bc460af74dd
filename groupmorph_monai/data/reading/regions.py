"""Regions drawn on a scan, read from files that are above 0 inside."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...space.grid import Grid
from ...space.transforms import Transform
from ..preprocessing.resampling import resample
from ..series import Frame, Series
from ..series_checks import boxes_overlap
from .readers import read_image

_MOST_LABELS = 1000  # maximum number of different values in a label map; an image has more
_LARGEST_LABEL = 2**24  # largest integer up to which float32 is exact


def read_labels(file: str | Path) -> Frame:
    """Read a label map.

    Raises:
        InputError: If it does not consist of at most 1000 different whole numbers up to 2^24.
    """
    frame = read_image(file, labels=True)
    labels = np.unique(frame.data)
    if len(labels) > _MOST_LABELS:
        raise InputError(f"{file}: expected at most {_MOST_LABELS} labels, got more; use a label map")
    fractions = labels[~np.isfinite(labels) | (labels != np.round(labels))]
    if len(fractions):
        raise InputError(f"{file}: expected whole numbers as labels, got {fractions[0]:g}; use a label map")
    if labels[-1] > _LARGEST_LABEL or labels[0] < -_LARGEST_LABEL:
        raise InputError(f"{file}: expected labels up to 2^24, got {labels[0]} to {labels[-1]}; renumber the labels")
    return frame


def read_region(files: str | Sequence[str], series: Series, home: int, name: str = "mask") -> Frame:
    """Read the region drawn on scan ``home``.

    Args:
        files: one file, drawn on that scan, or one per scan.
        name: name of the option, for messages.

    Raises:
        InputError: If there is neither one file nor one per scan, or if no voxel of the scan is inside.
    """
    files, count = [files] if isinstance(files, str) else list(files), len(series.frames)
    if len(files) not in (1, count):
        raise InputError(
            f"{name}: expected one file, or one for each of the {count} scans, got {len(files)}; list as many, and the "
            "scans before this option"
        )
    file = files[home if len(files) > 1 else 0]
    frame = read_image(file, labels=True)
    frame = replace(frame, data=(frame.data > 0).astype(np.uint8))
    if not inside_region(frame, series.frames[home].grid).any():
        raise nothing_inside(file, name, frame)
    return frame


def check_regions(files: str | Sequence[str], series: Series, home: int, name: str = "mask") -> None:
    """Check the region of scan ``home``, and that the files of other scans, which are not used, overlap their scans.

    Args:
        files, home, name: as for `read_region`.

    Raises:
        InputError: If the region is invalid for `read_region`, or another file is not an image that overlaps its scan.
    """
    read_region(files, series, home, name)
    if isinstance(files, str) or len(files) == 1:
        return
    for k, (file, scan) in enumerate(zip(files, series.frames, strict=True)):
        if k != home and not boxes_overlap(read_image(file, labels=True).grid, scan.grid):
            raise InputError(
                f"{file}: expected a {name} that overlaps its scan {scan.path}, got one that does not; list the files "
                "in the order of the scans"
            )


def inside_region(region: Frame, grid: Grid, transform: Transform | None = None) -> np.ndarray:
    """Return the voxels of a grid that are inside a region.

    Args:
        transform: from the grid's space to that of the region; None for the identity.

    Returns:
        ``(*S)`` bool, by nearest neighbour interpolation.
    """
    values, covered = resample(region, grid, transform, nearest=True)
    return covered & (values > 0)


def nothing_inside(file: str | Path, name: str, frame: Frame) -> InputError:
    """Explain that an image, such as a mask, is 0 throughout its scan: everywhere, or wherever they overlap.

    Args:
        name: what the image is, for the message.
    """
    if (frame.data > 0).any():
        return InputError(
            f"{file}: expected a {name} above 0 somewhere in its scan, got one that does not overlap the scan; check "
            "its position and that it was drawn on this scan"
        )
    return InputError(f"{file}: expected a {name} above 0 somewhere in its scan, got none; check the file")
