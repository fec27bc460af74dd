"""What a Dask worker calls: it hands a series to this thread's server and waits. Nothing heavy is imported."""

import json
import os
import subprocess
import sys
import threading

from ..threads import available_cores

__all__ = ["register_series"]

_here = threading.local()


def register_series(line: str) -> dict:
    """Register a series on this machine.

    Args:
        line: a job as `server.register_series` takes it, as JSON; ``threads`` (None: the worker's share of the cores)
            and ``gpus`` (0, or the number among which local workers choose by their number).
    Returns: what ``status.json`` holds.
    Raises: RuntimeError where the server ended; the next series starts another one.
    """
    job = json.loads(line)
    if getattr(_here, "server", None) is None:
        _here.server = _start(job["threads"], job["gpus"])
    server = _here.server
    try:
        print(line, file=server.stdin, flush=True)
        answer = server.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        _here.server = None
        raise RuntimeError(f"the process that registers series ended with code {server.wait()}")
    return json.loads(answer)


def _start(threads: int | None, gpus: int) -> subprocess.Popen:
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
        start_new_session=True,  # Ctrl-C is for the command, which ends its workers
        text=True,
    )


def _place_in_dask() -> tuple[int, int]:
    """This worker's number, and the number of its threads, each of which has a server; 0 and 1 outside of Dask."""
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):
        return 0, 1
    return (worker.name if isinstance(worker.name, int) else 0), worker.state.nthreads
