"""Run a study: process its remaining series, retry failed ones, and write the summary."""

import argparse
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ... import __version__
from ...data.preprocessing.fingerprint import fingerprint
from ...data.writing.earlier_result import check_result_folder
from ...data.writing.output_folder import check_output_dir
from ...data.writing.replacement import check_names
from ..configs import bundle_root
from ..progress import progress_log
from ..run import split_overlays
from .clusters import Resources, connect, open_client, submit
from .folders import LOG, PAGE, PROGRESS, TABLE, CohortFolder, Job, Status
from .summary import Results, summarise
from .worker import send_to_server

logger = logging.getLogger(__name__)
_ATTEMPTS = 2  # maximum number of attempts per series
_RUN_OPTIONS = ("command", "files", "list", "output", "threads", "quiet", "verbose", "device")  # do not affect results
_BASE_GB = 1.0  # memory of Dask, PyTorch and other packages
_FAILED = 3  # exit code if any series failed

Ended = tuple[int, Status | Exception]  # index of a series, and its status or the error that lost it


@dataclass(frozen=True)
class Study:
    """A command and the series on which it runs.

    Args:
        cohort: folder of the results.
        jobs: one per series, in the order of the table.
        results: columns of the table, and how to read them from a result.
        memory_gb: function that estimates the memory of a job. It may raise any exception for an unreadable series.
        finish: function that is called at the end, by one process at a time.
    """

    cohort: CohortFolder
    jobs: Sequence[Job]
    results: Results
    memory_gb: Callable[[Job], float]
    finish: Callable[[], None] = lambda: None


def make_job(
    cohort: CohortFolder, name: str, files: list[str], arguments: dict[str, Any], settings: str, *inputs: object
) -> Job:
    """Describe the processing of one series, with hashes of all that its result depends on."""
    return {
        "name": name,
        "files": files,
        "output": str(cohort.root),
        "arguments": arguments,
        "cwd": os.getcwd(),
        "inputs": fingerprint(*inputs),
        "settings": settings,
    }


def run_study(args: argparse.Namespace, study: Study) -> int:
    """Process the remaining series of a study and write its table and page.

    Args:
        args: options of `add_worker_options`, and ``threads``, ``device`` and ``output``.

    Returns:
        Exit code: 3 if any series failed, else 0.

    Raises:
        InputError: If the output folder is invalid or the scheduler does not answer, before any series is processed.
    """
    cohort = study.cohort
    cohort.check()
    cohort.check_results(job["name"] for job in study.jobs)
    for job in study.jobs:
        if not cohort.finished(job):
            check_result_folder(cohort.series(job["name"]), ())
    check_names(cohort.root, (TABLE, PAGE, PROGRESS))
    first, step = args.shard or (1, 1)
    shard_jobs = study.jobs[first - 1 :: step]
    if args.scheduler and not all(cohort.finished(job) for job in shard_jobs):
        connect(args.scheduler).close()
    check_output_dir(cohort.root)
    with progress_log(cohort.root / PROGRESS, "a") as log:
        _process(args, study, shard_jobs, log)
        with FileLock(cohort.root / ".summary.lock") as lock:  # another shard may finish at the same time
            states = summarise(cohort, study.jobs, study.results)
            study.finish()
            with suppress(OSError):  # deleted before it is unlocked, so that a waiting shard notices
                os.unlink(lock.lock_file)
        log(f"{', '.join(f'{n} {state}' for state, n in states.items())}: {cohort.root / PAGE}")
    if cohort.work.is_dir():  # else all series were finished before
        _clear(cohort, shard_jobs)
    return 0 if all(cohort.finished(job) for job in shard_jobs) else _FAILED


def _clear(cohort: CohortFolder, jobs: Sequence[Job]) -> None:
    """Delete locks, and what killed workers left, even of series that they had finished."""
    for job in jobs:
        with suppress(Timeout), FileLock(cohort.lock(job["name"]), timeout=0) as lock:  # locked by another command
            shutil.rmtree(cohort.unfinished(job["name"]), ignore_errors=True)
            os.unlink(lock.lock_file)
    with suppress(OSError):  # in use by other shards
        cohort.work.rmdir()


def _process(args: argparse.Namespace, study: Study, jobs: Sequence[Job], log: Callable[[str], None]) -> None:
    cohort = study.cohort
    pending = [job for job in jobs if not cohort.finished(job)]
    log(f"{len(jobs)} series, {len(jobs) - len(pending)} of them already finished")
    if not pending:
        return
    pending.sort(key=_bytes, reverse=True)  # longest first, so that no worker waits for a long series at the end
    resources = Resources(args, args.memory_gb or _largest_gb(study, pending), len(pending))
    for job in pending:
        job["threads"], job["gpus"] = resources.threads, resources.gpus
    log(str(resources))
    if args.shard:
        _process_with_retries(cohort, pending, _run_locally, log)
        return
    with open_client(args, resources) as client:
        log(f"Dask dashboard: {client.dashboard_link}")
        _process_with_retries(cohort, pending, lambda lines: submit(client, lines), log)


def _process_with_retries(
    cohort: CohortFolder,
    jobs: Sequence[Job],
    run: Callable[[Sequence[str]], Iterator[Ended]],
    log: Callable[[str], None],
) -> None:
    """Process ``jobs``, then retry the failed ones at the end, when a temporary problem may be over."""
    for attempt in range(1, _ATTEMPTS + 1):
        jobs = [{**job, "attempt": attempt} for job in jobs if not cohort.finished(job)]
        started, failed = time.monotonic(), 0
        for done, (n, status) in enumerate(run([json.dumps(job) for job in jobs]), 1):
            if isinstance(status, Exception):
                status = _record_lost_series(cohort, jobs[n], status)
            failed += status["state"] == "failed"
            minutes = (time.monotonic() - started) / 60
            log_file = cohort.failed(status["name"]) / LOG
            outcome = status["error"] or status["state"]
            if status["state"] == "failed" and log_file.is_file():
                outcome += f" (log: {log_file})"
            log(
                f"{done} of {len(jobs)}: {status['name']} {outcome}, {status['seconds']:.1f} s; "
                f"{failed} failed; {minutes * (len(jobs) / done - 1):.0f} min left"
            )


def _run_locally(lines: Sequence[str]) -> Iterator[Ended]:
    """Process series one after the other on this machine, without Dask."""
    for n, line in enumerate(lines):
        try:
            yield n, send_to_server(line)
        except RuntimeError as error:
            yield n, error


def _record_lost_series(cohort: CohortFolder, job: Job, error: Exception) -> Status:
    """Record the failure of a series whose worker died."""
    status: Status = {
        "name": job["name"],
        "inputs": job["inputs"],
        "settings": job["settings"],
        "attempt": job["attempt"],
        "state": "failed",
        "error": " ".join(str(error).split()),
        "seconds": 0.0,
    }
    cohort.write_failure(status)
    return status


def settings_hash(options: Mapping[str, Any]) -> str:
    """Hash all that results depend on: the options, the version of this package, the bundle's configs and weights."""
    shaping = {name: value for name, value in options.items() if name not in _RUN_OPTIONS}
    shipped, own = split_overlays(options["overlay"])
    shaping["overlay"] = [*shipped, *map(str, own)]
    return fingerprint(__version__, shaping, _bundle_hash())


@functools.cache
def _bundle_hash() -> str:
    bundle = hashlib.sha256()
    for file in sorted(path for part in ("configs", "models") for path in (bundle_root() / part).rglob("*")):
        if file.is_file():
            bundle.update(file.name.encode() + file.read_bytes())
    return bundle.hexdigest()


def _bytes(job: Job) -> int:
    paths = [Path(file) for file in job["files"]]
    return sum(p.stat().st_size for path in paths for p in (path.rglob("*") if path.is_dir() else [path]))


def _largest_gb(study: Study, jobs: Sequence[Job]) -> float:
    """Estimate the memory of the first readable one of ``jobs``, which are sorted by size, largest first."""
    for job in jobs:
        try:
            return study.memory_gb(job)
        except Exception:  # unreadable: processing it reports the reason
            continue
    return _BASE_GB
