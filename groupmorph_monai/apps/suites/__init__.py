"""The suites of ``groupmorph benchmark``, each with its question, options and function.

Heavy imports are deferred until a suite runs.
"""

import argparse
from collections.abc import Callable
from functools import partial

from ...benchmarks import Row
from .paper import PAPER
from .suite import Suite, add_patients, add_seeds_and_weights, add_series, add_weights, table_suite

__all__ = ["SUITES"]


def _suite(name: str, question: str, add_options: Callable[[argparse.ArgumentParser], None]) -> Suite:
    """Make a suite that runs the measurement of this name."""

    def measure(args: argparse.Namespace) -> list[Row]:
        from .measurements import MEASUREMENTS

        return MEASUREMENTS[name](args)

    return table_suite(name, question, add_options, measure)


SUITES = (
    _suite(
        "synthetic",
        "errors, seconds and memory on synthetic series, compared with Elastix in the same run",
        add_seeds_and_weights,
    ),
    _suite(
        "warped",
        "like synthetic, on your own aligned scans, each warped with a known field",
        partial(add_series, required=True),
    ),
    PAPER,
    _suite("likelihoods", "all likelihoods on the same series", partial(add_series, required=False)),
    _suite("breathing", "capture range for organs sliding along a wall", add_seeds_and_weights),
    _suite("reliability", "calibration of the predicted uncertainty", add_seeds_and_weights),
    _suite("verdicts", "verdicts on good series and on planted failures", add_patients),
    _suite(
        "kinetics", "residual of the kinetic fit on good DCE-MRI series and on planted failures", add_seeds_and_weights
    ),
    _suite("scaling", "seconds and memory against the number of scans and of voxels", add_weights),
    _suite("full_size", "seconds, memory and errors on six scans of 371 x 371 x 180 voxels", add_weights),
    _suite("memory", "memory and seconds of a registration compared with the estimates of --dry-run", add_weights),
    _suite("contention", "seconds with one and two busy processes per core", add_weights),
    _suite("cohort", "hours for 10,000 series on 1 to 1,000 workers, simulated", lambda p: None),
)
