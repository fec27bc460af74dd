"""Levels of a coarse-to-fine refinement."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# On images longer than this many voxels z lies on every 4th voxel, like the network's: every 2nd would need a third
# more memory, for 3 % less error on 371 x 371 x 180.
_LARGE_VOXELS, _LARGE_STEP = 256, 4
_LEAST_SAMPLES = 8  # minimum number of samples per axis; coarser images show too little anatomy to be aligned


class Stage(NamedTuple):
    """One level of a refinement.

    Args:
        factor: spacing of the samples of the images, in voxels.
        iterations: maximum number of Gauss-Newton steps.
        step: spacing of z, in voxels of the images.
    """

    factor: int
    iterations: int
    step: int

    @property
    def least_voxels(self) -> int:
        """Number of voxels that must count, without which the level ends."""
        return _LEAST_SAMPLES**3 if self.factor > 1 else 1

    @property
    def resolution(self) -> str:
        """Resolution of the images, for messages."""
        return f"1/{self.factor} of the resolution" if self.factor > 1 else "full resolution"


@dataclass(frozen=True)
class Schedule:
    """Levels of a refinement, and when each of them ends.

    Args:
        levels: subsampling factors of the images, coarse to fine.
        iterations: maximum number of steps on each level.
        tolerance: stop a level when the mean step is shorter than this fraction of the level's voxel.
        lattice_voxels: spacing of z on the finest lattice, in voxels of the image; at least 4 over 256 voxels.
        conjugate_steps: maximum number of conjugate gradient steps per iteration.
    """

    levels: Sequence[int] = (16, 8, 4, 2, 1)
    iterations: Sequence[int] = (8, 6, 4, 6, 6)
    tolerance: float = 0.02
    lattice_voxels: int = 2
    conjugate_steps: int = 16

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.iterations):
            raise ValueError(
                f"iterations: expected one number for each of the levels {self.levels}, got {self.iterations}"
            )

    def stages(self, size: Sequence[int]) -> list[Stage]:
        """List the levels for images of ``size``. Those with fewer than 8 samples along an axis are left out, unless
        their factor is at most ``lattice_voxels``."""
        least_step = max(self.lattice_voxels, _LARGE_STEP if max(size) > _LARGE_VOXELS else 1)
        stages = [Stage(f, n, f * math.ceil(least_step / f)) for f, n in zip(self.levels, self.iterations)]
        return [s for s in stages if s.factor <= self.lattice_voxels or min(size) >= _LEAST_SAMPLES * s.factor]
