"""Write the motion of a series as a Deformable Spatial Registration object (DICOM PS3.3, A.39.2 and C.20.3)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import Dataset
from pydicom.uid import DeformableSpatialRegistrationStorage

from ...space.grid import Grid
from ...space.transforms import AffineTransform, ComposedTransform, DenseTransform, Transform
from ..series import LPS_TO_RAS, Series
from .derived import derived_object, item
from .geometry import decimals, orientation
from .plane import Plane
from .references import referenced_series, save, sop_reference

_SERIES_NUMBER = 2000  # added to the series number of the source


def write_registration_object(series: Series, transforms: Sequence[Transform], home: int, path: Path) -> None:
    """Write the transforms from the common space, that of the aligned series, to every timepoint.

    One item per timepoint represents ``post (pre x + displacement(pre x))``: the matrices are the affine transforms
    before and after the deformation, which keeps its lattice, extended to cover the grid of scan ``home``.

    Args:
        series: returned by `read_dicom`.
        transforms: K, RAS mm, each composed of affine transforms and at most one field.
        home: index of the scan that defines the grid of the aligned series.
    """
    slices = series.dicom_slices
    result = derived_object(slices, home, "motion", "Motion per timepoint", _SERIES_NUMBER)
    result.SOPClassUID, result.Modality = DeformableSpatialRegistrationStorage, "REG"
    volume = series.frames[home].grid
    result.DeformableRegistrationSequence = [
        _item(transform, planes, volume) for transform, planes in zip(transforms, slices)
    ]
    result.ReferencedSeriesSequence = referenced_series([plane for planes in slices for plane in planes])
    save(result, path)


def _item(transform: Transform, planes: Sequence[Plane], volume: Grid) -> Dataset:
    """Describe one timepoint: its images, and the transform to them."""
    before, after = np.eye(4), np.eye(4)
    dense: DenseTransform | None = None
    for part in ComposedTransform(transform).transforms:
        if isinstance(part, AffineTransform):
            matrix = LPS_TO_RAS @ part.matrix.numpy() @ LPS_TO_RAS
            before, after = (matrix @ before, after) if dense is None else (before, matrix @ after)
        elif isinstance(part, DenseTransform):
            dense = part
        else:
            raise TypeError(f"transform: expected affine transforms and a field, got {type(part).__name__}")
    deformed = Grid(volume.shape, torch.from_numpy(LPS_TO_RAS @ before @ LPS_TO_RAS) @ volume.affine)
    return item(
        SourceFrameOfReferenceUID=planes[0].source.examination.space,
        ReferencedImageSequence=list({plane.file.uid: sop_reference(plane) for plane in planes}.values()),
        RegistrationTypeCodeSequence=[],
        PreDeformationMatrixRegistrationSequence=[_matrix(before)],
        PostDeformationMatrixRegistrationSequence=[_matrix(after)],
        DeformableRegistrationGridSequence=[_grid(dense, deformed)],
    )


def _matrix(matrix: np.ndarray) -> Dataset:
    linear = matrix[:3, :3]
    rigid = np.allclose(linear @ linear.T, np.eye(3), atol=1e-6) and np.linalg.det(linear) > 0
    kind = "RIGID" if rigid else "AFFINE"
    return item(
        FrameOfReferenceTransformationMatrix=decimals(matrix.ravel()), FrameOfReferenceTransformationMatrixType=kind
    )


def _grid(dense: DenseTransform | None, volume: Grid) -> Dataset:
    """Describe the displacements of a transform, or zero displacement at the corners of ``volume``."""
    if dense is None:
        grid = volume.at_spacing(volume.spacing_mm * (torch.tensor(volume.shape) - 1))
        displacement = torch.zeros(3, *grid.shape)
    else:
        grid = dense.grid.over(volume)
        displacement = dense.displacement(grid)
    affine, spacing = LPS_TO_RAS @ grid.affine.numpy(), grid.spacing_mm.numpy()
    if np.linalg.det(affine[:3, :3]) < 0:  # DICOM's third axis is the cross product of the others
        displacement = displacement.flip(3)
        affine[:3, 3] += (grid.shape[2] - 1) * affine[:3, 2]
    lps = displacement.numpy() * np.diag(LPS_TO_RAS)[:3, None, None, None]
    return item(
        ImagePositionPatient=decimals(affine[:3, 3]),
        ImageOrientationPatient=orientation(affine),
        GridDimensions=list(grid.shape),
        GridResolution=spacing.tolist(),
        VectorGridData=np.ascontiguousarray(lps.T, "<f4").tobytes(),
    )
