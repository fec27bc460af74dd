"""Positions of the slices of a volume."""

from collections.abc import Iterable, Sequence

import numpy as np
from pydicom.valuerep import DSfloat

from ...errors import InputError
from ..series import LPS_TO_RAS
from .plane import Plane

SAME_PLACE_MM = 0.01  # largest distance of equal positions: more than rounding in headers, less than between slices
_AXES_NOISE = 1e-3  # maximum difference between the directions of parallel slices
_UNEVEN = 0.05  # maximum offset of a slice, relative to the slice distance: more than rounding, less than a gap


def depth(plane: Plane) -> float:
    """Compute the position along the normal of the slices, in mm."""
    return float(np.cross(*plane.place.axes) @ plane.place.position)


def decimals(values: Iterable[float]) -> list[DSfloat]:
    """Convert numbers to DICOM's decimal strings of at most 16 characters."""
    return [DSfloat(float(value), auto_format=True) for value in values]


def orientation(affine: np.ndarray) -> list[DSfloat]:
    """Compute Image Orientation (Patient) from ``affine`` ``(4, 4)``, voxel (column, row, slice) to LPS mm."""
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    return decimals(axes.T.ravel())


def volume_affine(planes: Sequence[Plane]) -> np.ndarray:
    """Compute the affine ``(4, 4)`` of slices sorted by depth, voxel (column, row, slice) to RAS mm.

    The third axis points from the first to the last position, so that a tilted gantry gives a sheared affine, which the
    reader then resamples to orthogonal axes.

    Raises:
        InputError: If the slices are not evenly spaced on a straight line, or if their pixels have no size.
    """
    first, positions = planes[0], np.stack([plane.place.position for plane in planes])
    path, description = first.file.path, first.source.description
    step = (positions[-1] - positions[0]) / (len(planes) - 1)
    gaps = np.diff([depth(plane) for plane in planes])
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > 1.5 * usual)
    if len(wide):
        k = int(wide[0])
        raise InputError(
            f"{path}: expected slices {usual:.4g} mm apart, got a gap of {gaps[k]:.4g} mm after slice {k + 1} of "
            f"{len(planes)} in {description!r}; export the series again, slices are missing"
        )
    straight = positions[0] + np.arange(len(planes))[:, None] * step
    off = float(np.linalg.norm(positions - straight, axis=1).max())
    if off > _UNEVEN * np.linalg.norm(step):
        raise InputError(
            f"{path}: expected evenly spaced slices on one line, got one that is {off:.3g} mm off in "
            f"{description!r}, {gaps.min():.4g} to {gaps.max():.4g} mm apart; resample it, or remove it"
        )
    affine = np.eye(4)
    place = first.place
    between_rows, between_columns = place.spacing_mm
    if between_rows <= 0 or between_columns <= 0:
        raise InputError(
            f"{path}: expected a positive Pixel Spacing, got {between_rows:g} and {between_columns:g} mm in "
            f"{description!r}; correct the header"
        )
    affine[:3, 0], affine[:3, 1] = place.axes[0] * between_columns, place.axes[1] * between_rows
    affine[:3, 2], affine[:3, 3] = step, place.position
    # Round to the precision of a NIfTI header, as for every other format.
    return (LPS_TO_RAS @ affine).astype(np.float32).astype(np.float64)


def evenly_spaced(planes: Sequence[Plane]) -> bool:
    """Check whether slices sorted by depth form a volume: two or more parallel, evenly spaced slices."""
    if len(planes) < 2 or depth(planes[0]) >= depth(planes[1]):
        return False
    if np.ptp([plane.place.axes for plane in planes], axis=0).max() > _AXES_NOISE:
        return False
    try:
        volume_affine(planes)
    except InputError:
        return False
    return True
