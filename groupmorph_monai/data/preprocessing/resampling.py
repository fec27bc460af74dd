"""Resample a series from the grids of its files to a common grid, and back."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ...errors import InputError
from ...space.geometry import AffineTransform, Grid, Transform, interpolate
from ..series import Frame, Series
from ..storage import IN_MEMORY, Storage

__all__ = ["SAME_GRID_MM", "resample", "resample_series", "smoothed", "working_grid"]

SAME_GRID_MM = 1e-2  # distance between corners up to which grids count as the same: headers are rounded
_LONGEST_SIDE_VOXELS = 128  # of the working grid of a small object, such as a mouse, whose voxels are below 1 mm
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
        spacing_mm: one number, or one per axis (right, anterior, superior). ``"auto"`` uses the middle of a scan's
            three voxel sizes, but at least 1 mm (for small objects a 128th of the longest side) and half of the
            largest, as thick slices blur finer detail: of the reference, or the median over the scans. None keeps the
            scans' spacing.
        reference: index of the scan to which all others are aligned.
        initial: ``(K, 4, 4)``, RAS mm, from the common space to each scan; None for the identity.

    Raises:
        InputError: For an invalid spacing.
    """
    if reference is not None:
        grid = grids[reference].canonical()
    else:
        grid = grids[0].canonical()
        different = [g for g in grids[1:] if g.shape != grids[0].shape or not torch.equal(g.affine, grids[0].affine)]
        if not all(other.canonical().matches(grid, SAME_GRID_MM) for other in different):
            grid = _middle_grid(grids, initial)
        elif not different:  # a thousand scans on one grid take no longer than one
            grids = grids[:1]
    if spacing_mm is None:
        return grid
    if spacing_mm == "auto":
        scans = [grid] if reference is not None else grids
        spacing_mm = float(np.median([_resolved_mm(scan) for scan in scans]))
    try:
        wanted = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3)
    except (ValueError, TypeError):
        wanted = np.zeros(3)
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise InputError(
            f"spacing_mm: expected one positive number or three, got {spacing_mm!r}; for example 1.5, or auto"
        )
    return grid.at_spacing(torch.from_numpy(wanted.copy()))


def _resolved_mm(grid: Grid) -> float:
    """Middle voxel size of a scan, at least 1 mm, or a 128th of the longest side of a smaller object, and half of the
    largest voxel size, unless fewer than 4 voxels would remain."""
    _, middle, coarsest = grid.spacing_mm.sort().values.tolist()
    sides = grid.spacing_mm * (torch.tensor(grid.shape) - 1)
    finest = min(1.0, float(sides.max()) / _LONGEST_SIDE_VOXELS)
    return max(finest, middle, min(coarsest / 2, float(sides.min()) / 3))


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
    displacement: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a volume at the voxels of another grid: ``frame(transform(x))``.

    Coordinates are float64, so that resampling a grid onto itself is exact, and are computed slab by slab to save
    memory.

    Args:
        frame: the volume, extrapolated by its border values.
        grid: output grid.
        transform: from the space of ``grid`` to that of ``frame``; None for the identity.
        nearest: use nearest-neighbour instead of linear interpolation.
        displacement: ``(3, *S)``, zero; receives ``transform(x) - x`` in mm.

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
        points = grid.points(rows)
        if transform is not None:
            start, points = points, transform(points)
            if displacement is not None:
                displacement[:, rows] = (points - start).movedim(-1, 0)
        voxels = frame.grid.voxels(points)
        values[rows] = interpolate(image, voxels, "nearest" if nearest else "bilinear")[..., 0].numpy().astype(kind)
        inside = frame.grid.covers(voxels)
        if valid is not None:  # only if all voxels that contribute to a value are valid
            inside &= interpolate(valid, voxels)[..., 0] > 0.999
        covered[rows] = inside.numpy()
    return values, covered


def resample_series(
    series: Series, grid: Grid, initial: Tensor | None = None, storage: Storage = IN_MEMORY
) -> tuple[MetaTensor, Tensor]:
    """Resample every timepoint to one grid: ``(K, *S)`` float32, and its coverage ``(K, *S)`` float32, 1 inside the
    timepoint's field of view.

    Interpolation is linear, with border values outside. Along axes where the grid is coarser than the timepoint, the
    timepoint is smoothed before to avoid aliasing: by a Gaussian of half a voxel of the grid, less its own resolution.

    Args:
        initial: ``(K, 4, 4)``, RAS mm, from the space of the grid to each timepoint; None for the identity.
        storage: where to keep the result.
    """
    frames = series.frames

    def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        for chunk in storage.chunks(len(frames)):
            for k in range(chunk.start, chunk.stop):
                transform = None if initial is None else AffineTransform(initial[k])
                image, covered = (torch.from_numpy(x) for x in resample(smoothed(frames[k], grid), grid, transform))
                yield slice(k, k + 1), (image[None], covered[None].float())

    images, coverage = storage.collect(parts(), len(frames), dim=0)
    return MetaTensor(images, affine=grid.affine), coverage


def smoothed(frame: Frame, grid: Grid) -> Frame:
    """Smooth a volume for resampling to a coarser grid, without contributions of invalid voxels."""
    axes, grid_axes = (g.affine[:3, :3] / g.spacing_mm for g in (frame.grid, grid))
    coarser = grid.spacing_mm[(axes.T @ grid_axes).abs().argmax(dim=1)] / frame.grid.spacing_mm
    sigma_voxels = 0.5 * (coarser.square() - 1).clamp_min(0).sqrt().numpy()
    if sigma_voxels.max() < _LEAST_SIGMA_VOXELS:
        return frame
    data = frame.data.astype(np.float32)
    if frame.valid is None:
        return replace(frame, data=gaussian_filter(data, sigma_voxels, mode="nearest"))
    share = gaussian_filter(frame.valid.astype(np.float32), sigma_voxels, mode="nearest")
    total = gaussian_filter(np.where(frame.valid, data, 0), sigma_voxels, mode="nearest")
    return replace(frame, data=np.where(frame.valid, total / np.maximum(share, 1e-6), data))
