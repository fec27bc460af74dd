"""The task of a Dask worker: pass a series to its thread's server and wait. Heavy imports are avoided."""

import json
import os
import subprocess
import sys
import threading

from ..threads import available_cores
from .folders import Job, Status

_thread = threading.local()


def send_to_server(line: str) -> Status:
    """Run a command on one series, on this machine.

    Args:
        line: JSON of a job for `server.process_series`, with ``threads`` (None: the worker's share of the cores) and
            ``gpus`` (number of GPUs, assigned to local workers in turn).

    Returns:
        The contents of ``status.json``.

    Raises:
        RuntimeError: If the server has exited; the next series starts a new one.
    """
    job: Job = json.loads(line)
    if getattr(_thread, "server", None) is None:
        _thread.server = _start(job["threads"], job["gpus"])
    server: subprocess.Popen[str] = _thread.server
    try:
        print(line, file=server.stdin, flush=True)
        answer = server.stdout.readline() if server.stdout else ""
    except BrokenPipeError:
        answer = ""
    if not answer:
        _thread.server = None
        raise RuntimeError(f"the process that runs series ended with code {server.wait()}")
    return json.loads(answer)


def _start(threads: int | None, gpus: int) -> subprocess.Popen[str]:
    number, share = _place_in_dask()
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "groupmorph_monai.apps.cohort.server",
            str(threads or max(1, available_cores() // share)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the command only, which stops its workers
        encoding="utf-8",
    )


def _place_in_dask() -> tuple[int, int]:
    """Return the index of this worker and its number of threads, each with its own server; 0 and 1 outside of Dask."""
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):
        return 0, 1
    return (worker.name if isinstance(worker.name, int) else 0), worker.state.nthreads
