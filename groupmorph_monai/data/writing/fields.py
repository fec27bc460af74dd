"""Files of displacement fields.

In memory displacements are in RAS mm; files contain LPS mm, as in ITK: NIfTI with five axes (X, Y, Z, 1, 3) and intent
'vector', which ITK, ANTs, 3D Slicer and nitransforms read as a displacement field. The affine of a file is RAS, as in
any NIfTI. A point p in the space of the field is at ``p + field(p)`` in the other image.

A field may be written on the coarse lattice from which it is interpolated. A NIfTI extension then stores the grid on
which images are to be resampled.
"""

import json
import math
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ...errors import InputError
from ...space.grid import Grid
from ...space.transforms import DenseTransform
from ..reading.names import NIFTI_ENDINGS
from ..reading.nifti_voxels import nifti_values, open_nifti
from ..reading.signature import check_regular_file
from ..series import LEAST_DETERMINANT, LONGEST_MM
from ..series_checks import check_affine, check_grid
from .nifti import CHECK_SETTINGS, check_finite, nifti_image, save_nifti
from .replacement import check_whole

_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)
_COMPACT = b"coarse displacement field, scan's grid in the extension"  # fits into the 80 bytes of descrip
_ITK_ENDINGS = (".h5", ".tfm", ".mat")
_ROUNDING = 2.0**-16  # of a voxel, approximately; random bits below it would add a quarter to the size of a file
_COMMENT, _GRID = 6, "resampling_grid"  # NIfTI's code for a text extension, and our key in it


def compact_grid(lattices: Sequence[Grid | None], volume: Grid) -> Grid:
    """Choose the grid on which a field is written without loss: the first of ``lattices``, extended to cover ``volume``
    (as ITK assumes zero displacement outside a field's grid), or ``volume`` itself if there is none."""
    lattice = next((lattice for lattice in lattices if lattice is not None), None)
    if lattice is None:
        return volume
    grid = lattice.over(volume)
    return Grid(grid.shape, grid.affine.float().double())  # precision of a NIfTI header


def write_field(displacement_mm: np.ndarray, grid: Grid, path: Path, resampled: Grid | None = None) -> None:
    """Write a field in ITK's format, rounded to multiples of a power of two of at most 2^-16 of the smallest voxel
    size.

    Args:
        displacement_mm: ``(3, *S)`` RAS mm.
        grid: grid of the field.
        resampled: grid on which images are to be resampled with the field, if it differs from ``grid``.
    """
    check_finite(displacement_mm, path.name, "displacements", CHECK_SETTINGS)
    step = np.float32(_ROUNDING * 2.0 ** math.floor(math.log2(float(grid.spacing_mm.min()))))
    lps = np.rint(np.moveaxis(displacement_mm, 0, -1) * (_RAS_TO_LPS / step)) * step
    image = nifti_image(lps[:, :, :, None].astype(np.float32, copy=False), grid.affine.numpy())
    image.header.set_intent("vector")
    if resampled is not None:
        content = {_GRID: {"shape": resampled.shape, "affine": resampled.affine.tolist()}}
        image.header["descrip"] = _COMPACT  # reveals programs that remove extensions
        image.header.extensions.append(nib.nifti1.Nifti1Extension(_COMMENT, json.dumps(content).encode()))
    save_nifti(image, path)


def resampling_grid(path: str | Path) -> Grid:
    """Read the grid on which images are resampled with a field: the one stored in the file, or the field's own.

    Raises:
        InputError: If the field is on a coarse lattice and the file does not contain the grid of the scan.
    """
    header = _load(path).header
    for extension in header.extensions:
        text = extension.get_content()
        if extension.get_code() == _COMMENT and _GRID.encode() in text:  # other programs write other comments
            return _stored_grid(text, path)
    if bytes(header["descrip"]).startswith(_COMPACT):
        raise InputError(
            f"{path}: expected the grid of the scan in the header's extension, as the field is on a coarse lattice, "
            "got none; use the file as 'register' wrote it, or register with --fields full"
        )
    return Grid(header.get_data_shape()[:3], torch.from_numpy(header.get_best_affine()))


def _stored_grid(text: bytes, path: str | Path) -> Grid:
    try:
        stored = json.loads(text)[_GRID]
        shape, affine = stored["shape"], np.array(stored["affine"])
        numbers = [type(n) is int and n > 0 for n in shape]
        if len(numbers) == 3 and all(numbers) and affine.shape == (4, 4) and affine.dtype.kind in "if":
            grid = Grid(shape, torch.from_numpy(affine))
            if abs(grid.affine[:3, :3].det()) >= LEAST_DETERMINANT and 1 <= grid.extent_mm.max() <= LONGEST_MM:
                return grid
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):  # or rows of several lengths
        pass
    raise InputError(
        f"{path}: expected three numbers of voxels and an affine matrix (4, 4) of a grid between 1 mm and 10 m long in "
        f"the header's extension, got {reprlib.repr(text)}; use the file as 'register' wrote it"
    )


def _load(path: str | Path) -> nib.Nifti1Pair:
    wanted = "expected a displacement field such as ddf_02.nii.gz"
    if os.path.isdir(path):
        raise InputError(f"{path}: {wanted}, got a folder; use a ddf_KK or inverse_ddf_KK in it")
    check_regular_file(path)
    if Path(path).suffix.lower() in _ITK_ENDINGS:
        raise InputError(f"{path}: {wanted}, got an ITK transform; use the ddf_KK or inverse_ddf_KK, or ITK itself")
    if not str(path).lower().endswith(NIFTI_ENDINGS):
        raise InputError(f"{path}: {wanted}, got a file of another format; use a ddf_KK or inverse_ddf_KK")
    return open_nifti(path)


def read_field(path: str | Path) -> DenseTransform:
    """Read a field, extrapolated by its border values. Its inverse is another file, with another grid.

    Raises:
        InputError: If the file contains no field of plausible size, or if a stopped run was replacing its result.
    """
    try:
        image = _load(path)
        check_whole(Path(path).resolve().parent)
        shape, kind = image.shape, image.get_data_dtype()
        if len(shape) != 5 or shape[3:] != (1, 3) or min(shape[:3]) < 2 or kind.kind not in "fiu":
            raise InputError(
                f"{path}: expected a field (X, Y, Z, 1, 3), got shape {shape} of {kind}; use a ddf_KK or inverse_ddf_KK"
            )
        lps = nifti_values(image, str(path))[:, :, :, 0]
        check_finite(lps, path, "displacements", "register the series again")
        largest_mm = float(max(lps.max(initial=0), -lps.min(initial=0)))
        if largest_mm > LONGEST_MM:
            raise InputError(
                f"{path}: expected displacements below {LONGEST_MM:g} mm, got {largest_mm:.3g}; register the series "
                "again"
            )
        check_affine(image.affine, f"{path}: header")
        grid = Grid(shape[:3], torch.as_tensor(image.affine))
        check_grid(grid, str(path))
    except (InputError, MemoryError):
        raise
    except Exception as error:  # nibabel, gzip and zlib raise their own types
        raise InputError(f"{path}: expected a field that 'register' wrote, got {error}; check the path") from error
    ras = torch.from_numpy(np.ascontiguousarray(np.moveaxis(lps * _RAS_TO_LPS, -1, 0)))
    voxels = torch.einsum("de,eijk->dijk", torch.linalg.inv(grid.affine[:3, :3]).float(), ras)
    return DenseTransform(voxels, None, grid, fade=math.inf)
