"""Registration of a series of clinical size, from the grid of its files to fields: time, memory and accuracy."""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from .suite import Row, add_weights, bundle_method, table_suite


def full_size(args: argparse.Namespace, size: Sequence[int] = (371, 371, 180), timepoints: int = 6) -> list[Row]:
    """Measure each method in a separate process, one row each, on a phantom of ``size`` voxels of 1 mm. Times
    exclude reading and writing files."""
    from ...benchmarks.compare import in_new_process

    methods = {
        "single pass alone": bundle_method(args.weights, "effort/no_refine", initial_alignment="none"),
        "affine, single pass": bundle_method(args.weights, "effort/no_refine"),
        "refined": bundle_method(args.weights),
    }
    rows = []
    for name, method in methods.items():
        row = in_new_process(_register, method.prepare_whole, size, timepoints)
        rows.append({"method": name, **row})
        print(f"{name}: {row['after, mm']:.3f} of {row['before, mm']:.3f} mm, {row['seconds']:.0f} s")
    return rows


def _register(prepare: Callable[[], Callable[..., Any]], size: Sequence[int], timepoints: int) -> Row:
    from ...benchmarks.cases import upsampled_phantom
    from ...benchmarks.compare import before_and_after_mm
    from ...workflow.memory import peak_memory_gb

    series, landmarks = upsampled_phantom(size, timepoints)
    register = prepare()
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


FULL_SIZE = table_suite(
    "full_size", "seconds, memory and errors on six scans of 371 x 371 x 180 voxels", add_weights, full_size
)
