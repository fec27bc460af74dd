"""Choice of the number of scans to keep in memory for series that may not fit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..data.preprocessing.resampling import working_grid
from ..data.storage import Storage
from ..errors import InputError
from ..probability.likelihood import Likelihood
from ..space.grid import Grid
from .free_memory import available_memory_gb
from .memory_estimate import all_at_once_gb, streamed_gb
from .schedule import Schedule
from .streamed_network import streams

_MOST_AT_A_TIME = 16  # maximum number of scans in memory at a time; larger chunks are no faster
_FREE_SHARE = 0.8  # share of the free memory for scans in memory; estimates are not exact


def storage_for(
    scans: Sequence[Grid],
    scans_at_once: int | Literal["auto"] | None = "auto",
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    spacing_mm: float | str | None = "auto",
    reference: int | None = None,
    schedule: Schedule | None = None,
    needs: Sequence[object] = (),
) -> Storage:
    """Choose where to keep the tensors of a series.

    Args:
        scans: grids of the series, as read by `header_grids`; may be empty.
        scans_at_once: number of scans in memory at a time; None for all; "auto" for all if they fit into the free
            memory, if the registration needs all at once, or if fewer would not need less memory.
        folder: folder of the results, for temporary files.
        device: device of the registration.
        spacing_mm, reference: spacing and reference of the working grid, as for `working_grid`.
        schedule: levels of the refinement; None for the default.
        needs: parts of the registration that may need all scans at once: a likelihood that couples all scans, a network
            other than the default, or a positive number of draws or additional passes.

    Returns:
        Storage that keeps tensors in memory, or in temporary files with ``scans_at_once`` scans in memory at a time.

    Raises:
        InputError: If a number of scans at once is requested on a GPU.
    """
    on_cpu = torch.device(device).type == "cpu"
    if scans_at_once not in ("auto", None) and not on_cpu:
        raise InputError(f"scans_at_once: expected auto or null on {device}, got {scans_at_once}; add --device cpu")
    if scans_at_once != "auto":
        return Storage(scans_at_once, folder)
    together = not on_cpu or any(map(_needs_all, needs))
    if not scans or together or (reference is not None and not 0 <= reference < len(scans)):
        return Storage(None, folder)  # an invalid reference is reported by the reader
    grid, free_gb = working_grid(scans, spacing_mm, reference), available_memory_gb()
    stages = (schedule or Schedule()).stages(grid.shape)
    all_gb = all_at_once_gb(scans, grid, stages[-1].step if stages else None)
    if all_gb <= free_gb or all_gb <= streamed_gb(scans, grid, 1):
        return Storage(None, folder)
    at_once = 1
    while at_once < _MOST_AT_A_TIME and streamed_gb(scans, grid, 2 * at_once) < _FREE_SHARE * free_gb:
        at_once *= 2
    return Storage(min(at_once, len(scans)), folder)


def _needs_all(part: object) -> bool:
    if isinstance(part, Likelihood):
        return part.couples_all
    return not streams(part) if isinstance(part, nn.Module) else bool(part)
