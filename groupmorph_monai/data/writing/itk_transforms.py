"""Composite transforms (affine and displacement field in one file) for ITK, SimpleITK, ANTs and 3D Slicer.

Annotations with ITK's types are strings, as ITK loads its modules at first use, which takes a second for images alone.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import itk
import numpy as np
import torch

from ...space.grid import Grid
from ...space.transforms import AffineTransform, ComposedTransform, DenseTransform, Transform
from ..series import LPS_TO_RAS

_OVERHEAD = 2**14  # bytes of HDF5 per transform, and of the file itself; 4,100 were measured


def itk_transform(transform: Transform, volume: Grid) -> "itk.CompositeTransform":
    """Convert a transform to an ITK composite transform. Fields keep their lattice, so that nothing is lost, and are
    extended to cover ``volume``, as ITK assumes zero displacement outside a field's grid.

    Args:
        transform: transform of points in RAS mm.
        volume: grid whose points must be transformed correctly, through all fields.

    Returns:
        The same transform of points in LPS mm.
    """
    composite = itk.CompositeTransform[itk.D, 3].New()
    for part in reversed(list(_parts(transform, volume))):  # ITK applies the last one first
        composite.AddTransform(part)
    return composite


def is_itk_transform(path: Path) -> bool:
    """Check whether a file contains a transform that ITK can read."""
    try:
        itk.transformread(str(path))
    except RuntimeError:
        return False
    return True


def write_itk_transform(transform: Transform, volume: Grid, path: Path) -> None:
    """Write a composite transform in HDF5; see `itk_transform`.

    Raises:
        OSError: If it cannot be written. Space is checked first, as HDF5 crashes at exit after filling a disk.
    """
    composite = itk_transform(transform, volume)
    _check_space(composite, path.parent)
    writer = itk.TransformFileWriterTemplate[itk.D].New(FileName=str(path), UseCompression=True)
    writer.SetInput(composite)
    try:
        writer.Update()
    except RuntimeError as error:
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from error


def _check_space(composite: "itk.CompositeTransform", folder: Path) -> None:
    """Check that a file of the transform, at most as large as without compression, fits into the folder.

    Raises:
        OSError: If the disk is full, or the file exceeds a limit.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    number = composite.GetNumberOfTransforms()
    values = sum(composite.GetNthTransform(n).GetNumberOfParameters() for n in range(number))
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, values * np.dtype(np.float64).itemsize + (number + 1) * _OVERHEAD)


def _parts(transform: Transform, volume: Grid) -> "Iterator[itk.Transform]":
    """Yield the parts of a transform as ITK transforms, in order of application; at least one."""
    parts = ComposedTransform(transform).transforms
    if not parts:
        yield _affine(AffineTransform(torch.eye(4)))
    for part in parts:
        if isinstance(part, AffineTransform):
            yield _affine(part)
            volume = Grid(volume.shape, part.matrix @ volume.affine)  # where the next part is evaluated
        elif isinstance(part, DenseTransform):
            grid = part.grid.over(volume)
            displacement = part.displacement(grid)
            yield _field(displacement, grid)
            volume = _box(displacement, grid)
        else:
            raise TypeError(f"transform: expected affine transforms and fields, got {type(part).__name__}")


def _box(displacement: torch.Tensor, grid: Grid) -> Grid:
    """Compute the bounding box, as one voxel along the axes of ``grid``, of the positions to which its points move. The
    field is linear along each axis between nodes, so displacements are largest at nodes."""
    lows, highs = [], []
    for rows in grid.slabs():
        voxels = grid.voxels(grid.points(rows) + displacement[:, rows].movedim(0, -1)).reshape(-1, 3)
        lows.append(voxels.amin(0))
        highs.append(voxels.amax(0))
    low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    to_box = torch.diag(torch.cat([high - low, torch.ones(1, dtype=low.dtype)]))
    to_box[:3, 3] = (low + high) / 2
    return Grid((1, 1, 1), grid.affine @ to_box)


def _affine(transform: AffineTransform) -> "itk.Transform":
    matrix = LPS_TO_RAS @ transform.matrix.numpy() @ LPS_TO_RAS
    result = itk.AffineTransform[itk.D, 3].New()
    result.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    result.SetTranslation(matrix[:3, 3].tolist())
    return result


def _field(displacement: torch.Tensor, grid: Grid) -> "itk.Transform":
    lps = displacement.double().numpy() * np.diag(LPS_TO_RAS)[:3, None, None, None]
    affine, spacing = LPS_TO_RAS @ grid.affine.numpy(), grid.spacing_mm.numpy()
    image = itk.image_from_array(np.ascontiguousarray(lps.T), is_vector=True)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(affine[:3, :3] / spacing)))
    result = itk.DisplacementFieldTransform[itk.D, 3].New()
    result.SetDisplacementField(image)
    return result
