"""Transforms as ITK writes them: an affine map and a displacement field in one file, which ITK, SimpleITK, ANTs and 3D
Slicer read."""

from collections.abc import Iterator
from pathlib import Path

import itk
import numpy as np
import torch

from ..space.geometry import AffineTransform, ComposedTransform, Grid, Transform
from .readers import LPS_TO_RAS

__all__ = ["itk_transform", "write_itk_transform"]


def itk_transform(transform: Transform, volume: Grid) -> itk.CompositeTransform:
    """Make a transform a composite one of ITK. A field in it keeps its lattice, so that nothing is lost, and is
    continued over ``volume``: beyond a field's grid ITK has no displacement.

    Args:
        transform: of points in RAS mm.
        volume: whose points the transform is to be right for, through all its fields.
    Returns: the same of points in LPS mm.
    """
    composite = itk.CompositeTransform[itk.D, 3].New()
    for part in reversed(list(_parts(transform, volume))):  # ITK begins with the last one
        composite.AddTransform(part)
    return composite


def write_itk_transform(transform: Transform, volume: Grid, path: Path) -> None:
    """Write what `itk_transform` gives in HDF5."""
    writer = itk.TransformFileWriterTemplate[itk.D].New(FileName=str(path), UseCompression=True)
    writer.SetInput(itk_transform(transform, volume))
    writer.Update()


def _parts(transform: Transform, volume: Grid) -> Iterator[itk.Transform]:
    """Yield ITK's forms of the parts of a transform, the first one first; at least one."""
    parts = transform.transforms if isinstance(transform, ComposedTransform) else [transform]
    if not parts:
        yield _affine(AffineTransform(torch.eye(4)))
    for part in parts:
        if isinstance(part, AffineTransform):
            yield _affine(part)
            volume = Grid(volume.shape, part.matrix @ volume.affine)  # where the next part is evaluated
        else:
            grid = part.grid.over(volume)
            displacement = part.displacement(grid)
            yield _field(displacement, grid)
            volume = _box(displacement, grid)


def _box(displacement: torch.Tensor, grid: Grid) -> Grid:
    """One voxel along the axes of ``grid`` that holds the places to which its points move. Between the nodes the field
    is linear along each axis, so that the nodes move farthest."""
    low, high = [], []
    for rows in grid.slabs():
        voxels = grid.voxels(grid.points(rows) + displacement[:, rows].movedim(0, -1)).reshape(-1, 3)
        low.append(voxels.amin(0))
        high.append(voxels.amax(0))
    low, high = torch.stack(low).amin(0), torch.stack(high).amax(0)
    to_box = torch.diag(torch.cat([high - low, torch.ones(1, dtype=low.dtype)]))
    to_box[:3, 3] = (low + high) / 2
    return Grid((1, 1, 1), grid.affine @ to_box)


def _affine(transform: AffineTransform) -> itk.Transform:
    matrix = LPS_TO_RAS @ transform.matrix.numpy() @ LPS_TO_RAS
    result = itk.AffineTransform[itk.D, 3].New()
    result.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    result.SetTranslation(matrix[:3, 3].tolist())
    return result


def _field(displacement: torch.Tensor, grid: Grid) -> itk.Transform:
    lps = displacement.double().numpy() * np.diag(LPS_TO_RAS)[:3, None, None, None]
    affine, spacing = LPS_TO_RAS @ grid.affine.numpy(), grid.spacing_mm.numpy()
    image = itk.image_from_array(np.ascontiguousarray(lps.T), is_vector=True)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(affine[:3, :3] / spacing)))
    result = itk.DisplacementFieldTransform[itk.D, 3].New()
    result.SetDisplacementField(image)
    return result
