"""Estimate the peak main memory of a registration, from reading the scans to writing the results."""

import math
from collections.abc import Sequence

import torch

from ..data.preprocessing.resampling import refined_voxels
from ..data.writing.writers import FILES_AT_ONCE
from ..space.grid import SLAB_VOXELS, Grid

__all__ = ["all_at_once_gb", "streamed_gb"]

# Bytes, fitted to series of 0.3 to 150 million voxels in all scans and 2 to 6 timepoints, with and without refinement.
_PROGRAM = 0.70e9  # bytes without images
_READ, _WRITTEN = 4, 30  # bytes per voxel of all files, while they are read and while results are written
_IMAGES = 8  # bytes per voxel of the working grid and timepoint
_NETWORK, _REFINING, _RESULT, _DRAWING = 30, 12, 41, 30  # additional bytes per voxel and timepoint in each stage
_REFINING_ALL = 360  # bytes per voxel of the working grid, for any number of timepoints
_RESAMPLING = 18  # bytes per voxel of the interpolated copy of one scan, on a working grid finer than the scan
_SLAB = 314  # bytes per voxel of a slab, for each file that is being written
# Bytes with a few scans in memory at a time: the program, per voxel of one scan, and per voxel of each scan in memory.
_STREAMING_PROGRAM, _ONCE, _AT_A_TIME = 0.9e9, 450, 90


def all_at_once_gb(
    scans: Sequence[Grid],
    grid: Grid,
    on_cpu: bool = True,
    network_share: float = 1.0,
    refined: bool = True,
    draws: bool = False,
) -> float:
    """Estimate the peak memory with all scans in memory.

    Args:
        scans: grids of the K files.
        grid: working grid.
        on_cpu: whether network and refinement run on the CPU.
        network_share: share of the working grid in one window of the network.
        refined: whether the velocity is refined.
        draws: whether the posterior is sampled.

    Returns:
        Memory in 1e9 bytes.
    """
    files, voxels = sum(_voxels(scan) for scan in scans), len(scans) * _voxels(grid)
    stages: list[float] = [_RESULT + _DRAWING * draws]
    if on_cpu:
        stages += [_NETWORK * network_share, (_REFINING + _REFINING_ALL / len(scans)) * refined]
    stage = max(max(stages) * voxels, _resampling(scans, grid))
    return (_PROGRAM + _READ * files + _IMAGES * voxels + stage + _WRITTEN * files + _slabs(scans)) / 1e9


def streamed_gb(scans: Sequence[Grid], grid: Grid, scans_at_once: int) -> float:
    """Estimate the peak memory, in 1e9 bytes, with ``scans_at_once`` scans in memory, for any number of scans.

    Args:
        scans: grids of the K files.
        grid: working grid.
        scans_at_once: number of scans in memory at a time.
    """
    voxels = max(_voxels(scan) for scan in (*scans, grid))
    stage = max(_ONCE * voxels, _resampling(scans, grid))
    return (_STREAMING_PROGRAM + stage + _AT_A_TIME * scans_at_once * voxels + _slabs(scans)) / 1e9


def _resampling(scans: Sequence[Grid], grid: Grid) -> float:
    """Estimate the bytes for resampling to the working grid, one scan after the other."""
    return _RESAMPLING * max(refined_voxels(scan, grid) for scan in scans)


def _slabs(scans: Sequence[Grid]) -> float:
    """Estimate the bytes for the files that are written in parallel, each slab by slab."""
    at_once = min(len(scans), torch.get_num_threads(), FILES_AT_ONCE)
    return at_once * _SLAB * min(max(map(_voxels, scans)), SLAB_VOXELS)


def _voxels(grid: Grid) -> int:
    return math.prod(grid.shape)
