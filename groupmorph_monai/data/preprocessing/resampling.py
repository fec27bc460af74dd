"""Resample a series from the grids of its files to a common grid, and back."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter, zoom
from torch import Tensor

from ...errors import InputError
from ...space.grid import Grid
from ...space.transforms import AffineTransform, Transform, interpolate
from ..series import LEAST_VOXELS, Frame, Series
from ..storage import IN_MEMORY, Storage

FULLY_VALID = 0.999  # interpolated validity above which all contributing voxels are valid, as 1 is rounded
_SAME_GRID_MM = 1e-2  # maximum distance between the corners of equal grids, as headers are rounded
_LONGEST_SIDE_VOXELS = 128  # longest side of a small object's working grid, such as a mouse's, with voxels below 1 mm
_FINE_VOXELS = 64**3  # maximum size of a working grid finer than usual, whose registration takes no more than seconds
_SAME_SPACING = 0.1 + 1e-6  # largest relative excess of a scan's voxel size over a grid's that is interpolated linearly
_LEAST_SHARE = 1e-3  # minimum weight of valid voxels in a mean over them
_LEAST_SIGMA_VOXELS = 0.2  # smaller Gaussians have no effect on a voxel grid


def working_grid(
    grids: Sequence[Grid],
    spacing_mm: Sequence[float] | float | str | None = "auto",
    reference: int | None = None,
    initial: Tensor | None = None,
) -> Grid:
    """Choose the grid on which motion is estimated, independent of how the scans are stored.

    Its axes are those closest to right, anterior and superior. With a ``reference`` it covers the field of view of that
    scan. Otherwise it is the scans' common grid or, if they differ, an average field of view: with their mean axes and
    centre, and along each axis the second longest extent.

    Args:
        grids: grids of the K scans.
        spacing_mm: one number, or one per axis (right, anterior, superior). ``"auto"`` uses the median of a scan's
            three voxel sizes, but at least 1 mm (for small objects a 128th of the longest side) and half of the
            largest, as thick slices blur finer detail: of the reference, or the median over the scans. Where the grid
            has fewer than 64^3 voxels, it is up to twice as fine. None keeps the scans' spacing.
        reference: index of the scan to which all others are aligned.
        initial: ``(K, 4, 4)``, RAS mm, from the common space to each scan; None for the identity.

    Raises:
        InputError: If the spacing is invalid, or leaves too few voxels.
    """
    if reference is not None:
        grid = grids[reference].canonical()
    else:
        grid = grids[0].canonical() if on_one_grid(grids) else _middle_grid(grids, initial)
        if not _different(grids):  # a thousand scans on one grid take no longer than one
            grids = grids[:1]
    if spacing_mm is None:
        return grid
    if spacing_mm == "auto":
        scans = [grid] if reference is not None else grids
        finest, usual = np.median([_spacings_mm(scan) for scan in scans], axis=0)
        spacing_mm = float(np.clip((float(grid.extent_mm.prod()) / _FINE_VOXELS) ** (1 / 3), finest, usual))
    chosen = grid.at_spacing(_per_axis(spacing_mm))
    if min(chosen.shape) < LEAST_VOXELS <= min(n for scan in grids for n in scan.shape):
        axis = min(range(3), key=lambda d: chosen.shape[d])
        most_mm = float((grid.spacing_mm * (torch.tensor(grid.shape) - 1)).min()) / 2
        raise InputError(
            f"spacing_mm: expected one that leaves {LEAST_VOXELS} voxels along every axis, got {spacing_mm}, which "
            f"leaves {chosen.shape[axis]} along axis {axis}; choose less than {int(10 * most_mm) / 10:g} mm"
        )
    return chosen


def _different(grids: Sequence[Grid]) -> list[Grid]:
    first = grids[0]
    return [grid for grid in grids[1:] if grid.shape != first.shape or not torch.equal(grid.affine, first.affine)]


def on_one_grid(grids: Sequence[Grid]) -> bool:
    """Test whether all grids have the same voxels, however these are stored."""
    first = grids[0].canonical()
    return all(grid.canonical().matches(first, _SAME_GRID_MM) for grid in _different(grids))


def _per_axis(spacing_mm: Sequence[float] | float | str) -> Tensor:
    """Convert one spacing, or one per axis, to ``(3,)``."""
    try:
        spacings = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3)
    except (ValueError, TypeError):
        spacings = np.zeros(3)
    if not (np.isfinite(spacings).all() and (spacings > 0).all()):
        raise InputError(
            f"spacing_mm: expected one positive number or three, got {spacing_mm!r}; for example 1.5, or auto"
        )
    return torch.from_numpy(spacings.copy())


def _spacings_mm(grid: Grid) -> tuple[float, float]:
    """Compute the finest and the usual working spacing for a scan.

    The usual spacing is the median voxel size, but at least half of the largest one. A finer grid makes the motion more
    accurate, down to half the median voxel size and 0.4 times the largest one. Neither is below 1 mm, unless the voxels
    of a small object are finer, down to a 128th of its longest side. At least 4 voxels remain.
    """
    _, median, coarsest = grid.spacing_mm.sort().values.tolist()
    sides = grid.spacing_mm * (torch.tensor(grid.shape) - 1)
    least, most = min(1.0, float(sides.max()) / _LONGEST_SIDE_VOXELS), float(sides.min()) / 3
    usual = max(least, median, min(coarsest / 2, most))
    return min(max(1.0, median / 2, min(0.4 * coarsest, most)), usual), usual


def _middle_grid(grids: Sequence[Grid], initial: Tensor | None) -> Grid:
    maps = torch.eye(4, dtype=torch.float64).expand(len(grids), 4, 4) if initial is None else torch.as_tensor(initial)
    # Field of view of each scan in the common space.
    boxes = [Grid(g.shape, torch.linalg.inv(m) @ g.affine).canonical() for g, m in zip(grids, maps.double().cpu())]
    extents = torch.stack([box.extent_mm for box in boxes]).sort(dim=0, descending=True).values[1]
    spacing = torch.stack([box.spacing_mm for box in boxes]).median(dim=0).values
    u, _, v = torch.linalg.svd(sum(box.affine[:3, :3] / box.spacing_mm for box in boxes))
    axes = u @ v
    size = (extents / spacing).round().clamp_min(2).int()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = axes * spacing
    centre = torch.stack([box.centre for box in boxes]).mean(dim=0)
    affine[:3, 3] = centre - (axes * spacing) @ ((size - 1) / 2).double()
    return Grid(tuple(size.tolist()), affine)


def resample(
    frame: Frame,
    grid: Grid,
    transform: Transform | None = None,
    nearest: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a volume at the voxels of another grid: ``frame(transform(x))``.

    Coordinates are float64, so that resampling a grid onto itself is exact, and are computed slab by slab to save
    memory.

    Args:
        frame: the volume, extrapolated by its border values.
        grid: output grid.
        transform: from the space of ``grid`` to that of ``frame``; None for the identity.
        nearest: use nearest-neighbour instead of linear interpolation.

    Returns:
        The values ``(*S)``, float32, or in the frame's dtype with ``nearest``; and the mask of the frame's field of
        view, ``(*S)`` bool.
    """
    kind = frame.data.dtype if nearest else np.dtype(np.float32)
    if transform is not None and transform.is_identity:
        transform = None
    if transform is None and frame.grid.matches(grid, 0.0):
        covered = np.ones(grid.shape, dtype=bool) if frame.valid is None else frame.valid.copy()
        return frame.data.astype(kind), covered
    image = torch.from_numpy(np.ascontiguousarray(frame.data, dtype=np.float64))[None]
    valid = None if frame.valid is None else torch.from_numpy(frame.valid.astype(np.float32))[None]
    values, covered = np.empty(grid.shape, dtype=kind), np.empty(grid.shape, dtype=bool)
    for rows in grid.slabs():
        points = grid.points(rows) if transform is None else transform.at_voxels(grid, rows)
        voxels = frame.grid.voxels(points)
        values[rows] = interpolate(image, voxels, "nearest" if nearest else "bilinear")[..., 0].numpy().astype(kind)
        inside_mask = frame.grid.covers(voxels)
        if valid is not None:  # only if all voxels that contribute to a value are valid
            inside_mask &= interpolate(valid, voxels)[..., 0] > FULLY_VALID
        covered[rows] = inside_mask.numpy()
    return values, covered


def resample_series(
    series: Series, grid: Grid, initial: Tensor | None = None, storage: Storage = IN_MEMORY
) -> tuple[MetaTensor, Tensor]:
    """Resample every timepoint to one grid.

    Interpolation is linear, with border values outside. Along axes where the grid is coarser than the timepoint, the
    timepoint is first smoothed to avoid aliasing: by a Gaussian of half a voxel of the grid, less its own resolution.
    Along axes where the grid is finer, interpolation is cubic.

    Args:
        series: the scans.
        grid: output grid.
        initial: ``(K, 4, 4)``, RAS mm, from the space of the grid to each timepoint; None for the identity.
        storage: where to keep the result.

    Returns:
        The series ``(K, *S)`` float32, and its coverage ``(K, *S)`` float32, 1 inside the timepoint's field of view.
    """
    frames = series.frames

    def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        for chunk in storage.chunks(len(frames)):
            for k in range(chunk.start, chunk.stop):
                transform = None if initial is None else AffineTransform(initial[k])
                spacing = relative_spacing(frames[k].grid, grid)
                frame = _refined(smoothed(frames[k], spacing), spacing)
                image, covered = (torch.from_numpy(x) for x in resample(frame, grid, transform))
                yield slice(k, k + 1), (image[None], covered[None].float())

    images, coverage = storage.collect(parts(), len(frames), dim=0)
    return MetaTensor(images, affine=grid.affine), coverage


def relative_spacing(scan: Grid, grid: Grid) -> np.ndarray:
    """Compute the voxel size of a scan relative to that of a grid, along the axes ``(3,)`` of the scan."""
    axes, grid_axes = (g.affine[:3, :3] / g.spacing_mm for g in (scan, grid))
    nearest = (axes.T @ grid_axes).abs().argmax(dim=1)
    return (scan.spacing_mm / grid.spacing_mm[nearest]).numpy()


def refined_voxels(scan: Grid, grid: Grid) -> int:
    """Count the voxels of the copy of a scan that `resample_series` interpolates along axes where ``grid`` is finer."""
    factors = _refinement_factors(relative_spacing(scan, grid)).astype(int).tolist()
    return math.prod((n - 1) * factor + 1 for n, factor in zip(scan.shape, factors))


def _refinement_factors(spacing: np.ndarray) -> np.ndarray:
    return np.asarray(np.ceil(spacing - _SAME_SPACING).clip(1))


def smoothed(frame: Frame, spacing: np.ndarray) -> Frame:
    """Smooth a volume for resampling to a coarser grid, to which its `relative_spacing` is ``spacing``, without
    contributions of invalid voxels."""
    sigma_voxels = 0.5 * (1 / spacing**2 - 1).clip(0) ** 0.5
    if sigma_voxels.max() < _LEAST_SIGMA_VOXELS:
        return frame
    data = frame.data.astype(np.float32)
    if frame.valid is None:
        return replace(frame, data=gaussian_filter(data, sigma_voxels, mode="nearest"))
    return replace(frame, data=np.where(frame.valid, _mean_of_valid(data, frame.valid, sigma_voxels), data))


def _refined(frame: Frame, spacing: np.ndarray) -> Frame:
    """Interpolate a volume by cubic splines along the axes where a grid is finer, for linear resampling to that grid,
    to which its `relative_spacing` is ``spacing``.

    Linear interpolation from voxel to voxel of a coarse axis blurs most in the middle between voxels, a pattern that is
    fixed to the scanner and attracts motion to multiples of a voxel.
    """
    factors = _refinement_factors(spacing)
    if factors.max() == 1:
        return frame
    data, valid = frame.data.astype(np.float32), frame.valid
    if valid is not None:  # a jump to the fill value would ring
        data = np.where(valid, data, _mean_of_valid(data, valid, 1.0))
    least, greatest = data.min(), data.max()
    for axis, factor in enumerate(factors):
        if factor > 1:
            data = _finer(data, axis, factor, order=3)
            valid = None if valid is None else _finer(valid.astype(np.float32), axis, factor, order=1) > FULLY_VALID
    return replace(frame, data=data.clip(least, greatest), affine=frame.affine / np.append(factors, 1), valid=valid)


def _finer(values: np.ndarray, axis: int, factor: float, order: int) -> np.ndarray:
    """Interpolate along one axis; the outer voxels stay the outer ones."""
    columns = np.moveaxis(values, axis, 0)
    zooms = (((len(columns) - 1) * factor + 1) / len(columns), 1)
    fine = zoom(columns.reshape(len(columns), -1), zooms, order=order, mode="nearest")
    return np.moveaxis(fine.reshape(-1, *columns.shape[1:]), 0, axis)


def _mean_of_valid(data: np.ndarray, valid: np.ndarray, sigma_voxels: np.ndarray | float) -> np.ndarray:
    """Compute a Gaussian mean over valid voxels; ``data`` itself where there are none nearby."""
    share = gaussian_filter(valid.astype(np.float32), sigma_voxels, mode="nearest")
    total = gaussian_filter(np.where(valid, data, 0), sigma_voxels, mode="nearest")
    return np.where(share > _LEAST_SHARE, total / np.maximum(share, _LEAST_SHARE), data)
