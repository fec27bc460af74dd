"""Start the workers: on this machine, at a running scheduler, or as jobs of a queue."""

import argparse
import importlib.util
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...workflow.free_memory import available_memory_gb
from ..threads import available_cores, requested_threads

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

    from .folders import Status

logger = logging.getLogger(__name__)
_TIMEOUT_S = 30  # time limit for a scheduler to answer
_SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub"}  # commands that submit a job


def check_installed(args: argparse.Namespace) -> None:
    """Check that the packages and commands required by these options are installed.

    Raises:
        InputError: If any is missing.
    """
    if args.shard:
        return
    missing = [name for name in ("distributed", "dask_jobqueue") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{args.command}: expected Dask and its packages, got no {missing[0]}; pip install "
            "'groupmorph-monai[cohort]', or use --shard I/N"
        )
    command = _SUBMIT.get(args.jobqueue)
    if command and shutil.which(command) is None:  # dask-jobqueue would retry forever
        raise InputError(
            f"--jobqueue {args.jobqueue}: expected the command {command} on this machine, got none; run where jobs are "
            "submitted, or use --scheduler"
        )


class Resources:
    """Divide the resources of this machine among workers.

    Args:
        args: options of the command: ``workers``, ``threads``, ``device``, ``scheduler``, ``jobqueue``, ``shard``.
        memory_gb: memory per series, 1e9 bytes.
        series: number of series; more workers would have nothing to do.
    """

    def __init__(self, args: argparse.Namespace, memory_gb: float, series: int):
        self.memory_gb = memory_gb
        self.place = "job" if args.jobqueue else "elsewhere" if args.scheduler or args.shard else "local"
        local, cores = self.place == "local", available_cores()
        self.gpus = _gpus(args.device) if local else 0  # assigned to the workers in turn
        workers = args.workers or (self.gpus or min(cores, _fitting(memory_gb)) if local else 1)
        self.workers = min(workers, series)
        shares = {"local": max(1, cores // self.workers), "job": 1}
        requested = requested_threads() if local or args.shard else None  # jobs and Dask workers have their own
        self.threads = args.threads or requested or shares.get(self.place)  # None for each worker's own share

    def __str__(self) -> str:
        """Describe the resources. Workers started elsewhere have their own shares."""
        if self.place == "elsewhere":
            return f"about {self.memory_gb:.1f} GB of memory for each series"
        shares = f"{self.threads} thread{'s' * (self.threads != 1)} and about {self.memory_gb:.1f} GB of memory"
        return f"workers: {self.workers}; for each series {shares}"


def _gpus(device: str | None) -> int:
    import torch

    return torch.cuda.device_count() if device in (None, "cuda") else 0


def _fitting(memory_gb: float) -> int:
    """Compute how many series fit into the free memory of this machine in parallel, at least 1."""
    free_gb = available_memory_gb()
    if free_gb < memory_gb:
        logger.warning("one series needs about %.1f GB of memory, but only %.1f GB are free", memory_gb, free_gb)
    return max(1, math.floor(free_gb / memory_gb))


@contextmanager
def open_client(args: argparse.Namespace, resources: Resources) -> Iterator["Client"]:
    """Yield a Dask client; at exit, shut down the cluster if one was started.

    Raises:
        InputError: If the scheduler does not answer, or if the queue rejects the jobs.
    """
    import dask
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # it logs a lost scheduler with a traceback
    # If a worker dies, its series runs on another one; after three such deaths the series is reported as failed.
    with dask.config.set({"distributed.scheduler.allowed-failures": 2}):
        if args.scheduler:
            with connect(args.scheduler) as client:
                yield client
        else:
            with open_cluster(args, resources) as cluster, Client(cluster) as client:
                yield client


def connect(address: str) -> "Client":
    """Connect to a running Dask scheduler.

    Raises:
        InputError: If it does not answer, or if the address needs certificates that Dask does not have.
    """
    from distributed import Client

    try:
        return Client(address, timeout=_TIMEOUT_S)
    except OSError as error:
        raise InputError(
            f"--scheduler: expected a Dask scheduler at {address}, got no answer; start 'dask scheduler'"
        ) from error
    except (TypeError, ValueError) as error:  # of Dask's own checks
        raise InputError(
            f"--scheduler: expected an address that Dask can use, got {address} ({error}); for tls:// and wss://, set "
            "certificates in Dask's configuration, distributed.comm.tls"
        ) from error


def open_cluster(args: argparse.Namespace, resources: Resources) -> "Cluster":
    """Start the workers, on this machine or as jobs of a queue.

    Raises:
        InputError: If jobs cannot be submitted to the queue.
    """
    if not args.jobqueue:
        from distributed import LocalCluster

        # No memory limit: the worker only waits, and the series runs in another process, which Dask does not monitor.
        return LocalCluster(
            n_workers=resources.workers, threads_per_worker=1, memory_limit=0, silence_logs=logging.CRITICAL
        )
    import dask_jobqueue

    kind = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster"}[args.jobqueue]
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it logs a rejected job with a traceback
    try:
        cluster = getattr(dask_jobqueue, kind)(**_job(args, resources))
        _submit_jobs(cluster, resources.workers)
    except (OSError, ValueError, RuntimeError) as error:
        with suppress(OSError):  # it has logs of earlier jobs
            os.rmdir(_job_logs(args))
        reason = str(error).strip().rpartition("\n")[2]  # the last line of the queue's own message
        raise InputError(
            f"--jobqueue {args.jobqueue}: could not submit jobs ({reason}); correct the queue's settings in "
            "~/.config/dask/jobqueue.yaml, or --workers"
        ) from error
    return cluster


def _submit_jobs(cluster: Any, number: int) -> None:
    """Submit jobs, and wait for the queue's answers: with `scale` alone, failures are lost in another thread.

    Raises:
        RuntimeError: If the queue rejects a job; the others are cancelled.
    """
    for _ in range(number):
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        cluster.sync(_started, cluster)
    except RuntimeError:
        with suppress(AssertionError):  # `close` expects that every job has once been running
            cluster.close()
        raise


async def _started(cluster: "Cluster") -> None:
    await cluster


def _job(args: argparse.Namespace, resources: Resources) -> Mapping[str, object]:
    """Describe a job of one worker. Queue, account and time limit come from dask-jobqueue's configuration."""
    return {
        "cores": resources.threads,
        "processes": 1,
        "memory": f"{math.ceil(resources.memory_gb * 1e3)}MB",
        "worker_extra_args": ["--nthreads", "1", "--memory-limit", "0"],
        "log_directory": _job_logs(args),
    }


def _job_logs(args: argparse.Namespace) -> str:
    return os.path.join(args.output, "jobs")


def submit(client: "Client", lines: Sequence[str]) -> Iterator[tuple[int, "Status | Exception"]]:
    """Process series on the workers, in order.

    Yields:
        The index and status of each series as it ends; the status is an exception if Dask gave up on the series.

    Raises:
        InputError: If the connection to the scheduler is lost.
    """
    from distributed import as_completed

    from .worker import send_to_server

    futures = client.map(send_to_server, lines, pure=False)
    numbers = {future.key: n for n, future in enumerate(futures)}
    try:
        for future in as_completed(futures, raise_errors=False):
            if future.status == "cancelled":
                raise ConnectionError
            yield numbers[future.key], future.exception() if future.status == "error" else future.result()
            future.release()
    except OSError as error:
        raise InputError(
            "--scheduler: lost the connection to the scheduler; run the command again to resume"
        ) from error
