"""Transforms as ITK writes them: an affine map and a displacement field in one file, which ITK, SimpleITK, ANTs and 3D
Slicer read."""

from collections.abc import Iterator
from pathlib import Path

import itk
import numpy as np
import torch

from ..space.geometry import AffineTransform, ComposedTransform, DenseTransform, Grid, Transform
from .readers import LPS_TO_RAS

__all__ = ["write_itk_transform"]


def write_itk_transform(transform: Transform, volume: Grid, path: Path) -> None:
    """Write a transform as a composite one in HDF5. A field in it keeps its lattice, so that nothing is lost, and is
    continued over ``volume``: beyond a field's grid ITK has no displacement.

    Args:
        transform: of points in RAS mm.
        volume: whose points the transform is to be right for.
    """
    composite = itk.CompositeTransform[itk.D, 3].New()
    for part in reversed(list(_parts(transform, volume))):  # ITK begins with the last one
        composite.AddTransform(part)
    writer = itk.TransformFileWriterTemplate[itk.D].New(FileName=str(path), UseCompression=True)
    writer.SetInput(composite)
    writer.Update()


def _parts(transform: Transform, volume: Grid | None) -> Iterator[itk.Transform]:
    """Yield ITK's forms of the parts of a transform, the first one first; at least one."""
    parts = transform.transforms if isinstance(transform, ComposedTransform) else [transform]
    if not parts:
        yield _affine(AffineTransform(torch.eye(4)))
    for part in parts:
        if isinstance(part, AffineTransform):
            yield _affine(part)
            volume = volume and Grid(volume.shape, part.matrix @ volume.affine)  # where the next part is evaluated
        else:
            yield _field(part, part.grid if volume is None else part.grid.over(volume))
            volume = None  # no box any more: a second field, which was written for such points, covers them


def _affine(transform: AffineTransform) -> itk.Transform:
    matrix = LPS_TO_RAS @ transform.matrix.numpy() @ LPS_TO_RAS
    result = itk.AffineTransform[itk.D, 3].New()
    result.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    result.SetTranslation(matrix[:3, 3].tolist())
    return result


def _field(transform: DenseTransform, grid: Grid) -> itk.Transform:
    lps = transform.displacement(grid).double().numpy() * np.diag(LPS_TO_RAS)[:3, None, None, None]
    affine, spacing = LPS_TO_RAS @ grid.affine.numpy(), grid.spacing_mm.numpy()
    image = itk.image_from_array(np.ascontiguousarray(lps.T), is_vector=True)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(affine[:3, :3] / spacing)))
    result = itk.DisplacementFieldTransform[itk.D, 3].New()
    result.SetDisplacementField(image)
    return result
