"""Estimate the peak main memory of a registration, from reading the scans to writing the results."""

import math
from collections.abc import Sequence

import torch

from ..data.preprocessing.resampling import refined_voxels
from ..data.writing.registration import FILES_AT_ONCE
from ..space.grid import SLAB_VOXELS, Grid
from .processor_time import QUALITY_SCANS, quality_voxels

# Bytes, fitted to series of 0.3 to 150 million voxels in all scans and 2 to 30 timepoints, with and without refinement.
# They include the gaps that freed tensors leave in the heap, a third of it, see `memory.keep_freed_memory`.
_PROGRAM = 0.67e9  # bytes without images
_READ, _WRITTEN = 4, 20  # bytes per voxel of all files, and more of them while writing
_NETWORK, _REFINING, _RESULT, _DRAWING = 30, 92, 25, 25  # bytes per voxel of the working grid and timepoint, by stage
_SOLVING = 408  # bytes per node of the lattice of z and timepoint, while refining
# Bytes per voxel of the working grid, for the timepoint that is being refined, or whose field is being measured.
_REFINING_ONE, _MEASURING_ONE = 115, 99
_RESAMPLING = 18  # bytes per voxel of the interpolated copy of one scan, on a working grid finer than the scan
_SLAB = 314  # bytes per voxel of a slab, for each file that is being written
# Bytes per voxel on the grid of the verdict, on which scans are compared in pairs: in total, per scan, and per pair.
_COMPARED, _COMPARED_SCAN, _COMPARED_PAIR = 168, 123, 2.8
# Bytes with a few scans in memory at a time: the program, per voxel of one scan, and per voxel of each scan in memory.
_STREAMING_PROGRAM, _ONCE, _AT_A_TIME = 0.9e9, 450, 90


def all_at_once_gb(
    scans: Sequence[Grid], grid: Grid, lattice_step: int | None, network_share: float = 1.0, draws: bool = False
) -> float:
    """Estimate the peak memory with all scans in memory.

    Args:
        scans: grids of the K files.
        grid: working grid.
        lattice_step: spacing of z on the finest level of the refinement; None without one on the CPU.
        network_share: share of the working grid in one window of the network; 0 if it does not run on the CPU.
        draws: whether the posterior is sampled.

    Returns:
        Memory in 1e9 bytes.
    """
    files, one, voxels = sum(map(_voxels, scans)), _voxels(grid), len(scans) * _voxels(grid)
    stages = [_RESULT * voxels + _MEASURING_ONE * one, _resampling(scans, grid), _NETWORK * network_share * voxels]
    if lattice_step is not None:
        stages.append((_REFINING + _SOLVING / lattice_step**3) * voxels + _REFINING_ONE * one)
    working = max(stages) + _DRAWING * draws * voxels
    writing = _WRITTEN * files + max(_slabs(scans), _comparing(scans))
    return (_PROGRAM + _READ * files + max(working, writing)) / 1e9


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


def _comparing(scans: Sequence[Grid]) -> float:
    """Estimate the bytes for the checks of the verdict, which keep the correlations of half of all pairs of scans."""
    count = min(len(scans), QUALITY_SCANS)
    share = _COMPARED + _COMPARED_SCAN * count + _COMPARED_PAIR * count * (count - 1) / 2
    return share * max(map(quality_voxels, scans))


def _voxels(grid: Grid) -> int:
    return math.prod(grid.shape)
