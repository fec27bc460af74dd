"""`groupmorph benchmark cohort`: duration of a study, simulated from the time of one series."""

import argparse

from ...benchmarks import Row
from .suite import table_suite

__all__ = ["COHORT"]


def _measure(args: argparse.Namespace) -> list[Row]:
    from ...benchmarks.cohort import cohort

    return cohort()


COHORT = table_suite("cohort", "hours for 10,000 series on 1 to 1,000 workers, simulated", lambda p: None, _measure)
