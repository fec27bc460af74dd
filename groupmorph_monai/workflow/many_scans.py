"""Series of so many scans that they do not fit into memory: how many to take at a time."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..data.preprocessing.resampling import working_grid
from ..data.reading.readers import header_grids
from ..data.series import Series
from ..data.storage import Storage
from ..errors import InputError
from ..probability.likelihood import Likelihood
from .free_memory import available_memory_gb
from .memory_estimate import all_at_once_gb, streamed_gb
from .streamed_network import streams

__all__ = ["storage_for"]

_MOST_AT_A_TIME = 16  # more are no faster


def storage_for(
    series: Series | str | Path | Sequence[str | Path] | None,
    scans_at_once: int | str | None = "auto",
    folder: str | Path | None = None,
    device: torch.device | str = "cpu",
    description: str | None = None,
    spacing_mm: float | str | None = "auto",
    reference: int | None = None,
    needs: Sequence[object] = (),
) -> Storage:
    """Choose where the tensors of a series are kept.

    Args:
        series: as `read_series` takes it. Of files only the headers are read.
        scans_at_once: that are in memory; None for all; "auto" for all if they fit into the free memory, or if the
            registration cannot do with fewer, or if fewer would not need less.
        folder: of the results, beside which what is not in memory is kept.
        device: that the registration runs on.
        description: pattern that tells which files of a folder are the series.
        spacing_mm, reference: of the working grid, as `working_grid` takes them.
        needs: parts of the registration, of which a likelihood that couples all scans, a network other than the default
            one, and a number (of draws, or of passes beyond the first) above 0 need all scans at once.
    Raises: InputError where scans are to be taken in parts on a GPU.
    """
    on_cpu = torch.device(device).type == "cpu"
    if scans_at_once not in ("auto", None) and not on_cpu:
        raise InputError(f"scans_at_once: expected auto or null on {device}, got {scans_at_once}; add --device cpu")
    if scans_at_once != "auto":
        return Storage(scans_at_once, folder)
    scans = header_grids(series, description) if on_cpu and not any(map(_needs_all, needs)) else []
    if not scans or (reference is not None and not 0 <= reference < len(scans)):
        return Storage(None, folder)  # the reader reports a wrong reference
    grid, free_gb = working_grid(scans, spacing_mm, reference), available_memory_gb()
    all_gb = all_at_once_gb(scans, grid)
    if all_gb <= free_gb or all_gb <= streamed_gb(scans, grid, 1):
        return Storage(None, folder)
    fits = 1
    while fits < _MOST_AT_A_TIME and streamed_gb(scans, grid, 2 * fits) < 0.8 * free_gb:
        fits *= 2
    return Storage(min(fits, len(scans)), folder)


def _needs_all(part: object) -> bool:
    if isinstance(part, Likelihood):
        return part.couples_all
    return not streams(part) if isinstance(part, nn.Module) else bool(part)
