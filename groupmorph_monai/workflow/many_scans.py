"""Series of so many scans that they do not fit into memory: how many to take at a time."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import torch

from ..data.folders import folder_files
from ..data.names import NIFTI_ENDINGS
from ..data.series import Series
from ..data.storage import Storage
from ..errors import InputError
from ..probability.likelihood import Likelihood
from .free_memory import available_memory_gb

__all__ = ["all_at_once_gb", "storage_for", "streamed_memory_gb"]

# Bytes: of the program alone; for each voxel and scan where all are in memory, and where a few are, of these; for each
# voxel, of what the refinement has whatever the number of scans; and of each scan that is written at the same time, for
# each voxel of a slab and of the scan.
_PROGRAM, _ALL_AT_ONCE, _AT_A_TIME, _ONCE = 0.9e9, 87, 90, 450
_SLAB, _WRITING = 407, 43
_SLAB_VOXELS, _WRITTEN_AT_ONCE = 2**20, 4
_MOST_AT_A_TIME = 16  # more are no faster


def streamed_memory_gb(voxels: int, scans_at_once: int) -> float:
    """Memory at the peak, in 1e9 bytes, of a series of any number of scans.

    Args:
        voxels: of a scan, or of the working grid, whichever has more.
        scans_at_once: see `Storage`.
    """
    return (_PROGRAM + (_ONCE + _AT_A_TIME * scans_at_once) * voxels + _writing(voxels)) / 1e9


def all_at_once_gb(voxels: Sequence[int]) -> float:
    """Memory at the peak, in 1e9 bytes, where all scans, of so many ``voxels`` each, are in memory."""
    return (_PROGRAM + _ALL_AT_ONCE * sum(voxels) + _writing(max(voxels))) / 1e9


def _writing(voxels: int) -> float:
    at_once = min(os.cpu_count() or 1, _WRITTEN_AT_ONCE)
    return at_once * (_SLAB * min(voxels, _SLAB_VOXELS) + _WRITING * voxels)


def storage_for(
    series: Series | str | Path | Sequence[str | Path] | None,
    scans_at_once: int | str | None = "auto",
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    description: str | None = None,
    draws: int = 0,
    likelihood: Likelihood | None = None,
) -> Storage:
    """Choose where the tensors of a series are kept.

    Args:
        series: as `read_series` takes it. Of files only the headers are read.
        scans_at_once: that are in memory; None for all; "auto" for all where they fit into the memory that is free, and
            on a GPU, for draws and for a likelihood that couples all scans in any case.
        folder: of the results, beside which what is not in memory is kept.
        device: that the registration runs on.
        description: pattern that tells which files of a folder are the series.
        draws, likelihood: of the registration.
    Raises: InputError where scans are to be taken in parts on a GPU.
    """
    on_cpu = torch.device(device).type == "cpu"
    if scans_at_once not in ("auto", None) and not on_cpu:
        raise InputError(f"scans_at_once: expected auto or null on {device}, got {scans_at_once}; add --device cpu")
    if scans_at_once != "auto":
        return Storage(scans_at_once, folder)
    in_parts = on_cpu and not draws and not (likelihood is not None and likelihood.couples_all)
    voxels = _voxels(series, description) if in_parts else []
    free_gb = available_memory_gb()
    if not voxels or all_at_once_gb(voxels) <= free_gb:
        return Storage(None, folder)
    most, fits = max(voxels), 1
    while fits < _MOST_AT_A_TIME and streamed_memory_gb(most, 2 * fits) < 0.8 * free_gb:
        fits *= 2
    return Storage(min(fits, len(voxels)), folder)


def _voxels(series: Series | str | Path | Sequence[str | Path] | None, description: str | None) -> list[int]:
    """Voxels of each scan; none where only reading a series tells, as with DICOM."""
    if isinstance(series, Series):
        return [frame.data.size for frame in series.frames]
    try:
        paths = [Path(path) for path in ([series] if isinstance(series, (str, Path)) else series or [])]
        if len(paths) == 1 and paths[0].is_dir():
            paths = folder_files(paths[0], description)
        if not all(path.name.lower().endswith(NIFTI_ENDINGS) for path in paths):
            return []
        shapes = [nib.load(path).shape for path in paths]
    except (InputError, OSError, TypeError, ValueError, nib.filebasedimages.ImageFileError):
        return []  # the reader says what is wrong
    return [math.prod(shape[:3]) for shape in shapes for _ in range(math.prod(shape[3:]))]
