"""Estimates of the memory at the peak of a registration, on the CPU, from files to files."""

import math
import os
from collections.abc import Sequence

from ..space.geometry import Grid

__all__ = ["all_at_once_gb", "streamed_gb"]

# Bytes: of the program alone; for each voxel of the files and timepoint, as they are read and as they are written; for
# each voxel of the working grid and timepoint, of the images, and of what each stage has beside them; for each voxel of
# that grid, of what the refinement has whatever the number of timepoints; and of each file that is written at the same
# time, for each voxel of a slab and of the file. Measured as the `memory` suite does it, on series of 0.5 to 10 million
# voxels and 2 to 6 timepoints, and for network and refinement on one of 150 million.
_PROGRAM, _READ, _WRITTEN = 0.6e9, 4, 30
_IMAGES, _NETWORK, _REFINING, _RESULT, _DRAWING = 8, 30, 12, 45, 30
_REFINING_ALL = 360
_SLAB, _FILE = 407, 43
_SLAB_VOXELS, _FILES_AT_ONCE = 2**20, 4
# The same where a few scans are in memory: of the program, for each voxel of one scan, and of each scan in memory.
_STREAMING_PROGRAM, _ONCE, _AT_A_TIME = 0.9e9, 450, 90


def all_at_once_gb(
    scans: Sequence[Grid],
    grid: Grid,
    on_cpu: bool = True,
    network_share: float = 1.0,
    refined: bool = True,
    draws: bool = False,
) -> float:
    """Memory in 1e9 bytes with all scans in memory.

    Args:
        scans: grids of the K files.
        grid: the working grid.
        on_cpu: whether network and refinement run on the CPU.
        network_share: share of the working grid that goes through the network at a time.
        refined, draws: whether the registration has them.
    """
    files, voxels = sum(_voxels(scan) for scan in scans), len(scans) * _voxels(grid)
    stages = [_RESULT + _DRAWING * draws]
    if on_cpu:
        stages += [_NETWORK * network_share, (_REFINING + _REFINING_ALL / len(scans)) * refined]
    return (_PROGRAM + _READ * files + (_IMAGES + max(stages)) * voxels + _WRITTEN * files + _written(scans)) / 1e9


def streamed_gb(scans: Sequence[Grid], grid: Grid, scans_at_once: int) -> float:
    """Memory in 1e9 bytes with ``scans_at_once`` scans in memory, whatever their number."""
    voxels = max(_voxels(scan) for scan in (*scans, grid))
    return (_STREAMING_PROGRAM + (_ONCE + _AT_A_TIME * scans_at_once) * voxels + _written(scans)) / 1e9


def _written(scans: Sequence[Grid]) -> float:
    """Bytes of the files that are compressed at the same time, each of which is made slab by slab."""
    largest, at_once = max(map(_voxels, scans)), min(len(scans), os.cpu_count() or 1, _FILES_AT_ONCE)
    return at_once * (_SLAB * min(largest, _SLAB_VOXELS) + _FILE * largest)


def _voxels(grid: Grid) -> int:
    return math.prod(grid.shape)
