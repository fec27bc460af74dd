"""Run a cohort: read its manifest, register the remaining series, retry failed ones, and write the summary."""

import argparse
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from ... import __version__
from ...data.preprocessing.fingerprint import fingerprint
from ...data.writing.output_folder import check_output_dir
from ...errors import InputError
from ..arguments import make_parser
from ..configs import bundle_root
from ..progress import progress_log
from ..registration_options import registration
from ..run import parsed_run, split_overlays
from .clusters import Resources, check_installed, connect, open_client, submit
from .folders import CohortFolder, Job, Status
from .manifest import Series, read_manifest
from .summary import summarise
from .worker import register_series

__all__ = ["register_options", "run_cohort", "series_job", "settings_hash"]

logger = logging.getLogger(__name__)
_ATTEMPTS = 2  # per series
# Options that do not affect results.
_RUN_OPTIONS = ("command", "files", "list", "output", "threads", "quiet", "verbose", "device")
_BASE_GB = 1.0  # Dask, PyTorch and other packages
_FAILED = 3  # exit code

Ended = tuple[int, Status | Exception | None]


def run_cohort(args: argparse.Namespace) -> int:
    """Register the remaining series of a study and write its table and page.

    Returns:
        Exit code: 3 if any series failed, else 0.

    Raises:
        InputError: If the manifest or the output folder is invalid, before any registration.
    """
    check_installed(args)
    series = read_manifest(args.manifest, args.output)
    cohort = CohortFolder(Path(args.output).resolve())
    cohort.check()
    options = register_options(args)
    settings = settings_hash(options)
    jobs = [series_job(one, options, cohort, settings) for one in series]
    first, step = args.shard or (1, 1)
    mine = jobs[first - 1 :: step]
    if args.scheduler and not all(cohort.finished(job) for job in mine):
        connect(args.scheduler).close()
    check_output_dir(args.output)
    with progress_log(cohort.root / "cohort.log", "a") as log:
        _register(args, cohort, mine, log)
        with FileLock(cohort.root / ".summary.lock") as lock:  # another shard may end at the same time
            states = summarise(cohort, jobs)
            with suppress(OSError):  # deleted before it is unlocked, so that a waiting shard notices
                os.unlink(lock.lock_file)
        log(f"{', '.join(f'{n} {state}' for state, n in states.items())}: {cohort.root / 'cohort.html'}")
    for job in mine:
        cohort.lock(job["name"]).unlink(missing_ok=True)
    with suppress(OSError):  # in use by other shards, or missing because all series were finished before
        cohort.work.rmdir()
    return 0 if all(cohort.finished(job) for job in mine) else _FAILED


def _register(args: argparse.Namespace, cohort: CohortFolder, jobs: Sequence[Job], log: Callable[[str], None]) -> None:
    pending = [job for job in jobs if not cohort.finished(job)]
    log(f"{len(jobs)} series, {len(jobs) - len(pending)} of them already finished")
    if not pending:
        return
    pending.sort(key=_bytes, reverse=True)  # longest first, so that no worker waits for a long series at the end
    resources = Resources(args, args.memory_gb or _memory_gb(pending))
    for job in pending:
        job["threads"], job["gpus"] = resources.threads, resources.gpus
    log(str(resources))
    if args.shard:
        _attempts(cohort, pending, _run_locally, log)
        return
    with open_client(args, resources) as client:
        log(f"Dask dashboard: {client.dashboard_link}")
        _attempts(cohort, pending, lambda lines: submit(client, lines), log)


def _attempts(
    cohort: CohortFolder,
    jobs: Sequence[Job],
    run: Callable[[Sequence[str]], Iterator[Ended]],
    log: Callable[[str], None],
) -> None:
    """Register ``jobs``, then retry the failed ones at the end, when a temporary problem may be over."""
    for attempt in range(1, _ATTEMPTS + 1):
        jobs = [{**job, "attempt": attempt} for job in jobs if not cohort.finished(job)]
        started, failed = time.monotonic(), 0
        for done, (n, status) in enumerate(run([json.dumps(job) for job in jobs]), 1):
            if status is None:
                raise InputError(
                    "--scheduler: expected answers until the end, got none any more; run the command again to resume"
                )
            if isinstance(status, Exception):
                status = _given_up(cohort, jobs[n], status)
            failed += status["state"] == "failed"
            minutes = (time.monotonic() - started) / 60
            outcome = status["error"] or status["state"]
            log(
                f"{done} of {len(jobs)}: {status['name']} {outcome}, {status['seconds']:.1f} s; "
                f"{failed} failed; {minutes * (len(jobs) / done - 1):.0f} minutes left"
            )


def _run_locally(lines: Sequence[str]) -> Iterator[Ended]:
    """Register series one after the other on this machine, without Dask."""
    for n, line in enumerate(lines):
        try:
            yield n, register_series(line)
        except RuntimeError as error:
            yield n, error


def _given_up(cohort: CohortFolder, job: Job, error: Exception) -> Status:
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


def series_job(series: Series, options: Mapping[str, Any], cohort: CohortFolder, settings: str) -> Job:
    """Describe the registration of one series, with hashes of all that its result depends on."""
    return {
        "name": series.name,
        "output": str(cohort.root),
        "arguments": {**options, **series.options, "command": "register", "files": series.files},
        "cwd": os.getcwd(),
        "inputs": fingerprint(series.files, series.options),
        "settings": settings,
    }


def register_options(args: argparse.Namespace) -> dict[str, Any]:
    """Collect the options of `groupmorph register`, with defaults for those that this command was not given."""
    defaults = vars(make_parser().parse_args(["register", "-"]))
    options = {name: getattr(args, name, default) for name, default in defaults.items() if name != "output"}
    return {**options, "threads": None}


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
    paths = [Path(file) for file in job["arguments"]["files"]]
    return sum(p.stat().st_size for path in paths for p in (path.rglob("*") if path.is_dir() else [path]))


def _memory_gb(jobs: Sequence[Job]) -> float:
    """Estimate the memory of the largest readable series."""
    for job in jobs:
        try:
            (config, overlays, settings, device), options = registration(argparse.Namespace(**job["arguments"]))
            parser = parsed_run(config, overlays, settings, device, **options)
            cost = parser.get_parsed_content("cost_by_headers")
            return (cost if cost.scans else parser.get_parsed_content("cost")).memory_gb
        except Exception:  # unreadable: its registration reports the reason
            continue
    return _BASE_GB
