"""A cohort from its manifest to its table: what is left to do is done, once more where it failed, and summed up."""

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

from filelock import FileLock

from ... import __version__
from ...data.fingerprint import fingerprint
from ...data.output_folder import check_output_dir
from ...errors import InputError
from ..arguments import make_parser
from ..commands import registration
from ..configs import bundle_root
from ..progress import progress_log
from ..run import parsed_run, split_overlays
from .clusters import Resources, check_installed, open_client, submit
from .folders import CohortFolder
from .manifest import Series, read_manifest
from .summary import summarise
from .worker import register_series

__all__ = ["run_cohort"]

logger = logging.getLogger(__name__)
_ATTEMPTS = 2
_RUN_OPTIONS = ("command", "files", "list", "output", "threads", "quiet", "verbose", "device")  # no result depends on
_BASE_GB = 1.0  # Dask, PyTorch and the rest
_FAILED = 3

Ended = tuple[int, dict | Exception | None]


def run_cohort(args: argparse.Namespace) -> int:
    """Register what is left of a study and write its table and page. Returns 3 where a series failed, else 0.

    Raises: InputError where the manifest or the output folder will not do; nothing has begun then.
    """
    check_installed(args)
    series = read_manifest(args.manifest, args.output)
    cohort = CohortFolder(Path(check_output_dir(args.output)).resolve())
    options = _register_options(args)
    settings = _settings_hash(options)
    jobs = [_job(one, options, cohort, settings) for one in series]
    first, step = args.shard or (1, 1)
    mine = jobs[first - 1 :: step]
    with progress_log(cohort.root / "cohort.log", "a") as tell:
        _register(args, cohort, mine, tell)
        with FileLock(cohort.root / ".summary.lock"):  # another shard may end at the same time
            states = summarise(cohort, jobs)
        tell(f"{', '.join(f'{n} {state}' for state, n in states.items())}: {cohort.root / 'cohort.html'}")
    for job in mine:
        cohort.lock(job["name"]).unlink(missing_ok=True)
    with suppress(OSError):  # other shards are at work, or there is none as nothing was left to do
        cohort.work.rmdir()
    return 0 if all(cohort.finished(job) for job in mine) else _FAILED


def _register(
    args: argparse.Namespace, cohort: CohortFolder, jobs: Sequence[dict], tell: Callable[[str], None]
) -> None:
    left = [job for job in jobs if not cohort.finished(job)]
    tell(f"{len(jobs)} series, {len(jobs) - len(left)} of them finished before")
    if not left:
        return
    left.sort(key=_bytes, reverse=True)  # a long one begun last would keep the others waiting
    resources = Resources(args, args.memory_gb or _memory_gb(left))
    for job in left:
        job.update(threads=resources.threads, gpus=resources.gpus)
    tell(str(resources))
    if args.shard:
        _attempts(cohort, left, _here, tell)
        return
    with open_client(args, resources) as client:
        tell(f"Dask's dashboard: {client.dashboard_link}")
        _attempts(cohort, left, lambda lines: submit(client, lines), tell)


def _attempts(
    cohort: CohortFolder,
    jobs: Sequence[dict],
    run: Callable[[Sequence[str]], Iterator[Ended]],
    tell: Callable[[str], None],
) -> None:
    """Register ``jobs``, and those that fail once more at the end, when what disturbed them may be over."""
    for attempt in range(1, _ATTEMPTS + 1):
        jobs = [{**job, "attempt": attempt} for job in jobs if not cohort.finished(job)]
        started, failed = time.monotonic(), 0
        for done, (n, status) in enumerate(run([json.dumps(job) for job in jobs]), 1):
            if status is None:
                raise InputError(
                    "--scheduler: expected it to last until the end, got no more answers; give the command again to go "
                    "on with what is left"
                )
            if isinstance(status, Exception):
                status = _given_up(cohort, jobs[n], status)
            failed += status["state"] == "failed"
            minutes = (time.monotonic() - started) / 60
            outcome = status["error"] or status["state"]
            tell(
                f"{done} of {len(jobs)}: {status['name']} {outcome}, {status['seconds']:.1f} s; "
                f"{failed} failed; {minutes * (len(jobs) / done - 1):.0f} minutes left"
            )


def _here(lines: Sequence[str]) -> Iterator[Ended]:
    """Register series one after the other on this machine, without Dask."""
    for n, line in enumerate(lines):
        try:
            yield n, register_series(line)
        except RuntimeError as error:
            yield n, error


def _given_up(cohort: CohortFolder, job: Mapping, error: Exception) -> dict:
    """Say of a series that ended with its worker that it failed."""
    status = {**{name: job[name] for name in ("name", "inputs", "settings", "attempt")}, "state": "failed"}
    status |= {"error": " ".join(str(error).split()), "seconds": 0.0}
    cohort.write_failure(status)
    return status


def _job(series: Series, options: Mapping[str, object], cohort: CohortFolder, settings: str) -> dict:
    return {
        "name": series.name,
        "output": str(cohort.root),
        "arguments": {**options, **series.options, "command": "register", "files": series.files},
        "cwd": os.getcwd(),
        "inputs": fingerprint(series.files, series.options),
        "settings": settings,
    }


def _register_options(args: argparse.Namespace) -> dict[str, object]:
    """Options of `groupmorph register`: this command's where it has them, else the defaults."""
    defaults = vars(make_parser().parse_args(["register", "-"]))
    options = {name: getattr(args, name, default) for name, default in defaults.items() if name != "output"}
    return {**options, "threads": None}


def _settings_hash(options: Mapping[str, object]) -> str:
    """Hash what all results depend on: the options, this package's version, the bundle's configs and weights."""
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


def _bytes(job: Mapping) -> int:
    paths = [Path(file) for file in job["arguments"]["files"]]
    return sum(p.stat().st_size for path in paths for p in (path.rglob("*") if path.is_dir() else [path]))


def _memory_gb(jobs: Sequence[Mapping]) -> float:
    """Estimate the memory of the largest series that can be read."""
    for job in jobs:
        try:
            positional, options = registration(argparse.Namespace(**job["arguments"]))
            config = parsed_run(*positional, **options)
            cost = config.get_parsed_content("cost_by_headers")
            return (cost if cost.scans else config.get_parsed_content("cost")).memory_gb
        except Exception:  # broken: that is for its registration to tell
            continue
    return _BASE_GB
