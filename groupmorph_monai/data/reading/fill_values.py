"""Fill values of voxels outside the measured field of view."""

import logging

import numpy as np
from scipy.ndimage import binary_dilation, binary_propagation, label

logger = logging.getLogger(__name__)
_FILL_SHARE = 0.001  # minimum share of voxels that have the fill value
_FILL_GAP = 0.2  # gap between the fill value and other values, as a share of their range
_INTERPOLATED_VOXELS = 2  # maximum distance of values that were interpolated with it, also from beyond the border
_LEAST_AROUND = 0.01  # minimum share of the padding around a convex field of view; fewer voxels are dark by chance
_MOST_BETWEEN = 0.02  # maximum share of this padding that has measured voxels on both sides
_PARTIAL_VOXELS = 3  # thickness of the layer between a body and air of one value that partial volumes darken
_LEAST_AIR = 0.2  # minimum share of air and lung at the edge of a field of view; bodies have skin in front of them

_PLANE_VOXELS = 0.75  # distance of a cut from its plane, from rounding to voxels
_RIM_VOXELS = 1.0  # thickness of the layer in front of a plane whose values were interpolated with the fill value
_LEAST_CUT = 0.02  # minimum share of a face behind which there is a wedge
_LEAST_CONTACT = 0.7  # minimum share of a plane's section through the volume where there is no more fill in front
_STEEPEST = 0.5  # slope of a plane against a face, of a rotation by 27 degrees; corners cut round bodies off, too
_TRIALS, _MOST_COLUMNS = 500, 2000  # number of planes tried, each through three columns, and of columns to test them on


def without_fill(data: np.ndarray, path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Detect and replace fill values of voxels that were not measured.

    Fill values are:

    - NaN connected to the border of the volume, as SPM writes it;
    - a negative minimum that occurs on the border and is separated from other values by a gap, such as -2048 outside
      the circular field of view of CT;
    - a negative minimum around a convex field of view with air or lung at its edge, such as -1024, to which scans with
      this fill value are often clipped;
    - slices of one value at the ends of an axis, such as the zero-filled end partitions of 3D MRI;
    - wedges of one value between the border and a plane that cuts the volume, as in scans that were resliced.

    Elsewhere 0 is not a fill value, as it is the value of air and of masked-out voxels in magnitude images.

    Args:
        data: one volume.
        path: its file, for messages.

    Returns:
        The volume with fill values replaced by the smallest measured value, and a mask that is True where the volume
        was measured, or None if there are no fill values.
    """
    undefined = np.isnan(data)
    if undefined.any():
        logger.debug("%s: %d voxels of NaN at its border count as not measured", path, undefined.sum())
        data = np.where(undefined, np.nanmin(data), data)
    filled = undefined if undefined.any() else _below_gap(data, path)
    box = _measured_box(data)
    ends = np.ones(data.shape, dtype=bool)
    ends[box] = False if filled.any() else _wedges(data[box])
    inner = data[~(filled | ends)]
    if ends.any() and inner.size and inner.min() < inner.max():  # else it shows an object of one value, such as a cube
        logger.debug("%s: %d voxels of one value at its ends count as not measured", path, ends.sum())
        filled |= ends
    return (np.where(filled, data[~filled].min(), data), ~filled) if filled.any() else (data, None)


def is_padding(undefined: np.ndarray) -> bool:
    """Check whether voxels, such as those of NaN, are padding: a share of the volume, all connected to its border."""
    parts, _ = label(undefined)
    return bool(undefined.mean() >= _FILL_SHARE and np.isin(parts[undefined], _outer(parts)).all())


def _outer(parts: np.ndarray) -> np.ndarray:
    """List the labels on the border of a volume of labels."""
    return np.unique(np.concatenate([face.ravel() for face in _faces(parts)]))


def _below_gap(data: np.ndarray, path: str) -> np.ndarray:
    """Mask a negative minimum that is a fill value."""
    fill, nothing = data.min(), np.zeros(data.shape, dtype=bool)
    filled = data == fill
    if fill >= 0 or filled.mean() < _FILL_SHARE or not any(face.any() for face in _faces(filled)):
        return nothing
    measured = data[~filled]
    low, high = np.percentile(measured, (1, 99))
    bound = fill + _FILL_GAP * (high - low)
    # The rim of an interpolated scan has values between the fill value and its neighbours.
    has_gap = (measured < bound).sum() <= 0.1 * filled.sum()
    rim = (data < bound) & binary_dilation(filled, iterations=_INTERPOLATED_VOXELS, border_value=1)
    padding = binary_propagation(filled, mask=rim) if has_gap else _around_view(data, filled, bound)
    if low == high or not padding.any():
        return nothing
    logger.debug("%s: %.3g in %.1f %% of the voxels is a fill value", path, fill, 100 * padding.mean())
    return np.asarray(padding)


def _around_view(data: np.ndarray, constant: np.ndarray, bound: float) -> np.ndarray:
    """Mask the voxels of one value around a convex field of view, and the rim that was interpolated with it; nothing if
    they surround a body instead.

    A row of voxels leaves a convex field of view only once, whereas air that was clipped to one value is mixed with
    noise. At the edge of the field of view there is air or lung, below ``bound`` from the edge inwards, whereas a body
    has skin in front of its lungs, as a head in front of its skull.
    """
    parts, _ = label(constant)
    sizes, outer = np.bincount(parts.ravel()), _outer(parts)
    outer = outer[(outer > 0) & (sizes[outer] >= _FILL_SHARE * data.size)]
    padding, between, edge = np.isin(parts, outer), np.zeros(data.shape, dtype=bool), []
    if padding.mean() < _LEAST_AROUND:
        return between
    depth = _PARTIAL_VOXELS + 1
    for axis in range(3):
        values, outside, enclosed = (np.moveaxis(volume, axis, 0) for volume in (data, padding, between))
        after, before = (np.logical_or.accumulate(~side) for side in (outside, outside[::-1]))
        enclosed |= after & before[::-1] & outside
        for step in (1, -1):
            inwards, leaving = values[::step], outside[::step]
            layers = [slice(n, len(leaving) - depth + n) for n in range(1, depth + 1)]
            at_edge = leaving[:-depth] & ~np.any([leaving[layer] for layer in layers], axis=0)
            edge.append(np.max([inwards[layer][at_edge] for layer in layers], axis=0))
    dark = np.concatenate(edge) < bound
    is_view = between.sum() < _MOST_BETWEEN * padding.sum() and dark.sum() > _LEAST_AIR * dark.size
    return binary_dilation(padding) & is_view


def _measured_box(data: np.ndarray) -> tuple[slice, ...]:
    """Crop slices of one value from both ends of each axis; the whole volume if that leaves less than two slices."""
    box = tuple(_varying(np.moveaxis(data, axis, 0)) for axis in range(3))
    large = min(side.stop - side.start for side in box) > 1
    return box if large else tuple(map(slice, (0, 0, 0), data.shape))


def _varying(slices: np.ndarray) -> slice:
    """Locate the first and the last slice with more than one value."""
    varying = (n for n, values in enumerate(slices) if values.min() < values.max())
    first = next(varying, 0)
    last = next((n for n in range(len(slices) - 1, first, -1) if slices[n].min() < slices[n].max()), first)
    return slice(first, last + 1)


def _wedges(data: np.ndarray) -> np.ndarray:
    """Mask wedges of the most frequent value of the border, each behind a plane where the volume is cut.

    The depth of the value from a face of the volume, as a function of the two axes of the face, equals that of a plane
    where the plane cuts the tissue, and is greater where there is air of the same value behind the plane. The round
    surface of a body does not qualify, as it touches a plane only in a small part of its section. A large flat end of
    an object in air of one value cannot be distinguished from a wedge.
    """
    filled = np.zeros(data.shape, dtype=bool)
    values, counts = np.unique(np.concatenate([face.ravel() for face in _faces(data)]), return_counts=True)
    constant = data == values[counts.argmax()]
    if constant.mean() < _FILL_SHARE:
        return filled
    for axis in range(3):
        for flipped in (False, True):
            columns, marked = (np.moveaxis(volume, axis, 0)[:: -1 if flipped else 1] for volume in (constant, filled))
            depth = np.where(columns.all(axis=0), len(columns), columns.argmin(axis=0))
            plane = _cutting_plane(depth, len(columns))
            if plane is not None:
                marked |= np.arange(len(columns))[:, None, None] < np.where(plane > 0, plane + _RIM_VOXELS, 0)
    return filled


def _cutting_plane(depth: np.ndarray, longest: int) -> np.ndarray | None:
    """Find the plane that most depths of fill agree with, and that cuts the volume as a field of view does.

    Args:
        depth: ``(A, B)``, number of voxels of fill from a face.
        longest: depth of columns that contain nothing else.

    Returns:
        ``(A, B)``, depth of the plane, negative outside of the volume; or None.
    """
    rows = np.stack([*np.indices(depth.shape), np.ones_like(depth)], axis=-1).astype(np.float64)
    cut = (depth > 0) & (depth < longest)
    if cut.mean() < _LEAST_CUT:
        return None
    points, depths = rows[cut], depth[cut].astype(np.float64)
    rng = np.random.default_rng(0)
    sampled = rng.integers(len(points), size=_MOST_COLUMNS)
    triples = rng.integers(len(points), size=(_TRIALS, 3))
    # A small face has few columns, which are drawn repeatedly: compare each column and solve each triple only once.
    drawn, votes = np.unique(sampled, return_counts=True)
    triples = triples[np.sort(np.unique(triples, axis=0, return_index=True)[1])]
    planes = np.einsum("tij,tj->ti", np.linalg.pinv(points[triples]), depths[triples])
    distance = points[drawn] @ planes.T
    distance -= depths[drawn, None]
    agree = votes @ (np.abs(distance, out=distance) < _PLANE_VOXELS).astype(np.float64)
    plane = planes[agree.argmax()]
    for _ in range(3):
        near = np.abs(points @ plane - depths) < _PLANE_VOXELS
        plane = np.linalg.lstsq(points[near], depths[near], rcond=None)[0]
    expected = rows @ plane
    section = (expected > 0.5) & (expected < longest - 0.5)
    touched = np.abs(expected - depth)[section & cut] < _PLANE_VOXELS
    behind = (depth > expected - _PLANE_VOXELS)[section]
    is_cut = (
        np.hypot(*plane[:2]) < _STEEPEST
        and touched.sum() > max(_LEAST_CONTACT * section.sum(), _LEAST_CUT * depth.size)
        and behind.mean() > 0.98
    )
    return expected if is_cut else None


def _faces(volume: np.ndarray) -> list[np.ndarray]:
    return [volume.take(end, axis) for axis in range(3) for end in (0, -1)]
