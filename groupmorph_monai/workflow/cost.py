"""Estimate the memory and time of a registration before it starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..data.preprocessing.resampling import working_grid
from ..data.writing.products import Products
from ..errors import InputError
from ..space.alignment import check_reference
from ..space.grid import Grid
from .field_inferer import FieldInferer
from .free_memory import available_memory_gb
from .initial import AlignInitiald
from .memory_estimate import all_at_once_gb, streamed_gb
from .processor_time import ProcessorTime
from .refinement import Refinement
from .schedule import Stage

# Memory of the part of ITK that writes transforms, which is loaded only for them; with `--std`, 0.72 GB were measured.
_ITK_TRANSFORMS_GB = 0.7


@dataclass(frozen=True, eq=False)
class RegistrationCost:
    """Estimate of the main memory (not GPU memory) and of the CPU time of one registration.

    Args:
        scans: grids of the K files, as read by `header_grids`; may be empty.
        inferer: inferer of the registration.
        spacing_mm, reference: spacing and reference of the working grid, as for `working_grid`.
        device: device on which the registration runs.
        products: outputs in addition to the aligned series.
        align: initial alignment.

    Raises:
        InputError: If no scan has the index ``reference``.
    """

    scans: Sequence[Grid]
    inferer: FieldInferer
    spacing_mm: float | str | None = "auto"
    reference: int | None = None
    device: torch.device | str = "cpu"
    products: Products = Products()
    align: AlignInitiald = AlignInitiald()

    def __post_init__(self) -> None:
        if self.scans:
            check_reference(self.reference, len(self.scans))

    @cached_property
    def grid(self) -> Grid:
        """Working grid, before the initial alignment, which may change it."""
        return working_grid(self.scans, self.spacing_mm, self.reference)

    @property
    def scans_at_once(self) -> int | None:
        """Number of scans in memory at a time; None for all."""
        return self.inferer.storage.scans_at_once

    @property
    def levels(self) -> list[Stage]:
        """Levels of the refinement."""
        refinement = self.inferer.refinement
        return refinement.schedule.stages(self.grid.shape) if isinstance(refinement, Refinement) else []

    @property
    def memory_gb(self) -> float:
        """Peak memory in 1e9 bytes."""
        itk_gb = _ITK_TRANSFORMS_GB if self.products.exports.itk_transforms else 0.0
        if self.scans_at_once:
            return streamed_gb(self.scans, self.grid, self.scans_at_once) + itk_gb
        return self._all_at_once_gb + itk_gb

    @property
    def _all_at_once_gb(self) -> float:
        on_cpu = torch.device(self.device).type == "cpu"
        lattice_step = self.levels[-1].step if on_cpu and self.levels else None
        network_share = self.inferer.passes.share(self.grid.shape) if on_cpu else 0.0
        return all_at_once_gb(self.scans, self.grid, lattice_step, network_share, bool(self.inferer.draws))

    @property
    def time(self) -> ProcessorTime:
        """Estimate of the processor time."""
        return ProcessorTime(self.scans, self.grid, self.inferer, self.levels, self.products, self.align.schedule)

    def check(self) -> None:
        """Check that the registration fits into the free memory. Without scans, do nothing.

        Raises:
            InputError: If it does not fit.
        """
        free_gb = available_memory_gb()
        if not self.scans or self.memory_gb <= free_gb:
            return
        count, spacing = len(self.scans), float(self.grid.spacing_mm.min())
        fitting_spacing = self._fitting_spacing_mm(free_gb)
        smaller = "crop the scans" if self.scans_at_once else "crop the scans, or use fewer"
        cure = f"use --spacing-mm {fitting_spacing:g}" if fitting_spacing else smaller
        largest = max(range(count), key=lambda k: math.prod(self.scans[k].shape))
        raise InputError(
            f"memory: expected {self.memory_gb:.3g} GB for {count} scans of up to "
            f"{_sides(self.scans[largest])} voxels (timepoint {largest}) on {_sides(self.grid)} voxels of "
            f"{spacing:.3g} mm, got {free_gb:.3g} GB; {cure}"
        )

    def _fitting_spacing_mm(self, free_gb: float) -> float | None:
        """Increase the spacing in steps of 10 %, rounded up to 0.1 mm, until the series fits into ``free_gb``; None if
        it never does, as the files themselves take too much."""
        spacing = float(self.grid.spacing_mm.min())
        for _ in range(20):
            spacing = math.ceil(11 * spacing) / 10
            coarser = replace(self, spacing_mm=spacing)
            if min(coarser.grid.shape) < 16:
                return None
            if coarser._all_at_once_gb <= free_gb:  # scans are streamed only if they do not fit
                return spacing
        return None


def _sides(grid: Grid) -> str:
    return " x ".join(map(str, grid.shape))
