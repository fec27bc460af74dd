"""Conversions shared by all peers: from a series to their image formats, and from their fields to this package's.

As all scans of a series have the same grid here, peers need only its spacing, not its origin and direction: images are
passed with their axes parallel to the world axes. A field in mm along these axes, divided by the spacing, is a field in
voxels for any orientation of the series.
"""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

from ...space.grid import Grid

Fields = Tensor | tuple[Tensor, Tensor]


def spacing_of(affine: Tensor) -> list[float]:
    """Compute the voxel size along each axis, mm, of a grid with ``affine`` ``(4, 4)``."""
    return Grid((1, 1, 1), affine).spacing_mm.tolist()


def as_array(volume: Tensor) -> np.ndarray:
    """Convert ``(i, j, k)`` to a ``(k, j, i)`` float32 array for ITK and SimpleITK."""
    return np.ascontiguousarray(volume.numpy().astype(np.float32).transpose(2, 1, 0))


def in_voxels(field_mm: np.ndarray, spacing: Sequence[float]) -> Tensor:
    """Convert a displacement field in mm along the voxel axes to voxels.

    Args:
        field_mm: ``(k, j, i, 3)``, as in ITK's arrays; components x, y, z, from the fixed to the moving image.
        spacing: voxel size of the grid, mm.

    Returns:
        ``(3, i, j, k)``.
    """
    voxels = np.asarray(field_mm, dtype=np.float64) / np.asarray(spacing)
    return torch.from_numpy(np.ascontiguousarray(voxels.transpose(3, 2, 1, 0))).float()


@overload
def each_onto_first(images: Tensor, register: Callable[[Tensor, Tensor], Tensor]) -> Tensor: ...


@overload
def each_onto_first(
    images: Tensor, register: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]: ...


def each_onto_first(images: Tensor, register: Callable[[Tensor, Tensor], Fields]) -> Fields:
    """Register every timepoint to the first one, pair by pair.

    Args:
        images: ``(K, *S)``.
        register: returns the field ``(3, *S)`` between a fixed and a moving volume ``(*S)``, in voxels, optionally with
            the field of the inverse transform.

    Returns:
        ``(K, 3, *S)``, or two of them.
    """
    identity = torch.zeros(3, *images.shape[1:])
    results = [register(images[0], volume) for volume in images[1:]]
    both = [fields for fields in results if isinstance(fields, tuple)]
    if both:
        forward, inverse = (torch.stack([identity, *fields]) for fields in zip(*both))
        return forward, inverse
    return torch.stack([identity, *(field for field in results if isinstance(field, Tensor))])
