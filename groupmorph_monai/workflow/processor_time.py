"""Estimate the processor time of a registration from the sizes of its series and its settings.

Work is counted in units of `window_mean` on one voxel. The unit is timed on the spot, so that the estimate adapts to
the machine and the load of its memory and caches.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import torch

from ..data.writing.products import Products
from ..space.filters import window_mean
from ..space.grid import Grid
from .affine_alignment import AffineSchedule, jointly_aligned
from .field_inferer import FieldInferer
from .posterior_draws import DRAW_STEPS
from .refinement import Refinement
from .schedule import Stage

QUALITY_VOXELS = 80  # longest side of the grid of the verdict's checks, which detect gross errors only
QUALITY_SCANS = 16  # maximum number of scans that these compare in pairs, as time and memory grow quadratically

# Work in these units, measured for each stage on series other than those in docs/machine.md.
# Units per voxel of the affine alignment's fine grid and scan: in the joint alignment, there also for each scan, and
# for each scan aligned after it.
_ALIGNING, _ALIGNING_JOINTLY, _ALIGNING_LAST = 1300, 140, 4100
_SEARCHING = 4e8  # units per scan that is searched for
_PICTURE, _KINETICS_PICTURE = 2.5e8, 9e7  # units per run, for the figures of the report
_LOADING, _NETWORK, _FIELDS = 40, 35, 20  # units per voxel of the working grid and scan; the network in each pass
# Units per voxel of a level and scan, in each iteration, and once on each level but the finest.
_MODEL, _RESTART = 80, 500
# Units per voxel of the lattice of z and scan: in each iteration; in each conjugate gradient step, and there also per
# voxel along its three axes, for the products with matrices of cosines.
_ITERATION, _CONJUGATE, _COSINES = 400, 12, 0.125
_DRAW = 35  # units per voxel of the working grid and scan, in each draw
_QUALITY, _QUALITY_PAIR = 200, 15  # units per voxel of the verdict's grid and scan; and also for each scan
# Units per voxel of the files. Those of full fields, sequences and DICOM are estimated from the sizes of their files.
_WRITING, _FULL_FIELDS, _ITK_TRANSFORMS, _SEQUENCE, _DICOM, _KINETICS = 65, 150, 680, 100, 150, 60
_CALIBRATION_SIZE, _CALIBRATION_REPEATS = 64, 24  # voxels along each axis; number of repeats, each of milliseconds


@dataclass(frozen=True)
class ProcessorTime:
    """Estimate of the remaining processor time, summed over all cores, from reading the scans to the end of the run.

    The refinement is counted with its maximum number of iterations.

    Args:
        scans: grids of the K files.
        grid: working grid.
        inferer: inferer of the registration.
        levels: levels of the refinement.
        products: the files to write in addition to the aligned series.
        aligning: grids and steps of the affine or rigid alignment with which the registration starts; None without one.
    """

    scans: Sequence[Grid]
    grid: Grid
    inferer: FieldInferer
    levels: Sequence[Stage]
    products: Products
    aligning: AffineSchedule | None = AffineSchedule()

    @property
    def seconds(self) -> float:
        """Estimated seconds on this machine, at its present load."""
        return self._unit_s * (self._registering + self._refining + self._reporting + self._writing)

    @property
    def searching_seconds(self) -> float:
        """Additional seconds if the alignment has to search for every scan."""
        return self._unit_s * _SEARCHING * len(self.scans) * (self.aligning is not None)

    @cached_property
    def _unit_s(self) -> float:
        """Seconds per unit, timed once for both estimates."""
        return _seconds_per_unit()

    @property
    def _voxels(self) -> int:
        """Number of voxels of the working grid, times the number of scans."""
        return len(self.scans) * math.prod(self.grid.shape)

    @property
    def _aligning(self) -> float:
        if self.aligning is None:
            return 0.0
        joint = len(jointly_aligned(len(self.scans)))
        work = joint * (_ALIGNING + _ALIGNING_JOINTLY * joint) + _ALIGNING_LAST * (len(self.scans) - joint)
        sides = self.grid.extent_mm / self.grid.extent_mm.max() * self.aligning.voxels[-1]
        return work * math.prod(sides.clamp_min(1).tolist())

    @property
    def _registering(self) -> float:
        return self._aligning + (_LOADING + _NETWORK * self.inferer.passes.number + _FIELDS) * self._voxels

    @property
    def _refining(self) -> float:
        draws = self.inferer.draws
        work: float = _DRAW * draws * self._voxels
        refinement = self.inferer.refinement
        if not isinstance(refinement, Refinement):
            return work
        solving = 0.0  # one conjugate gradient step, on the finest lattice in the end
        for stage in self.levels:
            level, lattice = (self._voxels / n**3 for n in (stage.factor, stage.step))
            solving = (_CONJUGATE + _COSINES * sum(self.grid.shape) / stage.step) * lattice
            iteration = _MODEL * level + _ITERATION * lattice + refinement.schedule.conjugate_steps * solving
            work += stage.iterations * iteration + _RESTART * level * (stage.factor > 1)
        return work + draws * DRAW_STEPS * solving

    @property
    def _reporting(self) -> float:
        pictures = _PICTURE + _KINETICS_PICTURE * (self.products.kinetics is not None)
        compared = _QUALITY + _QUALITY_PAIR * min(len(self.scans), QUALITY_SCANS)
        return pictures + compared * quality_voxels(self.scans[0]) * len(self.scans)

    @property
    def _writing(self) -> float:
        products = self.products
        kinds = (
            (_FULL_FIELDS, products.fields == "full"),
            (_ITK_TRANSFORMS, products.exports.itk_transforms),
            (_SEQUENCE, products.exports.sequence),
            (_DICOM, products.exports.dicom),
            (_KINETICS, products.kinetics is not None),
        )
        work = _WRITING + sum(work for work, requested in kinds if requested)
        return work * sum(math.prod(scan.shape) for scan in self.scans)


def quality_voxels(scan: Grid) -> float:
    """Estimate the number of voxels of the grid of the verdict's checks, if all scans are on the grid of this one."""
    spacing = max(float(scan.spacing_mm.median()), float(scan.extent_mm.max()) / QUALITY_VOXELS)
    return math.prod((scan.extent_mm / spacing).clamp_min(1).tolist())


def _seconds_per_unit() -> float:
    """Time a unit of work while every thread is busy with it, as threads that share a core slow each other down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            calibrations = [pool.submit(_calibrate) for _ in range(threads)]
            return median(seconds for each in calibrations for seconds in each.result()) / _CALIBRATION_SIZE**3
    finally:
        torch.set_num_threads(threads)


def _calibrate() -> list[float]:
    """Measure this thread's processor time for each repeat of the work."""
    x, seconds = torch.rand(1, 1, *[_CALIBRATION_SIZE] * 3), []
    for _ in range(_CALIBRATION_REPEATS):
        start = time.thread_time()
        window_mean(x, 2)
        seconds.append(time.thread_time() - start)
    return seconds
