"""How long a study takes on so many workers: a simulation from the seconds of one series."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["cohort", "simulate"]


def simulate(
    seconds: Sequence[float],
    workers: int,
    dispatch_s: float = 0.0,
    start_s: float = 0.0,
    failing: Sequence[int] = (),
) -> tuple[float, float]:
    """Register series as `groupmorph cohort` does: in order, each on the first free worker, and those that fail once
    more when all others are done.

    Args:
        seconds: of each series.
        dispatch_s: of the scheduler, one series after another, to hand out a series and take its result.
        start_s: of each worker before its first series.
        failing: indices of series that fail at their first attempt, at its end.
    Returns: seconds until all are done, and seconds that the workers registered, all together.
    """
    free, scheduler = [float(start_s)] * workers, 0.0
    heapq.heapify(free)
    for round_seconds in (list(seconds), [seconds[n] for n in failing]):
        for one in round_seconds:
            scheduler = max(heapq.heappop(free), scheduler) + dispatch_s
            heapq.heappush(free, scheduler + one)
        if round_seconds:
            end = max(free)
        free = [end] * workers  # the second attempts wait for the last of the first
    return end, float(sum(seconds) + sum(seconds[n] for n in failing))


def cohort(
    series: int = 10_000,
    median_s: float = 217.0,
    spread: float = 0.3,
    cores: int = 2,
    workers: Sequence[int] = (1, 10, 100, 1000),
    failure_percent: float = 1.0,
    dispatch_s: float = 0.003,
    start_s: float = 20.0,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> list[dict]:
    """A row for each number of workers.

    Args:
        median_s: of one series; the default is that of six scans of 371 x 371 x 180 voxels on two cores, with writing.
        spread: standard deviation of the logarithm of a series' seconds: what sizes, stragglers and neighbours do.
        cores: of each worker.
        failure_percent: of the first attempts.
    """
    rng = np.random.default_rng(seed)
    seconds = median_s * np.exp(spread * rng.standard_normal(series))
    failing = np.flatnonzero(rng.random(series) < failure_percent / 100)
    rows = []
    for number in workers:
        end, busy = simulate(seconds.tolist(), number, dispatch_s, start_s, failing.tolist())
        rows.append(
            {
                "workers": number,
                "hours": end / 3600,
                "core hours": cores * busy / 3600,
                "workers idle, %": 100 * (1 - busy / (number * end)),
                "hours above the ideal, %": 100 * (end / (series * float(seconds.mean()) / number) - 1),
            }
        )
        progress(f"{number} workers: {end / 3600:.1f} hours")
    return rows
