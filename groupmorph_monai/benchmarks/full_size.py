"""Registration of a series of clinical size, from the grid of its files to fields: time, memory and accuracy."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from ..data.series import Frame, Series
from ..workflow.memory import peak_memory_gb
from . import Row
from .cases import upsampled_phantom
from .compare import BundleMethod, before_and_after_mm, in_new_process

__all__ = ["full_size"]


def _register(method: BundleMethod, size: Sequence[int], timepoints: int) -> dict[str, float]:
    volumes, landmarks = upsampled_phantom(size, timepoints)
    series = Series(tuple(Frame(volume, np.eye(4), f"scan {k}") for k, volume in enumerate(volumes)))
    register = method.prepare_whole()
    started = time.perf_counter()
    transforms = register(series)
    seconds = time.perf_counter() - started
    before, after = before_and_after_mm(landmarks, transforms)
    return {
        "before, mm": float(before.mean()),
        "after, mm": float(after.mean()),
        "seconds": seconds,
        "peak memory, GB": peak_memory_gb(),
    }


def full_size(
    methods: Mapping[str, BundleMethod],
    size: Sequence[int] = (371, 371, 180),
    timepoints: int = 6,
) -> list[Row]:
    """Measure each method in a separate process, one row each, on a phantom of ``size`` voxels of 1 mm. Times
    exclude reading and writing files."""
    rows = []
    for name, method in methods.items():
        row = in_new_process(_register, method, size, timepoints)
        rows.append({"method": name, **row})
        print(f"{name}: {row['after, mm']:.3f} of {row['before, mm']:.3f} mm, {row['seconds']:.0f} s")
    return rows
