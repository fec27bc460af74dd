"""Limit threads to the cores available to the process, and keep idle threads from spinning."""

import functools
import math
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ..control_groups import CGROUP_ROOT, CGROUPS, control_groups
from ..errors import InputError

_OPENMP, _ITK = "OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
_own_choice = ""  # value of OMP_NUM_THREADS that this process has set itself


def available_cores(cgroups: Path = CGROUPS, root: Path = CGROUP_ROOT) -> int:
    """Count the cores available to this process: its CPU affinity, limited by the CPU quota of its control groups.

    Args:
        cgroups, root: as in `control_groups`.

    Returns:
        1 or more; fractions of a core are rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in control_groups("cpu", cgroups, root) for quota in _quota(group)]
    return max(1, min(cores, *(math.ceil(quota) for quota in quotas))) if quotas else cores


def _quota(group: Path) -> Iterator[float]:
    try:
        if (group / "cpu.max").is_file():  # version 2: "quota period", or "max period"
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no limit here
        return


def limit_threads(number: int | None = None) -> None:
    """Set the number of threads of OpenMP (used by PyTorch and BLAS) and ITK, and keep idle threads from spinning.

    Args:
        number: None for ``OMP_NUM_THREADS`` if set, or else the cores available to this process.

    Raises:
        InputError: If ``OMP_NUM_THREADS`` is not a valid number.
    """
    global _own_choice
    # OpenMP reads this once, when torch is loaded. Threads that spin at barriers while another process holds their core
    # make thousands of small parallel regions 20 times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if number or _OPENMP not in os.environ:
        os.environ[_OPENMP] = str(number or available_cores())
        _own_choice = "" if number else os.environ[_OPENMP]
    if number or _ITK not in os.environ:
        os.environ[_ITK] = os.environ[_OPENMP]
    threads = os.environ[_OPENMP].split(",")[0].strip()  # further numbers are for nested regions
    if not (threads.isascii() and threads.isdecimal()) or not 1 <= int(threads) <= 1024:
        raise InputError(f"OMP_NUM_THREADS: expected a whole number from 1 to 1024, got {threads!r}; unset it")
    if "torch" in sys.modules:  # it has already read the environment
        import torch

        torch.set_num_threads(int(threads))
        _stop_spinning()


def requested_threads() -> int | None:
    """Return the number of threads that the user has set in ``OMP_NUM_THREADS``; None if `limit_threads` chose it."""
    threads = os.environ.get(_OPENMP, "")
    first = threads.split(",")[0].strip()
    return int(first) if first.isdecimal() and threads != _own_choice else None


@functools.cache
def _stop_spinning() -> None:
    """Make OpenMP's threads sleep at barriers if it is too late to set ``OMP_WAIT_POLICY=PASSIVE``.

    GNU OpenMP spins for 1/300 of the time if it has more threads than the process has cores. A second thread that has
    run one parallel region owns its own team of threads, which sleeps from then on at no cost.
    """
    ready = threading.Event()

    def hold_team() -> None:
        torch.ones(10**6).sum()
        ready.set()
        threading.Event().wait()

    import torch

    if torch.get_num_threads() > 1:
        threading.Thread(target=hold_team, daemon=True, name="OpenMP team").start()
        ready.wait()
