"""Register one series after another, each in a fork of a process that has imported everything.

A fork is a process of its own: its crash, or its end for want of memory, ends that series and nothing else. Imports are
paid once: they take 8 s of a processor, a fork some milliseconds. (`multiprocessing`'s fork server would do, but not
in Dask's workers, which are daemons, and it does not tell a process's peak of memory.)

`python -m groupmorph_monai.apps.cohort.server THREADS` reads jobs from standard input, one JSON object a line, and
answers each by its status.
"""

import argparse
import datetime
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
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from filelock import FileLock

from ..command_line import run_command
from ..threads import limit_threads
from .folders import CohortFolder, write_status

__all__ = ["main"]

_RESULT, _LOG = "result", "log.txt"


def main(threads: str) -> None:
    limit_threads(int(threads))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    from .. import commands  # noqa: F401 - PyTorch, MONAI and all the rest, which the forks then have

    for line in sys.stdin:
        print(json.dumps(register_series(json.loads(line))), file=answers, flush=True)


def register_series(job: Mapping) -> dict:
    """Register a series as `groupmorph register` does.

    Args:
        job: ``name``, ``output`` (the cohort's folder), ``arguments`` (of `groupmorph register`), ``cwd``, ``attempt``,
            and the hashes ``inputs`` and ``settings``.
    Returns: what ``status.json`` holds.
    """
    cohort = CohortFolder(Path(job["output"]))
    cohort.work.mkdir(parents=True, exist_ok=True)
    # Another worker may be at it that only seemed to be dead: its result is as good.
    with FileLock(cohort.lock(job["name"])):
        if status := cohort.finished(job):
            return status
        place = cohort.work / job["name"]
        shutil.rmtree(place, ignore_errors=True)  # of a worker that was killed
        place.mkdir()
        try:
            status = _attempt(job, place)
            if status["state"] == "finished":
                _put(place / _RESULT, status, cohort.series(job["name"]))
                shutil.rmtree(cohort.failed(job["name"]), ignore_errors=True)
            else:
                shutil.rmtree(place / _RESULT, ignore_errors=True)
                _put(place, status, cohort.failed(job["name"]))
            return status
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _put(folder: Path, status: Mapping, target: Path) -> None:
    """Give a complete folder its name. An earlier one goes first: between the two renames there is none."""
    from ...data.replacement import sync

    write_status(folder, status)
    sync(*folder.rglob("*"), folder)
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as earlier:
        if target.exists():
            os.rename(target, Path(earlier) / target.name)
        os.rename(folder, target)
    sync(target.parent)


def _attempt(job: Mapping, place: Path) -> dict:
    started = time.monotonic()
    child = os.fork()
    if not child:
        _register(job, place)
    _, ended, usage = os.wait4(child, 0)
    if select.select([sys.stdin], [], [], 0)[0] and not sys.stdin.buffer.peek(1):
        raise SystemExit("the worker is dead, and so is the series")
    code = os.waitstatus_to_exitcode(ended)
    return {
        "name": job["name"],
        "state": "failed" if code else "finished",
        "error": _error(code, place / _LOG) if code else None,
        "inputs": job["inputs"],
        "settings": job["settings"],
        "attempt": job["attempt"],
        "seconds": round(time.monotonic() - started, 3),
        "memory_gb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, 3),
        "host": socket.gethostname(),
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _register(job: Mapping, place: Path) -> NoReturn:
    """Be the fork: the command, with a log in the place of its messages."""
    code = 1
    try:
        threading.Thread(target=_die_with_the_worker, daemon=True).start()
        log = os.open(place / _LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(job["cwd"])
        tempfile.tempdir = str(place)  # for the log of a fault
        words = ["register", *job["arguments"]["files"], "..."]
        code = run_command(argparse.Namespace(**job["arguments"], output=str(place / _RESULT)), words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with_the_worker() -> None:
    """Wait for the end of standard input, whose other end the worker holds."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _error(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (", as systems without memory left do" if name == "SIGKILL" else "")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    told = (line.removeprefix("groupmorph: ") for line in lines if line.startswith("groupmorph: "))
    return next(told, lines[-1] if lines else f"exit code {code}")


if __name__ == "__main__":
    main(*sys.argv[1:])
