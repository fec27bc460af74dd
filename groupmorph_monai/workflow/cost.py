"""What the registration of a series takes of a machine, told before it starts."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch

from ..data.preprocessing.resampling import working_grid
from ..data.series import check_reference
from ..data.storage import IN_MEMORY
from ..data.writing.writers import Products
from ..errors import InputError
from ..space.geometry import Grid
from .codes import CodeInferer
from .free_memory import available_memory_gb
from .inferers import RegistrationInferer
from .memory_estimate import all_at_once_gb, streamed_gb
from .processor_time import ProcessorTime

__all__ = ["RegistrationCost"]


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
        return streamed_gb(self.scans, self.grid, self.scans_at_once) if self.scans_at_once else self._all_at_once_gb

    @property
    def _all_at_once_gb(self) -> float:
        window = getattr(self.inferer, "window_size_voxels", None) or self.grid.shape
        share = math.prod(min(w, n) / n for w, n in zip(window, self.grid.shape))
        on_cpu, draws = self.device.type == "cpu", bool(getattr(self.inferer, "draws", 0))
        return all_at_once_gb(self.scans, self.grid, on_cpu, share, bool(self.levels), draws)

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
        fewer = "crop the scans" if self.scans_at_once else "crop the scans, or give fewer"
        cure = f"take --spacing-mm {fitting:g}" if fitting else fewer
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
            if coarser._all_at_once_gb <= free_gb:  # as it then is, if it fits
                return spacing
        return None
