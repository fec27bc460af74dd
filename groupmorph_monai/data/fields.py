"""Displacement fields as files.

In memory a displacement is RAS mm; in a file it is LPS mm, ITK's convention, as NIfTI with five axes (X, Y, Z, 1, 3)
and intent 'vector', which ITK, ANTs, 3D Slicer and nitransforms take as a displacement field. The affine of a file is
RAS, as in any NIfTI. Point p of the space in which a field lies is at ``p + field(p)`` in the other image.

A field may be written on the lattice from which it is interpolated. It then says in a NIfTI extension on which grid an
image is to be resampled with it.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..errors import InputError
from ..space.geometry import DenseTransform, Grid
from .nifti import CHECK_SETTINGS, check_finite, nifti_image, save_nifti

__all__ = ["compact_grid", "read_field", "resampling_grid", "write_field"]

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)
_COMMENT, _GRID = 6, "resampling_grid"  # NIfTI's code of an extension that is text, and our key in it


def compact_grid(lattices: Sequence[Grid | None], volume: Grid) -> Grid:
    """Choose the grid on which a field loses nothing: the first of ``lattices``, continued over ``volume``; this where
    there is none. ITK takes the displacement beyond the grid of a field as zero."""
    lattice = next((lattice for lattice in lattices if lattice is not None), None)
    if lattice is None:
        return volume
    grid = lattice.over(volume)
    return Grid(grid.shape, grid.affine.float().double())  # as NIfTI's header holds it


def write_field(displacement_mm: np.ndarray, grid: Grid, path: Path, resampled: Grid | None = None) -> None:
    """Write a field as ITK does.

    Args:
        displacement_mm: ``(3, *S)`` RAS mm.
        grid: of the field.
        resampled: on which images are to be resampled with it, where that is another one.
    """
    check_finite(displacement_mm, path.name, "displacements", CHECK_SETTINGS)
    lps = np.moveaxis(displacement_mm, 0, -1) * _RAS_TO_LPS
    image = nifti_image(lps[:, :, :, None].astype(np.float32, copy=False), grid.affine.numpy())
    image.header.set_intent("vector")
    if resampled is not None:
        content = {_GRID: {"shape": resampled.shape, "affine": resampled.affine.tolist()}}
        image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, json.dumps(content).encode()))
    save_nifti(image, path)


def resampling_grid(path: str | Path) -> Grid:
    """The grid on which an image is to be resampled with a written field: what the file says, or the field's own."""
    header = nib.load(path).header
    for extension in header.extensions:
        with suppress(ValueError, KeyError, TypeError):
            stored = json.loads(extension.get_content())[_GRID]
            return Grid(stored["shape"], torch.tensor(stored["affine"], dtype=torch.float64))
    return Grid(header.get_data_shape()[:3], header.get_best_affine())


def read_field(path: str | Path) -> DenseTransform:
    """Read a written field. Beyond its grid the border's displacement holds. It has no inverse: that is in another
    file, and on another grid."""
    try:
        image = nib.load(path)
        shape = image.shape
        if len(shape) == 5 and shape[3:] == (1, 3):
            lps = image.get_fdata(dtype=np.float32, caching="unchanged")[:, :, :, 0]
            check_finite(lps, path, "displacements", "register the series again")
            grid = Grid(shape[:3], image.affine)
            ras = torch.from_numpy(np.ascontiguousarray(np.moveaxis(lps * _RAS_TO_LPS, -1, 0)))
            voxels = torch.einsum("de,eijk->dijk", torch.linalg.inv(grid.affine[:3, :3]).float(), ras)
            return DenseTransform(voxels, None, grid, fade=math.inf)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own kinds.
        raise InputError(f"{path}: expected a field that 'register' wrote, got {error}; check the path") from error
    raise InputError(f"{path}: expected a field (X, Y, Z, 1, 3), got shape {shape}; give a ddf_KK or inverse_ddf_KK")
