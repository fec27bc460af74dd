"""Slowdown of a registration by other busy processes."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..threads import available_cores
from .suite import Row, add_weights, bundle_method, table_suite


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Run ``number`` busy single-threaded processes, which also end if this process is killed."""
    code = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def contention(args: argparse.Namespace, size: Sequence[int] = (64, 64, 64)) -> list[Row]:
    """Register one phantom series with 0, 1 and 2 busy processes per core, one row each.

    With n busy processes per core, a fair share of the CPU time is 1 / (n + 1). The registration then takes n + 1 times
    as long, or less, as some of its stages use one core only.
    """
    from ...benchmarks.compare import measure
    from ...data.phantoms.phantom import make_phantom

    method, cores = bundle_method(args.weights), args.threads or available_cores()
    images = make_phantom(7, size, 6)["image"]
    rows: list[Row] = []
    for number in (0, 1, 2):
        with busy_processes(number * cores):
            _, seconds, _ = measure(method, images)
        ratio = seconds / rows[0]["seconds"] if rows else 1.0
        rows.append({"busy processes per core": number, "seconds": seconds, "times as long": ratio})
        print(f"{number} busy processes per core: {seconds:.1f} s, {ratio:.2f} times as long")
    return rows


CONTENTION = table_suite("contention", "seconds with one and two busy processes per core", add_weights, contention)
