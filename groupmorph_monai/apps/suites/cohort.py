"""Simulate the duration of a study for a number of workers, from the time of one series."""

import heapq
from collections.abc import Sequence

from .suite import Row, table_suite

_MEDIAN_S = 348.0  # time for six scans of 371 x 371 x 180 voxels on two cores, from files to files
_SPREAD = 0.3  # standard deviation of the logarithm of that time, due to sizes, stragglers and shared cores
_FAILING_SHARE = 0.01  # share of first attempts that fail
_CORES = 2  # cores per worker
_DISPATCH_S, _START_S = 0.003, 20.0  # time of the scheduler per series, and start-up time of a worker


def simulate(
    seconds: Sequence[float],
    workers: int,
    dispatch_s: float = 0.0,
    start_s: float = 0.0,
    failing: Sequence[int] = (),
) -> tuple[float, float]:
    """Simulate `groupmorph cohort`: series run in order, each on the first free worker, and failed series are retried
    when all others are done.

    Args:
        seconds: duration of each series.
        dispatch_s: time of the scheduler per series, one after the other.
        start_s: start-up time of each worker.
        failing: indices of series that fail at the end of their first attempt.

    Returns:
        Seconds until all series are done, and total busy seconds of the workers.
    """
    free, scheduler = [float(start_s)] * workers, 0.0
    heapq.heapify(free)
    for round_seconds in (list(seconds), [seconds[n] for n in failing]):
        for one in round_seconds:
            scheduler = max(heapq.heappop(free), scheduler) + dispatch_s
            heapq.heappush(free, scheduler + one)
        if round_seconds:
            end = max(free)
        free = [end] * workers  # second attempts start after all first attempts
    return end, float(sum(seconds) + sum(seconds[n] for n in failing))


def cohort(series: int = 10_000, workers: Sequence[int] = (1, 10, 100, 1000)) -> list[Row]:
    """Simulate a study for each number of workers, one row each."""
    import numpy as np

    rng = np.random.default_rng(0)
    seconds = _MEDIAN_S * np.exp(_SPREAD * rng.standard_normal(series))
    failing = np.flatnonzero(rng.random(series) < _FAILING_SHARE)
    rows = []
    for number in workers:
        end, busy = simulate(seconds.tolist(), number, _DISPATCH_S, _START_S, failing.tolist())
        rows.append(
            {
                "workers": number,
                "hours": end / 3600,
                "core hours": _CORES * busy / 3600,
                "workers idle, %": 100 * (1 - busy / (number * end)),
                "hours above the ideal, %": 100 * (end / (series * float(seconds.mean()) / number) - 1),
            }
        )
        print(f"{number} workers: {end / 3600:.1f} hours")
    return rows


COHORT = table_suite(
    "cohort", "hours for 10,000 series on 1 to 1,000 workers, simulated", lambda p: None, lambda args: cohort()
)
