"""Series of volumes with their positions in the patient, and checks that they can be registered."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import InputError
from ..space.alignment import check_reference
from ..space.geometry import Grid
from .preprocessing.right_angles import at_right_angles
from .reading.fill_values import is_padding, without_fill
from .storage import IN_MEMORY, Storage

if TYPE_CHECKING:
    from .dicom.plane import Plane  # needs pydicom, which is optional

__all__ = [
    "LEAST_DETERMINANT",
    "LONGEST_MM",
    "Frame",
    "Series",
    "checked_series",
    "overlap",
    "series_of_arrays",
]

logger = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # coordinates of DICOM and ITK to those of NIfTI, which are used here
LEAST_DETERMINANT = 1e-12  # of an affine matrix, mm^3
LONGEST_MM = 1e4  # maximum extent of a volume of a patient
_SMALLEST_RANGE, _LARGEST_RANGE = 1e-15, 1e15  # squares of intensities must fit into float32
_BITS16 = 2**16  # number of 16-bit integers
_MOST_JUMPS = 3e-4  # share of neighbours that differ by nearly the range of 16-bit integers; 1e-5 in measured scans


@dataclass(frozen=True)
class Frame:
    """One volume.

    Args:
        data, affine: ``(i, j, k)``, float32 or labels; ``(4, 4)``, voxel to RAS mm.
        path: its file, for messages and reports.
        valid: ``(i, j, k)`` bool, True for measured voxels and False for fill values; None if the file does not say.
        header: header of its NIfTI file.
    """

    data: np.ndarray
    affine: np.ndarray
    path: str
    valid: np.ndarray | None = None
    header: nib.Nifti1Header | None = None

    @property
    def grid(self) -> Grid:
        return Grid(self.data.shape, torch.as_tensor(self.affine))


@dataclass(frozen=True)
class Series:
    """K volumes of one patient in temporal order.

    Args:
        frame_time: time between frames in the header's unit, or in seconds without header; None if unknown or uneven.
        times_s: times of all frames in seconds since the first one, if known.
        description: series description of the scanner, if known.
        slices: DICOM slices of each frame; None for other formats.
        warnings: what is doubtful about the files; each warning is a reason to check the registration.
    """

    frames: tuple[Frame, ...]
    frame_time: float | None = None
    times_s: tuple[float, ...] | None = None
    description: str = ""
    slices: tuple[Sequence["Plane"], ...] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Name of each timepoint to a reader: the scanner's description of its series, or the name of its file."""
        described = [planes[0].source.description for planes in self.slices or ()]
        return [name or Path(frame.path).name for name, frame in zip_longest(described, self.frames)]

    @property
    def dicom_slices(self) -> tuple[Sequence["Plane"], ...]:
        """DICOM slices of each frame. Raises: ValueError for a series of another format."""
        if self.slices is None:
            raise ValueError("series: expected one that was read from DICOM, got another format")
        return self.slices

    def check_reference(self, reference: int | None) -> None:
        """Raise an InputError if there is no timepoint with this index."""
        check_reference(reference, len(self.frames))


def series_of_arrays(volumes: Sequence[ArrayLike], affine: ArrayLike, times_s: Sequence[float] | None = None) -> Series:
    """Make a series from K volumes in memory.

    Args:
        volumes: ``(K, *S)``, or K volumes ``(*S)`` of any size; NumPy arrays or convertible to them.
        affine: ``(4, 4)``, voxel indices to RAS mm, for all volumes; or K of them.
        times_s: K acquisition times in seconds.

    Raises:
        InputError: For invalid input, with a one-line message.
    """
    if any(np.iscomplexobj(volume) for volume in volumes):
        raise InputError("series: expected real values, got complex ones; pass magnitudes")
    arrays = [np.asarray(volume, dtype=np.float32) for volume in volumes]
    try:
        affines = np.broadcast_to(np.asarray(affine, dtype=np.float64), (len(arrays), 4, 4))
    except ValueError:
        shape = np.shape(affine)
        raise InputError(f"affine: expected (4, 4) or ({len(arrays)}, 4, 4), got {shape}; use RAS mm") from None
    for k, (volume, matrix) in enumerate(zip(arrays, affines)):
        if volume.ndim != 3:
            raise InputError(f"timepoint {k}: expected three axes, got shape {volume.shape}; pass K 3D volumes")
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise InputError(f"affine of timepoint {k}: expected an invertible matrix, got {matrix.tolist()}; fix it")
    if times_s is not None and len(times_s) != len(arrays):
        raise InputError(f"times_s: expected {len(arrays)} times in seconds, got {len(times_s)}; pass one per volume")
    if times_s is not None and not (np.diff(np.asarray(times_s, dtype=np.float64)) >= 0).all():
        raise InputError(f"times_s: expected times in ascending order, got {list(times_s)}; sort volumes and times")
    frames = tuple(Frame(v, np.array(a), f"timepoint {k}") for k, (v, a) in enumerate(zip(arrays, affines)))
    return checked_series(Series(frames, times_s=None if times_s is None else tuple(times_s)), None)


def checked_series(series: Series, timepoints: int | None, storage: Storage = IN_MEMORY) -> Series:
    """Check that K scans can be registered together, and mask fill values. A series that was checked stays the same.

    Args:
        series: the scans. Fill values are detected only in frames without ``valid``.
        timepoints: required K; None for two or more.
        storage: where to keep volumes that are changed.

    Returns:
        The series with fill values marked as invalid, and orthogonal axes.

    Raises:
        InputError: For the first unsuitable scan, with a one-line message.
    """
    frames = list(series.frames)
    if not frames:
        raise InputError("series: expected at least two volumes, got none; pass the scans")
    first = frames[0]
    if len(frames) < 2:
        raise InputError(f"{first.path}: expected a series, got one timepoint; use several 3D files, or one 4D file")
    for number, frame in enumerate(frames):
        _check_frame(frame, number, first)
        storage.release()
    frames = [_on_measured_voxels(frame, storage) for frame in frames]
    for number, frame in enumerate(frames):
        if frame.data.shape != frames[0].data.shape or not np.allclose(frame.affine, frames[0].affine, atol=1e-3):
            logger.info("Frame %d (%s) has another grid than the first one.", number, frame.path)
    if timepoints is not None and len(frames) != timepoints:
        raise InputError(
            f"{first.path}: expected {timepoints} timepoints, as this model requires, got {len(frames)}; use "
            f"{timepoints} volumes, or --set timepoints={len(frames)} and weights trained with it"
        )
    return replace(series, frames=tuple(frames))


def _check_frame(frame: Frame, number: int, first: Frame) -> None:
    name = f"{frame.path} (timepoint {number})"
    if frame.valid is not None and (frame.valid.shape != frame.data.shape or not frame.valid.any()):
        raise InputError(
            f"{name}: expected a mask of its {frame.data.shape} voxels that is True where they were measured, got "
            f"{np.count_nonzero(frame.valid)} of {frame.valid.shape}; correct valid, or leave it out"
        )
    # min and max propagate NaN.
    low, high = float(frame.data.min()), float(frame.data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        low, high = _finite_range(frame, name)
    for value in (low, high):
        different = int((frame.data != value).sum())
        if different < min(8, max(1, frame.data.size // 100)):
            where = f"all voxels but {different}" if different else "every voxel"
            raise InputError(f"{name}: expected an image, got {value:g} in {where}; remove this timepoint")
    if not _SMALLEST_RANGE < high - low < _LARGEST_RANGE:
        raise InputError(
            f"{name}: expected an intensity range between {_SMALLEST_RANGE:g} and {_LARGEST_RANGE:g}, got "
            f"{low:g} to {high:g}; rescale the image, e.g. to 0 to 1000"
        )
    matrix = frame.affine[:3]
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :3])) < LEAST_DETERMINANT:
        raise InputError(f"{name}: expected an invertible affine matrix, got {matrix.tolist()}; correct the header")
    extent = frame.grid.extent_mm.numpy()
    if not 1 <= extent.max() <= LONGEST_MM:
        raise InputError(
            f"{name}: expected a volume between 1 mm and 10 m long, got {' x '.join(f'{e:.3g}' for e in extent)} mm; "
            "correct the voxel size or its unit in the header"
        )
    if not overlap(frame.grid, first.grid):
        raise InputError(
            f"{name}: expected a volume that overlaps the first one ({first.path}) in space, got one at {_box(frame)} "
            f"mm RAS, and the first at {_box(first)}; check that both show the same region and have the right origin"
        )


def _finite_range(frame: Frame, name: str) -> tuple[float, float]:
    """Least and greatest value of a volume with padding of NaN.

    Raises:
        InputError: For other NaN and infinite voxels.
    """
    undefined = np.isnan(frame.data)
    measured = frame.data[~undefined]
    padding = is_padding(undefined) if frame.valid is None else not (undefined & frame.valid).any()
    if not len(measured) or not np.isfinite(measured).all() or not padding:
        count = int((~np.isfinite(frame.data)).sum())
        raise InputError(
            f"{name}: expected finite voxels, apart from padding of NaN at the border, got {count} NaN or infinite "
            "ones; replace them"
        )
    return float(measured.min()), float(measured.max())


def _on_measured_voxels(frame: Frame, storage: Storage) -> Frame:
    """Mask fill values, and resample sheared volumes to orthogonal axes."""
    if frame.valid is None:
        data, valid = without_fill(frame.data, frame.path)
    else:
        data, valid = _with_least_outside(frame.data, frame.valid), frame.valid
    if _overflowed(data):
        raise InputError(
            f"{frame.path}: expected neighbouring voxels of similar intensity, got jumps between {data.min():g} and "
            f"{data.max():g}, as from 16-bit integers that overflowed; export the scan again as floating-point numbers"
        )
    data, affine, valid = at_right_angles(data, frame.affine, valid, frame.path)
    data = data if data is frame.data else storage.keep(data)
    storage.release()
    return replace(frame, data=data, affine=affine, valid=None if valid is None else storage.keep(valid))


def _overflowed(data: np.ndarray) -> bool:
    """Check for 16-bit integers that overflowed when the scan was stored: values of all the type's range, with sharp
    edges between its two ends, where the next higher number wraps around to the lowest."""
    if not 0.9 * _BITS16 <= data.max() - data.min() < _BITS16:
        return False
    jumps = [np.mean(np.abs(np.diff(data, axis=axis)) > 0.75 * _BITS16) for axis in range(3)]
    return float(np.mean(jumps)) > _MOST_JUMPS


def _with_least_outside(data: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace invalid voxels by the smallest valid value; ``data`` itself is returned if they have it already."""
    least = data[valid].min()
    return data if (data[~valid] == least).all() else np.where(valid, data, least)


def overlap(one: Grid, other: Grid) -> bool:
    """Check whether two volumes overlap in space, by comparing bounding boxes along the axes of each."""
    for grid, box in ((one, other), (other, one)):
        corners = box.voxels(grid.corners(0.5)).numpy()
        if np.any(corners.max(0) <= -0.5) or np.any(corners.min(0) >= np.array(box.shape) - 0.5):
            return False
    return True


def _box(frame: Frame) -> str:
    corners = frame.grid.corners(0.5).round().int().numpy()
    return " x ".join(f"[{a}, {b}]" for a, b in zip(corners.min(0), corners.max(0)))
