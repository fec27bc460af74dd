"""What a process takes of the machine's memory."""

import ctypes
import re
import sys
from pathlib import Path

import torch

__all__ = ["keep_freed_memory", "peak_memory_gb"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """From here on the C library keeps the memory of large tensors that are freed for the next ones.

    By default glibc gives each back to the kernel, which then has to clear every page anew: a third of the network's
    time. The peak of memory grows by some 20 %. Without effect where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
        mallopt(parameter, value)


def peak_memory_gb() -> float:
    """Most memory that this process has held, in 1e9 bytes: the peak of its resident set plus that of PyTorch on the
    GPU, where one was used. NaN on Windows, where Python cannot tell."""
    # On Linux getrusage(2) begins with what the parent held when it started this process; the kernel's VmHWM does not.
    status = Path("/proc/self/status")
    kibibytes = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    if kibibytes:
        peak = int(kibibytes.group(1)) * 1024
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
