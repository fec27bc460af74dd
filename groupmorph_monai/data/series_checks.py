"""Check that scans can be registered together, whatever volumes and numbers a user passes."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike

from ..errors import InputError
from ..space.grid import Grid
from .preprocessing.right_angles import at_right_angles, warn_of_shear
from .reading.fill_values import is_padding, without_fill
from .series import LEAST_DETERMINANT, LEAST_VOXELS, LONGEST_MM, Frame, Series
from .storage import IN_MEMORY, Storage

logger = logging.getLogger(__name__)

_SMALLEST_RANGE, _LARGEST_RANGE = 1e-15, 1e15  # bounds of the intensity range, as its square must fit into float32
_LEAST_SHARE = 2.0**-16  # minimum intensity range as a share of the largest value: 128 steps of float32
_BITS16 = 2**16  # number of 16-bit integers
_MOST_JUMPS = 3e-4  # share of neighbours that differ by nearly the range of 16-bit integers; 1e-5 in measured scans


def real_array(values: ArrayLike, name: str) -> np.ndarray:
    """Convert values, such as a tensor that requires gradients, to an array of real numbers.

    Raises:
        InputError: If they are not real numbers.
    """
    try:
        if isinstance(values, torch.Tensor):
            if values.is_nested:
                raise TypeError("a nested tensor")
            values = values.detach().cpu()
            values = values.float() if values.dtype == torch.bfloat16 else values  # NumPy has no bfloat16
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: expected an array of numbers, got {error}; pass NumPy arrays") from None
    if array.dtype.kind not in "biuf":
        cures = {"c": "convert them to magnitudes", "O": "pass float arrays, such as image.get_fdata() of nibabel"}
        cure = cures.get(array.dtype.kind, "convert them to float")
        raise InputError(f"{name}: expected real numbers, got {array.dtype}; {cure}")
    return array


def complete_array(values: ArrayLike, name: str) -> np.ndarray:
    """Convert values without masked entries to float64.

    Raises:
        InputError: If they are not real numbers, or if some are masked.
    """
    parts = values if isinstance(values, (list, tuple)) else [values]
    if any(np.ma.is_masked(part) for part in parts):
        raise InputError(f"{name}: expected numbers, got masked entries; replace them with numbers")
    return real_array(values, name).astype(np.float64, copy=False)


def check_affine(affine: np.ndarray, name: str) -> None:
    """Check that a matrix maps voxel indices to mm and back.

    Raises:
        InputError: If it does not.
    """
    if (
        affine.shape != (4, 4)
        or not np.isfinite(affine).all()
        or abs(np.linalg.det(affine[:3, :3])) < LEAST_DETERMINANT
        or not np.allclose(affine[3], (0, 0, 0, 1), rtol=0, atol=1e-6)
    ):
        raise InputError(
            f"{name}: expected an invertible affine matrix (4, 4) with the last row 0, 0, 0, 1, got "
            f"{affine.tolist()}; correct it"
        )


def check_grid(grid: Grid, name: str) -> None:
    """Check that a grid has the size and the position of a patient in a scanner.

    Raises:
        InputError: If it does not.
    """
    extent = grid.extent_mm.numpy()
    if not 1 <= extent.max() <= LONGEST_MM:
        raise InputError(
            f"{name}: expected a volume between 1 mm and 10 m long, got {' x '.join(f'{e:.3g}' for e in extent)} mm; "
            "correct the voxel size or its unit in the header"
        )
    if grid.corners(0.5).abs().max() > LONGEST_MM:
        raise InputError(
            f"{name}: expected a volume within 10 m of the scanner's centre, got one at {_box(grid)} mm RAS; correct "
            "the origin in the header"
        )


def checked_times(times_s: ArrayLike, number: int) -> tuple[float, ...]:
    """Convert K acquisition times to seconds.

    Raises:
        InputError: If they are not finite numbers, one per volume.
    """
    times = complete_array(times_s, "times_s")
    if times.shape != (number,) or not np.isfinite(times).all():
        raise InputError(f"times_s: expected {number} times in seconds, got {times.tolist()}; pass one per volume")
    return tuple(times.tolist())


def checked_series(series: Series, timepoints: int | None, storage: Storage = IN_MEMORY) -> Series:
    """Check that K scans can be registered together, and mask fill values. Checking a series twice has no effect.

    Args:
        series: the scans. Fill values are detected only in frames without ``valid``.
        timepoints: required K; None for two or more.
        storage: where to keep volumes that are changed.

    Returns:
        The series with fill values marked as invalid, and orthogonal axes; interpolated scans are among its warnings.

    Raises:
        InputError: If a scan is unsuitable; with a one-line message.
    """
    frames = [_of_arrays(frame, number) for number, frame in enumerate(series.frames)]
    if not frames:
        raise InputError("series: expected at least two volumes, got none; pass the scans")
    first = frames[0]
    if len(frames) < 2:
        raise InputError(
            f"{first.path}: expected a series, got one timepoint; use several 3D files (in a dataset, in a "
            "folder of their own), or one 4D file"
        )
    for number, frame in enumerate(frames):
        _check_frame(frame, number, first)
        storage.release()
    _check_masks(frames)
    if series.times_s is not None:
        series = replace(series, times_s=checked_times(series.times_s, len(frames)))
    checked, frames = frames, [_on_measured_voxels(frame, storage) for frame in frames]
    _log_unmeasured([frame for frame, before in zip(frames, checked) if before.valid is None])
    for number, frame in enumerate(frames):
        if frame.data.shape != frames[0].data.shape or not np.allclose(frame.affine, frames[0].affine, atol=1e-3):
            logger.info("Frame %d (%s) has another grid than the first one.", number, frame.path)
    if timepoints is not None and len(frames) != timepoints:
        raise InputError(
            f"{first.path}: expected {timepoints} timepoints, as this model requires, got {len(frames)}; use "
            f"{timepoints} volumes, or --set timepoints={len(frames)} and weights trained with it"
        )
    warnings = warn_of_shear(checked)
    for warning in warnings:
        logger.warning("%s", warning)
    return replace(series, frames=tuple(frames), warnings=(*series.warnings, *warnings))


def _log_unmeasured(frames: Sequence[Frame]) -> None:
    percent = [100 * (1 - np.mean(frame.valid)) for frame in frames if frame.valid is not None]
    if percent:
        logger.info(
            "Voxels that were not measured: in %d of %d scans, at most %.3g %% of a scan",
            len(percent),
            len(frames),
            max(percent),
        )


def _of_arrays(frame: Frame, number: int) -> Frame:
    """Convert the tensors of a frame, and an affine or mask of nested lists, to arrays.

    Raises:
        InputError: If they are not real numbers.
    """
    name = f"{frame.path} (timepoint {number})"
    affine = complete_array(frame.affine, f"{name}: affine")
    data = real_array(frame.data, name) if isinstance(frame.data, torch.Tensor) else frame.data
    valid = frame.valid
    if valid is not None and not isinstance(valid, np.ndarray):
        valid = real_array(valid, f"{name}: valid")
    return replace(frame, data=data, affine=affine, valid=valid)


def _check_frame(frame: Frame, number: int, first: Frame) -> None:
    name = f"{frame.path} (timepoint {number})"
    _check_voxels(frame, name)
    check_affine(frame.affine, name)
    _check_intensities(frame, name)
    check_grid(frame.grid, name)
    if not boxes_overlap(frame.grid, first.grid):
        raise InputError(
            f"{name}: expected a volume that overlaps the first one ({first.path}) in space, got one at "
            f"{_box(frame.grid)} mm RAS, and the first at {_box(first.grid)}; check that both show the same region and "
            "have the right origin"
        )


def _check_voxels(frame: Frame, name: str) -> None:
    """Check the type and shape of the voxels and of their mask."""
    data = np.asarray(frame.data)
    other = not isinstance(frame.data, np.ndarray) or isinstance(frame.data, np.ma.MaskedArray)
    if other or data.ndim != 3 or not data.size or data.dtype.kind not in "biuf":
        raise InputError(
            f"{name}: expected an array of real numbers with three axes, got {data.dtype} of shape {data.shape} in a "
            f"{type(frame.data).__name__}; pass 3D volumes"
        )
    if min(data.shape) < LEAST_VOXELS:
        raise InputError(
            f"{name}: expected a volume of {LEAST_VOXELS} voxels or more along every axis, got {data.shape}; use "
            "larger volumes"
        )
    valid = frame.valid
    if valid is not None and (valid.dtype != bool or valid.shape != data.shape or not valid.any()):
        raise InputError(
            f"{name}: expected a bool mask of its {data.shape} voxels that is True where they were measured, got "
            f"{np.count_nonzero(valid)} of {valid.shape} {valid.dtype}; correct valid"
        )


def _check_intensities(frame: Frame, name: str) -> None:
    """Check that the voxels show an image that float32 can hold."""
    low, high = float(frame.data.min()), float(frame.data.max())  # NaN if a voxel is
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
    if high - low < _LEAST_SHARE * max(abs(low), abs(high)):
        raise InputError(
            f"{name}: expected intensities without a large offset, got {low:.9g} to {high:.9g}, which float32 rounds; "
            "subtract the offset (scl_inter in the header of a NIfTI file)"
        )


def _check_masks(frames: Sequence[Frame]) -> None:
    """Refuse a mask among scans, as in a folder that also holds a mask; all frames may be masks.

    Raises:
        InputError: If some frames have no values but 0 and 1, or 0 and 255, and others do.
    """
    masks = [number for number, frame in enumerate(frames) if _is_mask(frame.data)]
    if 0 < len(masks) < len(frames):
        raise InputError(
            f"{frames[masks[0]].path} (timepoint {masks[0]}): expected an image like the other scans, got a mask, "
            f"whose only values are 0 and {frames[masks[0]].data.max():g}; list the scans without it"
        )


def _is_mask(data: np.ndarray) -> bool:
    high = data.max()
    if high not in (1, 255):
        return False
    parts = (data[:: max(1, len(data) // 4)], data)  # a few slices tell most images apart
    return not any(((part != 0) & (part != high)).any() for part in parts)


def _finite_range(frame: Frame, name: str) -> tuple[float, float]:
    """Return the least and the greatest value of a volume with padding of NaN.

    Raises:
        InputError: If there are other NaN or infinite voxels.
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
    """Check for 16-bit integers that overflowed when the scan was stored: values over the type's full range, with sharp
    edges between its two ends, where the next higher number wraps around to the lowest."""
    if not 0.9 * _BITS16 <= data.max() - data.min() < _BITS16:
        return False
    jumps = [np.mean(np.abs(np.diff(data, axis=axis)) > 0.75 * _BITS16) for axis in range(3)]
    return float(np.mean(jumps)) > _MOST_JUMPS


def _with_least_outside(data: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Replace invalid voxels with the smallest valid value; return ``data`` itself if they have it already."""
    least = data[valid].min()
    return data if (data[~valid] == least).all() else np.where(valid, data, least)


def boxes_overlap(one: Grid, other: Grid) -> bool:
    """Check whether two volumes overlap in space, by comparing bounding boxes along the axes of each."""
    for grid, box in ((one, other), (other, one)):
        corners = box.voxels(grid.corners(0.5)).numpy()
        if np.any(corners.max(0) <= -0.5) or np.any(corners.min(0) >= np.array(box.shape) - 0.5):
            return False
    return True


def _box(grid: Grid) -> str:
    corners = grid.corners(0.5).round().numpy() + 0.0  # no -0
    return " x ".join(f"[{a:.6g}, {b:.6g}]" for a, b in zip(corners.min(0), corners.max(0)))
