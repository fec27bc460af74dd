"""What the registration of a series takes of a machine, told before it starts."""

import math
import os
from collections.abc import Sequence
from functools import cached_property

import torch

from ..data.resampling import working_grid
from ..data.series import check_reference
from ..data.storage import IN_MEMORY
from ..data.writers import Products
from ..errors import InputError
from ..space.geometry import Grid
from .codes import CodeInferer
from .free_memory import available_memory_gb
from .inferers import RegistrationInferer
from .many_scans import streamed_memory_gb
from .processor_time import ProcessorTime

__all__ = ["RegistrationCost"]

# Peaks of memory, bytes: of the program alone; for each voxel of the files and timepoint, as they are read and as they
# are written; for each voxel of the working grid and timepoint, of the images, and of what each stage has beside them;
# for each voxel of that grid, of what the refinement has whatever the number of timepoints; and of each file that is
# written at the same time, for each voxel of a slab and of the file. Measured as the `memory` suite does it, on series
# of 0.5 to 10 million voxels and 2 to 6 timepoints, and for network and refinement on one of 150 million.
_PROGRAM, _READ, _WRITTEN = 0.6e9, 4, 30
_IMAGES, _NETWORK, _REFINING, _RESULT, _DRAWING = 8, 30, 12, 45, 30
_REFINING_ALL = 360
_SLAB, _FILE = 407, 43
_SLAB_VOXELS, _FILES_AT_ONCE = 2**20, 4


class RegistrationCost:
    """Estimate the memory of the machine, not of a GPU, that one registration takes, and its time on the CPU.

    Args:
        scans: grids of the K files, which `header_grids` reads; may be empty.
        inferer: of the registration.
        spacing_mm, reference: of the working grid, as `working_grid` takes them.
        device: that the registration runs on.
        products: the files to write besides the aligned series; None for the default.
        initial: initial alignment, as in `AlignInitiald`.
    """

    def __init__(
        self,
        scans: Sequence[Grid],
        inferer: RegistrationInferer | CodeInferer,
        spacing_mm: float | str | None = "auto",
        reference: int | None = None,
        device: torch.device | str = "cpu",
        products: Products | None = None,
        initial: str | None = "affine",
    ):
        if scans:
            check_reference(reference, len(scans))
        self.scans, self.inferer, self.device = list(scans), inferer, torch.device(device)
        self.spacing_mm, self.reference = spacing_mm, reference
        self.products, self.initial = products or Products(), initial

    @cached_property
    def grid(self) -> Grid:
        """The working grid, but for what an initial alignment changes."""
        return working_grid(self.scans, self.spacing_mm, self.reference)

    @property
    def _sizes(self) -> tuple[int, int]:
        """Voxels of the files and of the working grid, of all timepoints together."""
        return sum(math.prod(scan.shape) for scan in self.scans), len(self.scans) * math.prod(self.grid.shape)

    @property
    def scans_at_once(self) -> int | None:
        """Scans in memory at a time; None for all."""
        return getattr(self.inferer, "storage", IN_MEMORY).scans_at_once

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Voxels between the samples of each level of the refinement, and its iterations at most."""
        refinement = getattr(self.inferer, "refinement", None)
        return refinement.schedule(self.grid.shape) if hasattr(refinement, "schedule") else []

    @property
    def memory_gb(self) -> float:
        """At the peak, in 1e9 bytes."""
        files, voxels = self._sizes
        if self.scans_at_once:
            largest = max(math.prod(scan.shape) for scan in self.scans)
            return streamed_memory_gb(max(largest, math.prod(self.grid.shape)), self.scans_at_once)
        window = getattr(self.inferer, "window_size_voxels", None) or self.grid.shape
        share = math.prod(min(w, n) / n for w, n in zip(window, self.grid.shape))
        stages = [_RESULT + _DRAWING * bool(getattr(self.inferer, "draws", 0))]
        if self.device.type == "cpu":
            refining = _REFINING + _REFINING_ALL / len(self.scans)
            stages += [_NETWORK * share, refining * bool(self.levels)]
        return (_PROGRAM + _READ * files + (_IMAGES + max(stages)) * voxels + self._writing) / 1e9

    @property
    def _writing(self) -> float:
        """Bytes that the writer takes: each of the files that are compressed at the same time is made slab by slab."""
        sizes = [math.prod(scan.shape) for scan in self.scans]
        at_once = min(len(sizes), os.cpu_count() or 1, _FILES_AT_ONCE)
        return _WRITTEN * sum(sizes) + at_once * (_SLAB * min(max(sizes), _SLAB_VOXELS) + _FILE * max(sizes))

    @property
    def time(self) -> ProcessorTime:
        """Processor time, summed over all cores."""
        aligned = self.initial not in (None, "none")
        return ProcessorTime(self.scans, self.grid, self.inferer, self.levels, self.products, aligned)

    def check(self) -> None:
        """Refuse a registration that does not fit into the free memory; passes if there are no scans.

        Raises: InputError.
        """
        free_gb = available_memory_gb()
        if not self.scans or self.memory_gb <= free_gb:
            return
        frames, spacing = len(self.scans), float(self.grid.spacing_mm.min())
        fitting = self._fitting_spacing_mm(free_gb)
        cure = f"take --spacing-mm {fitting:g}" if fitting else "crop the scans, or give fewer"
        raise InputError(
            f"memory: expected {self.memory_gb:.3g} GB for {frames} scans on {' x '.join(map(str, self.grid.shape))} "
            f"voxels of {spacing:.3g} mm, got {free_gb:.3g} GB; {cure}"
        )

    def _fitting_spacing_mm(self, free_gb: float) -> float | None:
        """The least spacing, in steps of a tenth, on which the series fits; none where its files leave too little."""
        spacing = float(self.grid.spacing_mm.min())
        for _ in range(20):
            spacing = math.ceil(11 * spacing) / 10
            coarser = RegistrationCost(
                self.scans, self.inferer, spacing, self.reference, self.device, self.products, self.initial
            )
            if min(coarser.grid.shape) < 16:
                return None
            if coarser.memory_gb <= free_gb:
                return spacing
        return None
