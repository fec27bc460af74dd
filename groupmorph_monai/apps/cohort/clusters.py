"""Where a cohort's workers run: on this machine, at a scheduler's address, or as jobs of a queue."""

import argparse
import importlib.util
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import InputError
from ...workflow.free_memory import available_memory_gb
from ..threads import available_cores

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Resources", "check_installed", "open_client", "submit"]

logger = logging.getLogger(__name__)
_PATIENCE_S = 120  # for a scheduler to answer


def check_installed(args: argparse.Namespace) -> None:
    """Raises: InputError where the packages are missing that the workers of these options need."""
    if args.shard:
        return
    missing = [name for name in ("distributed", "dask_jobqueue") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"cohort: expected Dask and what belongs to it, got no {missing[0]}; pip install "
            "'groupmorph-monai[cohort]', or take --shard I/N"
        )


class Resources:
    """Divide this machine among workers.

    Args:
        args: of the command: ``workers``, ``threads``, ``device``, ``scheduler``, ``jobqueue``, ``shard``.
        memory_gb: what one series takes, 1e9 bytes.
    """

    def __init__(self, args: argparse.Namespace, memory_gb: float):
        self.memory_gb = memory_gb
        self.place = "job" if args.jobqueue else "elsewhere" if args.scheduler or args.shard else "local"
        local, cores = self.place == "local", available_cores()
        self.gpus = _gpus(args.device) if local else 0
        self.workers = args.workers or (self.gpus or min(cores, _fitting(memory_gb)) if local else 1)
        self.threads = args.threads or {"local": max(1, cores // self.workers), "job": 1}.get(self.place)

    def __str__(self) -> str:
        """For people; what somebody else has started divides itself."""
        if self.place == "elsewhere":
            return f"about {self.memory_gb:.1f} GB of memory for each series"
        shares = f"{self.threads} threads and about {self.memory_gb:.1f} GB of memory"
        return f"workers: {self.workers}; for each series {shares}"


def _gpus(device: str | None) -> int:
    import torch

    return torch.cuda.device_count() if device in (None, "cuda") else 0


def _fitting(memory_gb: float) -> int:
    """Number of series that this machine's free memory holds at a time, 1 or more."""
    free_gb = available_memory_gb()
    if free_gb < memory_gb:
        logger.warning("one series takes about %.1f GB, and %.1f GB of memory are free", memory_gb, free_gb)
    return max(1, math.floor(free_gb / memory_gb))


@contextmanager
def open_client(args: argparse.Namespace, resources: Resources) -> Iterator["Client"]:
    """Yield a Dask client, and end what it has started when the cohort is done.

    Raises: InputError where the scheduler does not answer, or a queue takes no jobs.
    """
    import dask
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it tells a lost scheduler by a traceback
    # The series of a worker that dies runs elsewhere; one with which three workers died is reported as failed.
    with dask.config.set({"distributed.scheduler.allowed-failures": 2}):
        if args.scheduler:
            with _connect(args.scheduler) as client:
                yield client
        else:
            with _cluster(args, resources) as cluster, Client(cluster) as client:
                yield client


def _connect(address: str) -> "Client":
    from distributed import Client

    try:
        return Client(address, timeout=_PATIENCE_S)
    except OSError as error:
        raise InputError(
            f"--scheduler: expected a Dask scheduler at {address}, got no answer; start 'dask scheduler'"
        ) from error


def _cluster(args: argparse.Namespace, resources: Resources):
    if not args.jobqueue:
        from distributed import LocalCluster

        # Dask watches the worker's memory, which only waits; the series is in a process beside it.
        return LocalCluster(
            n_workers=resources.workers, threads_per_worker=1, memory_limit=0, silence_logs=logging.CRITICAL
        )
    import dask_jobqueue

    kind = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}[args.jobqueue]
    try:
        cluster = getattr(dask_jobqueue, kind)(**_job(args, resources))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"--jobqueue {args.jobqueue}: expected to start jobs, got {error}") from error
    cluster.scale(jobs=resources.workers)
    return cluster


def _job(args: argparse.Namespace, resources: Resources) -> Mapping[str, object]:
    """One worker a job, one series at a time; queue, account and time limit come from dask-jobqueue's own settings."""
    return {
        "cores": resources.threads,
        "processes": 1,
        "memory": f"{math.ceil(resources.memory_gb * 1e3)}MB",
        "worker_extra_args": ["--nthreads", "1", "--memory-limit", "0"],
        "log_directory": os.path.join(args.output, "jobs"),
    }


def submit(client: "Client", lines: Sequence[str]) -> Iterator[tuple[int, dict | Exception | None]]:
    """Let the workers register series, the first ones first.

    Yields: a series' index and its status, as it ends; the exception where Dask has given it up, and None where the
        scheduler has gone.
    """
    from distributed import as_completed

    from .worker import register_series

    futures = client.map(register_series, lines, pure=False)
    numbers = {future.key: n for n, future in enumerate(futures)}
    try:
        for future in as_completed(futures, raise_errors=False):
            if future.status == "cancelled":
                yield numbers[future.key], None
            else:
                yield numbers[future.key], future.exception() if future.status == "error" else future.result()
            future.release()
    except OSError:  # of the connection
        yield 0, None
