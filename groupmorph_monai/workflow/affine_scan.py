"""Coarse scans in canonical orientation, the input of the affine alignment."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from ..data.preprocessing.intensities import scaled_to_range
from ..data.preprocessing.resampling import resample
from ..data.series import Frame
from ..errors import InputError
from ..space.filters import surrounded
from ..space.grid import Grid
from ..space.transforms import interpolate
from .free_memory import available_memory_gb

# Peak memory of the alignment per voxel of the finer grid: for any number of scans, and for each scan. Measured for 2
# to 16 scans; the assessment of scans that a network has aligned takes less.
_BYTES, _BYTES_PER_SCAN = 300, 190
_LEAST_MASK = 8**3  # minimum number of coarse voxels that lie, with all their neighbours, in a mask

logger = logging.getLogger(__name__)


def check_memory(scans: int, size: Tensor, voxels: Sequence[int]) -> None:
    """Check that an alignment fits into the free memory.

    Args:
        scans: number of scans that are aligned jointly.
        size: ``(3,)``, voxels of the finer grid along each axis.
        voxels: the setting that determines it, for the message.

    Raises:
        InputError: If it does not fit.
    """
    needed_gb = (_BYTES + _BYTES_PER_SCAN * scans) * float(size.prod()) / 1e9
    if needed_gb > (free_gb := available_memory_gb()):
        raise InputError(
            f"initial_alignment_voxels: expected grids that fit into {free_gb:.3g} GB of memory, got {list(voxels)}, "
            f"which need {needed_gb:.3g} GB; choose smaller numbers"
        )


@dataclass(frozen=True, eq=False)
class CoarseScan:
    """Coarse scan.

    Args:
        content: intensities in [0, 1], and the measured fraction of each voxel, ``(2, *S)``.
        grid: grid of the content.
        masked: whether a mask restricts what was measured.
    """

    content: Tensor
    grid: Grid
    masked: bool = False

    def resampled(self, grid: Grid, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Resample under the map ``matrix`` ``(4, 4)``.

        Returns:
            Intensities, and 1 where they were measured, otherwise 0, each ``(*S)``.
        """
        voxels = Grid(grid.shape, torch.linalg.inv(self.grid.affine) @ matrix @ grid.affine).points()
        values, measured = interpolate(self.content, voxels).unbind(-1)
        return values, (self.grid.covers(voxels) & (measured > 0.5)).float()

    def coarsened(self, spacing_mm: float) -> "CoarseScan":
        """Average over blocks with sides of at most ``spacing_mm``."""
        factor = (spacing_mm / self.grid.spacing_mm + 1e-6).int().clamp_min(1)
        padding = [p for n, f in zip(self.grid.shape[::-1], factor.tolist()[::-1]) for p in (0, -n % f)]
        values, measured = self.content
        sums = avg_pool3d(pad(torch.stack([values * measured, measured]), padding)[None], factor.tolist())[0]
        content = torch.stack([sums[0] / sums[1].clamp_min(1e-6), sums[1]])
        return CoarseScan(content, self.grid.of_blocks(factor, content.shape[1:]), self.masked)


def coarse_scan(frame: Frame, mask: Frame | None, spacing_mm: float) -> CoarseScan:
    """Coarsen a file's volume in RAS orientation, scaled to [0, 1] between the 1st and 99.5th percentiles of its
    `intensity_range`.

    Args:
        frame: the volume.
        mask: mask on any grid; voxels outside it count as not measured.
        spacing_mm: upper bound of the spacing.
    """
    grid = frame.grid.canonical()
    # A signed permutation: the file's step for a step along each axis of the grid.
    steps = (torch.linalg.inv(frame.grid.affine) @ grid.affine)[:3, :3].round().int()
    axes = steps.abs().argmax(dim=0).tolist()
    backwards = [d + 1 for d, axis in enumerate(axes) if steps[axis, d] < 0]
    measured = np.ones(frame.data.shape, dtype=bool) if frame.valid is None else frame.valid
    if mask is not None:
        inside_mask, covered = resample(mask, frame.grid, nearest=True)
        measured = measured & covered & (inside_mask > 0)
    channels = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (frame.data, measured)]
    content = torch.stack(channels).permute(0, *[axis + 1 for axis in axes]).flip(backwards)
    scan = CoarseScan(content, grid).coarsened(spacing_mm)
    values, measured = scan.content
    measured_values = values[measured > 0.5] if (measured > 0.5).any() else values
    return CoarseScan(
        torch.stack([scaled_to_range(values, measured_values, (1, 99.5)), measured]), scan.grid, mask is not None
    )


def coarse_and_fine(frame: Frame, mask: Frame | None, spacings_mm: Sequence[float]) -> tuple[CoarseScan, CoarseScan]:
    """Coarsen a volume to two spacings, from coarse to fine; without its mask if too few coarse voxels are within."""
    coarse_mm, fine_mm = spacings_mm
    fine = coarse_scan(frame, mask, fine_mm)
    coarse = fine.coarsened(coarse_mm)
    if mask is not None and surrounded((coarse.content[None, 1:] > 0.5).float()).sum() < _LEAST_MASK:
        logger.info("The mask of %s is too small for the initial alignment, which uses the whole scan.", frame.path)
        return coarse_and_fine(frame, None, spacings_mm)
    return coarse, fine
