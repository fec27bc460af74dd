"""Processor time of a registration, estimated from the sizes of its series and its settings.

All work is counted in units of `window_mean` on one voxel. How long a unit takes is timed on the spot, so that the
estimate follows the machine and how busy its memory and caches are.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..data.writers import Products
from ..space.geometry import Grid
from ..space.lattice import window_mean

__all__ = ["ProcessorTime"]

# Units, measured stage by stage on series other than those of the table in docs/machine.md.
_START = 1.7e9  # importing the libraries and parsing the configs
_ALIGNING, _SEARCHING = 1.5e8, 4e8  # each scan, by the affine alignment, and where it has to be searched for
_PICTURE, _KINETICS_PICTURE = 1.5e8, 9e7
_LOADING, _NETWORK, _FIELDS = 40, 35, 160  # each voxel of the working grid and scan; the network in each pass
_MODEL, _RESTART = 60, 850  # each voxel of a level and scan, in each iteration, and once on the levels above the finest
_DISPLACEMENT, _CONJUGATE = 90, 20  # each voxel of z's lattice and scan, in each iteration, and in each conjugate step
_DRAW, _DRAW_STEPS = 35, 32  # each voxel of the working grid and scan, in each draw; its conjugate steps
_QUALITY, _QUALITY_VOXELS = 260, 80  # each voxel of the verdict's grid and scan; its voxels along the longest side
# Each voxel of the files. Those of full fields, sequences and DICOM are guesses from the sizes of their files.
_WRITING, _FULL_FIELDS, _ITK_TRANSFORMS, _SEQUENCE, _DICOM, _KINETICS = 195, 150, 680, 100, 150, 60
_CALIBRATION_SIZE, _CALIBRATION_REPEATS = 64, 24


@dataclass(frozen=True)
class ProcessorTime:
    """Seconds of all cores together, from the start of the program to its end, on the CPU.

    The refinement counts with all iterations that it may take.

    Args:
        scans: grids of the K files.
        grid: the working grid.
        inferer: of the registration.
        levels: voxels between the samples of each level of its refinement, and the iterations at most.
        products: what is written beside the aligned series.
        aligned: whether whole scans are aligned first.
    """

    scans: Sequence[Grid]
    grid: Grid
    inferer: object
    levels: Sequence[tuple[int, int]]
    products: Products
    aligned: bool = True

    @property
    def seconds(self) -> float:
        """On this machine as it is now."""
        return _seconds_per_unit() * (self._registering + self._refining + self._reporting + self._writing)

    @property
    def searching_seconds(self) -> float:
        """What is added where no scan lies near the others, so that every one is searched for."""
        return _seconds_per_unit() * _SEARCHING * len(self.scans) * self.aligned

    @property
    def _voxels(self) -> int:
        """Of the working grid, of all scans together."""
        return len(self.scans) * math.prod(self.grid.shape)

    @property
    def _registering(self) -> float:
        passes = getattr(self.inferer, "passes", 1)
        aligning = _ALIGNING * len(self.scans) * self.aligned
        return _START + aligning + (_LOADING + _NETWORK * passes + _FIELDS) * self._voxels

    @property
    def _refining(self) -> float:
        draws = getattr(self.inferer, "draws", 0)
        work = _DRAW * draws * self._voxels
        if not self.levels:
            return work
        refinement, lattice = self.inferer.refinement, 0.0
        for factor, iterations in self.levels:
            level, lattice = (self._voxels / n**3 for n in (factor, max(factor, refinement.lattice_voxels)))
            work += iterations * (_MODEL * level + (_DISPLACEMENT + _CONJUGATE * refinement.conjugate_steps) * lattice)
            work += _RESTART * level * (factor > 1)
        return work + draws * _CONJUGATE * _DRAW_STEPS * lattice

    @property
    def _reporting(self) -> float:
        spacing = max(float(self.scans[0].spacing_mm.median()), float(self.scans[0].extent_mm.max()) / _QUALITY_VOXELS)
        coarse = math.prod((self.scans[0].extent_mm / spacing).clamp_min(1).tolist())
        pictures = _PICTURE + _KINETICS_PICTURE * (self.products.kinetics is not None)
        return pictures + _QUALITY * coarse * len(self.scans)

    @property
    def _writing(self) -> float:
        products = self.products
        kinds = (
            (_FULL_FIELDS, products.fields == "full"),
            (_ITK_TRANSFORMS, products.itk_transforms),
            (_SEQUENCE, products.sequence),
            (_DICOM, products.dicom),
            (_KINETICS, products.kinetics is not None),
        )
        work = _WRITING + sum(work for work, asked in kinds if asked)
        return work * sum(math.prod(scan.shape) for scan in self.scans)


def _seconds_per_unit() -> float:
    """Time a unit of work, which takes some 50 ms."""
    x, seconds = torch.rand(1, 1, *[_CALIBRATION_SIZE] * 3), []
    for _ in range(_CALIBRATION_REPEATS):
        started = time.process_time()
        window_mean(x, 2)
        seconds.append(time.process_time() - started)
    return median(seconds) / x.numel()
