"""Convert sheared grids to grids with orthogonal axes, as ITK, DICOM and NIfTI's qform support no others."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.ndimage import affine_transform

from ...errors import InputError
from ..series import Frame

# Cosine between two axes: rounding in a float32 header, rounding in a header with few decimals, and the maximum that is
# plausible for a scanner.
_ROUNDING_FLOAT32, _ROUNDING, _STEEPEST_SHEAR = 1e-6, 1e-3, 0.7
_SPACING_DECIMALS = 4  # mm; spacings that differ by less are equal


def is_sheared(affine: np.ndarray) -> bool:
    """Check whether two axes of a grid deviate from a right angle by more than rounding."""
    return _shear(affine) > _ROUNDING


def warn_of_shear(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Return a warning if axes of these scans are sheared by more than rounding."""
    sheared = [frame for frame in frames if is_sheared(frame.affine)]
    if not sheared:
        return ()
    first, *others = dict.fromkeys(frame.path for frame in sheared)  # a 4D file once
    more = f" and {len(others)} more" if others else ""
    degrees = np.degrees(np.arcsin(max(_shear(frame.affine) for frame in sheared)))
    return (
        f"the axes of {first}{more} are sheared by up to {degrees:.1f} degrees; the scan is interpolated onto "
        "orthogonal axes, while ITK (3D Slicer, ANTs) may place its file elsewhere or refuse it; apply fields to the "
        "file by 'groupmorph apply'",
    )


def _shear(affine: np.ndarray) -> float:
    """Compute the maximum cosine between two axes."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def _float32(affine: np.ndarray) -> np.ndarray:
    """Round an affine to the precision of a header."""
    return affine.astype(np.float32).astype(np.float64)


def at_right_angles(
    data: np.ndarray, affine: np.ndarray, valid: np.ndarray | None, path: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Resample a sheared volume to orthogonal axes; other volumes are returned unchanged.

    The axes are orthogonalised by Gram-Schmidt, from the finest to the coarsest spacing, so that the slices of a tilted
    gantry are preserved and only shifted in plane. A shear from rounding is removed from the affine, about the centre
    of the volume; otherwise the volume is interpolated linearly onto a grid that covers it.

    Args:
        data: ``(i, j, k)``, float32.
        affine: ``(4, 4)``, voxel to RAS mm.
        valid: ``(i, j, k)`` bool, or None if all voxels are valid.
        path: the file, for messages.

    Returns:
        Data, affine and valid; outside the volume ``valid`` is False and ``data`` is the smallest valid value.

    Raises:
        InputError: If two axes are less than 45 degrees apart.
    """
    shear = _shear(affine)
    if shear < _ROUNDING_FLOAT32:
        return data, affine, valid
    if shear > _STEEPEST_SHEAR:
        raise InputError(
            f"{path}: expected axes at right angles, got two axes {np.degrees(np.arccos(shear)):.0f} degrees "
            "apart; correct the header, or resample the scan"
        )
    matrix, size = affine[:3, :3], np.array(data.shape)
    spacing, world_axes = np.linalg.norm(matrix, axis=0), np.abs(matrix).argmax(axis=0)
    order = np.lexsort((world_axes, spacing.round(_SPACING_DECIMALS)))  # equal ones as if they were stored as RAS
    q, r = np.linalg.qr(matrix[:, order])
    grid = affine.copy()
    grid[:3, order] = q * np.diag(r)
    if shear < _ROUNDING:
        grid[:3, 3] += (matrix - grid[:3, :3]) @ ((size - 1) / 2)
        return data, _float32(grid), valid
    corners = np.array(list(product(*[(0, n - 1) for n in size]))) @ np.linalg.solve(grid[:3, :3], matrix).T
    low, high = np.floor(corners.min(0) + 1e-3), np.ceil(corners.max(0) - 1e-3)
    grid[:3, 3] += grid[:3, :3] @ low
    grid, shape = _float32(grid), tuple((high - low + 1).astype(int))
    to_voxel = np.linalg.solve(affine, grid)
    resampling_arguments = to_voxel[:3, :3], to_voxel[:3, 3], shape
    counts = np.ones(data.shape, np.uint8) if valid is None else valid.astype(np.uint8)
    valid = affine_transform(counts, *resampling_arguments, order=0, mode="grid-constant").astype(bool)
    resampled = affine_transform(data, *resampling_arguments, order=1, mode="nearest")
    return np.where(valid, resampled, resampled[valid].min()), grid, valid
