"""Options of the commands that process many series on workers."""

import argparse
import re

from ..errors import InputError
from .kinds import Number, Whole
from .option_types import number


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"expected I/N, such as 1/8 to 8/8, got {text!r}")
    return int(match[1]), int(match[2])


def _address(text: str) -> str:
    match = re.fullmatch(r"(?:tcp|tls|ws|wss)://\S+:(\d{1,5})", text, re.ASCII)
    if not match or not 1 <= int(match[1]) < 2**16:
        raise argparse.ArgumentTypeError(f"expected an address such as tcp://host:8786, got {text!r}")
    return text


_WORKER_OPTIONS = ("scheduler", "jobqueue", "shard", "workers", "memory_gb")


def on_workers(args: argparse.Namespace) -> bool:
    """Test whether any option of `add_worker_options` was given."""
    return any(getattr(args, name) is not None for name in _WORKER_OPTIONS)


def check_worker_options(args: argparse.Namespace) -> None:
    """Refuse options of new workers together with one that starts none.

    Raises:
        InputError: If there are both.
    """
    for name in ("workers", "memory_gb"):
        for other in ("scheduler", "shard"):
            if getattr(args, name) is not None and getattr(args, other) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')}: not allowed together with --{other}, which starts no workers; omit "
                    "one"
                )


def add_worker_options(p: argparse.ArgumentParser, default: str) -> None:
    """Add the options that select where series are processed.

    Args:
        default: place where they are processed without these options, for the help text.
    """
    group = p.add_argument_group(f"where it runs (default: {default})")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--scheduler", type=_address, metavar="ADDRESS", help="address of a running Dask scheduler")
    where.add_argument(
        "--jobqueue", choices=["slurm", "pbs", "sge"], help="submit the workers as jobs to this queue (dask-jobqueue)"
    )
    where.add_argument(
        "--shard", type=_shard, metavar="I/N", help="process every N-th series, starting with the I-th, without Dask"
    )
    group.add_argument(
        "--workers",
        type=number(Whole(1, 10_000)),
        metavar="N",
        help="series processed in parallel (default: one per GPU, or as cores and memory allow; jobs: 1)",
    )
    group.add_argument(
        "--memory-gb",
        type=number(Number(0, 1e5, above=True)),
        metavar="GB",
        help="memory per series (default: estimated from the largest series)",
    )
