"""Time and memory against the number of scans and of voxels."""

import argparse
import math

from .suite import Row, add_weights, bundle_method, table_suite


def scaling(args: argparse.Namespace) -> list[Row]:
    """Measure time and memory against K and against the number of voxels, with log-log slopes, where 1 is linear."""
    from statistics import linear_regression

    from ...benchmarks.compare import measure
    from ...data.phantoms.phantom import make_phantom

    method = bundle_method(args.weights)
    shapes = [(k, (64, 64, 64)) for k in (2, 4, 8, 16)] + [(4, (n, n, n)) for n in (48, 96)]
    rows = []
    for timepoints, size in shapes:
        series = make_phantom(11, size, timepoints)["image"]
        _, seconds, peak_gb = measure(method, series)
        rows.append({"K": timepoints, "voxels": math.prod(size), "seconds": seconds, "peak memory, GB": peak_gb})
        print(f"K = {timepoints}, {size}: {seconds:.1f} s, {peak_gb:.2f} GB")
    for axis, other, fixed in (("K", "voxels", 64**3), ("voxels", "K", 4)):
        chosen = [row for row in rows if row[other] == fixed]
        logs = ([math.log(row[column]) for row in chosen] for column in (axis, "seconds"))
        print(f"Slope of seconds against {axis}: {linear_regression(*logs).slope:.2f}")
    return rows


SCALING = table_suite("scaling", "seconds and memory against the number of scans and of voxels", add_weights, scaling)
