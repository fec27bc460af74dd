"""From the grids of a series' files to one, and back."""

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor

from ..errors import InputError
from ..space.grid import sample
from .readers import Frame, Series

__all__ = ["resample", "resample_series", "working_grid"]

_SLAB_VOXELS = 2**20


def working_grid(frame: Frame, spacing_mm: Sequence[float] | float | str | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """Grid on which the motion is found: the frame's axes and first voxel centre, at another spacing.

    Args:
        frame: the first timepoint.
        spacing_mm: one number or one an axis; ``"auto"``: the frame's middle one, at least 1; none keeps the frame's.
    Returns: affine ``(4, 4)`` to RAS mm, and the size that just covers the frame's last voxel centre.
    Raises: InputError where the spacing is none.
    """
    affine = np.array(frame.affine, dtype=np.float64)
    if spacing_mm is None:
        return affine, tuple(frame.data.shape)
    if spacing_mm == "auto":
        spacing_mm = max(1.0, float(np.median(np.linalg.norm(affine[:3, :3], axis=0))))
    try:
        wanted = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), 3)
    except (ValueError, TypeError):
        wanted = np.zeros(3)
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise InputError(
            f"spacing_mm: expected one positive number or three, got {spacing_mm!r}; for example 1.5, or auto"
        )
    native = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] *= wanted / native
    # The small number keeps rounding from adding a voxel where the extent is a multiple of the spacing.
    size = np.ceil((np.array(frame.data.shape) - 1) * native / wanted - 1e-4).astype(int) + 1
    return affine, tuple(int(n) for n in size)


def resample(
    data: np.ndarray,
    affine: np.ndarray,
    target: np.ndarray,
    size: Sequence[int],
    displacement_mm: np.ndarray | None = None,
    nearest: bool = False,
) -> np.ndarray:
    """Values of an image at the voxels x of another grid: ``data(affine^-1 (target x + displacement(x)))``.

    In float64, so that a grid onto itself is exact, and slab by slab, so that no array of coordinates is ever whole.

    Args:
        data: ``(C, *S)`` on a grid with ``affine`` ``(4, 4)``; the border's values hold outside.
        target: affine ``(4, 4)`` of the grid of ``size``.
        displacement_mm: ``(3, *size)``, RAS.
        nearest: the nearest voxel's value, instead of the linear interpolation.
    Returns: ``(C, *size)``, float32, or with ``nearest`` of the dtype of ``data``.
    """
    kind = data.dtype if nearest else np.dtype(np.float32)
    if displacement_mm is None and data.shape[1:] == tuple(size) and np.array_equal(affine, target):
        return data.astype(kind)
    to_voxel = np.linalg.inv(affine)
    matrix = to_voxel @ target
    image = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float64))[None]
    result = np.empty((data.shape[0], *size), dtype=kind)
    i, j, k = np.ogrid[: size[0], : size[1], : size[2]]
    step = max(1, _SLAB_VOXELS // (size[1] * size[2]))
    for start in range(0, size[0], step):
        slab = slice(start, start + step)
        points = np.stack([m[0] * i[slab] + m[1] * j + m[2] * k + m[3] for m in matrix[:3]])
        if displacement_mm is not None:
            points += np.einsum("de,eijk->dijk", to_voxel[:3, :3], displacement_mm[:, slab])
        values = sample(image, torch.from_numpy(points)[None], mode="nearest" if nearest else "bilinear")
        result[:, slab] = values[0].numpy().astype(kind)
    return result


def resample_series(
    series: Series, affine: np.ndarray, size: Sequence[int], initial: np.ndarray | None = None
) -> MetaTensor:
    """Bring every timepoint from its own grid to one: ``(K, *size)`` float32 with ``affine`` ``(4, 4)``, RAS mm.

    Linear, once, with the border's values outside; nothing is smoothed where the grid is coarser. ``initial`` ``(K, 4,
    4)`` maps points of the grid's space to each timepoint's, RAS mm; none is the identity.
    """
    images = np.empty((len(series.frames), *size), dtype=np.float32)
    for number, frame in enumerate(series.frames):
        grid = affine if initial is None else np.asarray(initial[number]) @ affine
        images[number] = resample(frame.data[None], frame.affine, grid, size)[0]
    return MetaTensor(torch.from_numpy(images), affine=torch.as_tensor(np.asarray(affine, dtype=np.float64)))
