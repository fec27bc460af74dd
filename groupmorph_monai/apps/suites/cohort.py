"""`groupmorph benchmark cohort`: how long a study takes, from the seconds of one series."""

import argparse

from .suite import table_suite

__all__ = ["COHORT"]


def _measure(args: argparse.Namespace) -> list[dict]:
    from ...benchmarks.cohort import cohort

    return cohort()


COHORT = table_suite(
    "cohort", "hours that 10,000 series take on 1 to 1,000 workers, simulated", lambda p: None, _measure
)
