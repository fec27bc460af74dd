"""Where a cohort's workers run: on this machine, at a scheduler's address, or as jobs of a queue."""

import argparse
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import InputError
from ..threads import available_cores

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Resources", "open_client"]

logger = logging.getLogger(__name__)
_PATIENCE_S = 30  # for a scheduler to answer


class Resources:
    """Divide this machine among workers.

    Args:
        args: of the command: ``workers``, ``threads``, ``device``, ``scheduler``, ``jobqueue``, ``shard``.
        memory_gb: what one series takes, 1e9 bytes.
    """

    def __init__(self, args: argparse.Namespace, memory_gb: float):
        self.memory_gb = memory_gb
        self.local = not (args.scheduler or args.jobqueue or args.shard)
        self.gpus = _gpus(args.device) if self.local else 0
        cores = available_cores()
        self.workers = args.workers or (self.gpus or min(cores, _fitting(memory_gb)) if self.local else 1)
        self.threads = args.threads or (max(1, cores // self.workers) if self.local else None)

    def __str__(self) -> str:
        threads = "all threads" if self.threads is None else f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.workers} worker{'s' * (self.workers > 1)}, {threads} and {self.memory_gb:.1f} GB for each series"


def _gpus(device: str | None) -> int:
    import torch

    return torch.cuda.device_count() if device in (None, "cuda") else 0


def _fitting(memory_gb: float) -> int:
    """Number of series that this machine's free memory holds at a time, 1 or more."""
    import psutil

    free_gb = psutil.virtual_memory().available / 1e9
    if free_gb < memory_gb:
        logger.warning("one series takes about %.1f GB, and %.1f GB of memory are free", memory_gb, free_gb)
    return max(1, math.floor(free_gb / memory_gb))


@contextmanager
def open_client(args: argparse.Namespace, resources: Resources) -> Iterator["Client"]:
    """Yield a Dask client, and end what it has started when the cohort is done.

    Raises: InputError where Dask is not installed or the scheduler does not answer.
    """
    try:
        import dask
        from distributed import Client
    except ImportError as error:
        raise InputError(
            f"cohort: expected Dask, got {error}; pip install 'groupmorph-monai[cohort]', or take --shard I/N"
        ) from error
    # A worker that dies takes its series elsewhere; one that kills three workers is reported as failed.
    with dask.config.set({"distributed.scheduler.allowed-failures": 2}):
        if args.scheduler:
            try:
                with Client(args.scheduler, timeout=_PATIENCE_S) as client:
                    yield client
            except OSError as error:
                raise InputError(
                    f"--scheduler: expected a Dask scheduler at {args.scheduler}, got no answer; start 'dask scheduler'"
                ) from error
        else:
            with _cluster(args, resources) as cluster, Client(cluster) as client:
                yield client


def _cluster(args: argparse.Namespace, resources: Resources):
    if not args.jobqueue:
        from distributed import LocalCluster

        # Dask watches the worker's memory, which only waits; the series is in a process beside it.
        return LocalCluster(n_workers=resources.workers, threads_per_worker=1, memory_limit=0, silence_logs=logging.ERROR)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise InputError(
            f"--jobqueue: expected dask-jobqueue, got {error}; pip install 'groupmorph-monai[cohort]'"
        ) from error
    kind = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}[args.jobqueue]
    try:
        cluster = getattr(dask_jobqueue, kind)(**_job(resources))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--jobqueue {args.jobqueue}: expected to start jobs, got {error}") from error
    cluster.scale(jobs=resources.workers)
    return cluster


def _job(resources: Resources) -> Mapping[str, object]:
    """One worker a job, one series at a time; queue, account and time limit come from dask-jobqueue's own settings."""
    threads = resources.threads or 1
    return {
        "cores": 1,
        "job_cpu": threads,
        "processes": 1,
        "memory": f"{math.ceil(resources.memory_gb * 1e3)}MB",
        "worker_extra_args": ["--memory-limit", "0"],
        "job_script_prologue": [f"export OMP_NUM_THREADS={threads}"],
    }


def submit(client: "Client", lines: Sequence[str]) -> Iterator[tuple[int, dict | Exception | None]]:
    """Let the workers register series, the first ones first.

    Yields: a series' index and its status, as it ends; the exception where Dask has given it up, and None where the
        scheduler has gone.
    """
    from distributed import as_completed

    from .worker import register_series

    futures = client.map(register_series, lines, key=[f"register-{n}" for n in range(len(lines))], pure=False)
    numbers = {future.key: n for n, future in enumerate(futures)}
    for future in as_completed(futures, raise_errors=False):
        if future.status == "cancelled":
            yield numbers[future.key], None
        else:
            yield numbers[future.key], future.exception() if future.status == "error" else future.result()
        future.release()
