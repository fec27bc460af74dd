"""Memory that this process uses."""

import ctypes
import re
import sys
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # options of mallopt, from malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for reuse. This has no effect with other C libraries.

    By default glibc returns the memory of large tensors to the kernel, which has to clear every page again at the next
    allocation: a third of the network's time. As new tensors rarely fit exactly into the gaps of old ones, the heap is
    up to twice as large as its tensors.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
        mallopt(parameter, value)


def peak_memory_gb() -> float:
    """Return the peak memory of this process in 1e9 bytes: of its resident set, plus that of PyTorch on GPUs. NaN on
    Windows, where Python cannot measure it."""
    # On Linux, getrusage(2) starts with the memory of the parent when it started this process; VmHWM does not.
    status = Path("/proc/self/status")
    high_water_mark = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8")) if status.is_file() else None
    if high_water_mark:
        peak = int(high_water_mark.group(1)) * 1024
    else:
        try:
            import resource
        except ImportError:
            return float("nan")
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kibibytes elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_initialized():
        peak += sum(torch.cuda.max_memory_allocated(d) for d in range(torch.cuda.device_count()))
    return peak / 1e9
