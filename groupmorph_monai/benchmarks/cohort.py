"""Simulate the duration of a study for a number of workers, from the time of one series."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import Row

__all__ = ["Cluster", "Study", "cohort", "simulate"]


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
    Returns: seconds until all series are done, and total busy seconds of the workers.
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


@dataclass(frozen=True)
class Study:
    """Series to register.

    Args:
        series: number of series.
        median_s: median time per series; the default is that of six scans of 371 x 371 x 180 voxels on two cores, with
            writing.
        spread: standard deviation of the logarithm of the time per series, due to sizes, stragglers and shared cores.
        failure_percent: share of first attempts that fail.
    """

    series: int = 10_000
    median_s: float = 217.0
    spread: float = 0.3
    failure_percent: float = 1.0


@dataclass(frozen=True)
class Cluster:
    """Cluster that runs a study.

    Args:
        cores: cores per worker.
        dispatch_s: time of the scheduler per series.
        start_s: start-up time of each worker.
    """

    cores: int = 2
    dispatch_s: float = 0.003
    start_s: float = 20.0


def cohort(
    study: Study = Study(),
    cluster: Cluster = Cluster(),
    workers: Sequence[int] = (1, 10, 100, 1000),
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> list[Row]:
    """Simulate a study for each number of workers, one row each."""
    rng = np.random.default_rng(seed)
    seconds = study.median_s * np.exp(study.spread * rng.standard_normal(study.series))
    failing = np.flatnonzero(rng.random(study.series) < study.failure_percent / 100)
    rows = []
    for number in workers:
        end, busy = simulate(seconds.tolist(), number, cluster.dispatch_s, cluster.start_s, failing.tolist())
        rows.append(
            {
                "workers": number,
                "hours": end / 3600,
                "core hours": cluster.cores * busy / 3600,
                "workers idle, %": 100 * (1 - busy / (number * end)),
                "hours above the ideal, %": 100 * (end / (study.series * float(seconds.mean()) / number) - 1),
            }
        )
        progress(f"{number} workers: {end / 3600:.1f} hours")
    return rows
