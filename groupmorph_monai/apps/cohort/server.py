"""Process series one after the other, each in a fork of a process that has already imported all packages.

If a fork crashes or runs out of memory, only its series fails. Imports take 8 s once, a fork a few milliseconds.
(`multiprocessing`'s fork server neither works in Dask's workers, which are daemons, nor reports the peak memory of a
process.)

`python -m groupmorph_monai.apps.cohort.server THREADS` reads jobs from standard input, one JSON object per line, and
answers each with its status.
"""

import argparse
import datetime
import io
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, cast

from filelock import FileLock

from ..command_line import run_command
from ..faults import FAULT_LOGS
from ..threads import limit_threads
from .folders import LOG, STATUS, CohortFolder, Job, Status, write_status

_RESULT, _LOGS = "result", "logs"  # in the folder of an unfinished series


def main(threads: str) -> None:
    limit_threads(int(threads))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps output of libraries apart from the answers
    from .. import commands  # noqa: F401 - imports PyTorch and MONAI once for all forks

    for line in sys.stdin:
        print(json.dumps(process_series(json.loads(line))), file=answers, flush=True)


def process_series(job: Job) -> Status:
    """Run a command on one series, as `groupmorph` does.

    Args:
        job: the command and its series.

    Returns:
        The contents of ``status.json``.
    """
    from ...data.writing.earlier_result import listed_result

    cohort = CohortFolder(Path(job["output"]))
    cohort.work.mkdir(parents=True, exist_ok=True)
    series, failed = cohort.series(job["name"]), cohort.failed(job["name"])
    # A worker presumed dead may still be processing this series: wait for it and use its result.
    with FileLock(cohort.lock(job["name"])):
        complete(series)
        complete(failed)
        if status := cohort.finished(job):
            return status
        folder = cohort.unfinished(job["name"])
        shutil.rmtree(folder, ignore_errors=True)  # left by a worker that was killed
        (folder / _LOGS).mkdir(parents=True)
        try:
            status = _attempt(job, folder)
            if status["state"] == "finished":
                publish(folder / _RESULT, status, series, listed_result(series))
                remove_failure(failed)
            else:
                publish(folder / _LOGS, status, failed, _failure_files(failed))
            return status
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def complete(target: Path) -> None:
    """Complete a `publish` to ``target`` that was interrupted."""
    from ...data.writing.replacement import clean

    if target.is_dir():
        clean(target)


def publish(folder: Path, status: Status, target: Path, earlier: Iterable[str] = ()) -> None:
    """Add ``status`` to a complete folder and move it to ``target``, where it replaces the files of an ``earlier``
    result or failure; others are kept."""
    from ...data.writing.replacement import move_in_place

    write_status(folder, status)
    move_in_place(folder, target, earlier)


def remove_failure(folder: Path) -> None:
    """Remove the files of a failure, and its folder unless it contains others."""
    for name in _failure_files(folder):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # absent, or not empty
        folder.rmdir()


def _failure_files(folder: Path) -> set[str]:
    return {path.name for pattern in (LOG, FAULT_LOGS, STATUS) for path in folder.glob(pattern)}


def _attempt(job: Job, folder: Path) -> Status:
    started = time.monotonic()
    child = os.fork()
    if not child:
        _run(job, folder)
    _, ended, usage = os.wait4(child, 0)
    if select.select([sys.stdin], [], [], 0)[0] and not cast(io.BufferedReader, sys.stdin.buffer).peek(1):
        raise SystemExit("the worker died; its series is stopped")
    code = os.waitstatus_to_exitcode(ended)
    return {
        "name": job["name"],
        "state": "failed" if code else "finished",
        "error": _error(code, folder / _LOGS / LOG) if code else None,
        "inputs": job["inputs"],
        "settings": job["settings"],
        "attempt": job["attempt"],
        "seconds": round(time.monotonic() - started, 3),
        "memory_gb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, 3),
        "host": socket.gethostname(),
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _run(job: Job, folder: Path) -> NoReturn:
    """Run the command in the fork, with its messages redirected to a log, and exit."""
    code = 1
    try:
        threading.Thread(target=_die_with_the_worker, daemon=True).start()
        log = os.open(folder / _LOGS / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(job["cwd"])
        tempfile.tempdir = str(folder / _LOGS)  # for the log of an internal error
        words = [job["arguments"]["command"], *job["files"], "..."]
        code = run_command(argparse.Namespace(**job["arguments"], output=str(folder / _RESULT)), words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with_the_worker() -> None:
    """Kill this process when standard input, whose other end the worker holds, is closed."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _error(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", probably out of memory" if name == "SIGKILL" else "")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    messages = (line.removeprefix("groupmorph: ") for line in lines if line.startswith("groupmorph: "))
    return next(messages, lines[-1] if lines else f"exit code {code}")


if __name__ == "__main__":
    main(*sys.argv[1:])
