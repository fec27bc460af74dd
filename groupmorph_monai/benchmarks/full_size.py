"""Registration of a series of clinical size, from the grid of its files to fields: time, memory and accuracy."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from ..data.phantoms.phantom import make_phantom
from ..data.series import Frame, Series
from ..workflow.memory import peak_memory_gb
from . import Row
from .compare import BundleMethod, before_and_after_mm, in_new_process
from .memory import TIMES_AS_FINE

__all__ = ["full_size"]


def _register(method: BundleMethod, size: Sequence[int], timepoints: int, seed: int) -> dict[str, float]:
    thinned = [round(n / TIMES_AS_FINE) for n in size]
    phantom = make_phantom(seed, thinned, timepoints, max_motion_voxels=2.0, landmarks=500)
    volumes = interpolate(phantom["image"][None], list(size), mode="trilinear", align_corners=True)[0].numpy()
    landmarks = phantom["landmarks"] * torch.tensor([(n - 1) / (m - 1) for n, m in zip(size, thinned)])
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
    seed: int = 5,
    progress: Callable[[str], None] = print,
) -> list[Row]:
    """Measure each method in a separate process, one row each, on a series of ``size`` voxels of 1 mm: a phantom
    generated on every third voxel and interpolated. Times exclude reading and writing files."""
    rows = []
    for name, method in methods.items():
        row = in_new_process(_register, method, size, timepoints, seed)
        rows.append({"method": name, **row})
        progress(f"{name}: {row['after, mm']:.3f} of {row['before, mm']:.3f} mm, {row['seconds']:.0f} s")
    return rows
