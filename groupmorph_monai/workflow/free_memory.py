"""What a process may still take of the machine's memory."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..control_groups import CGROUP_ROOT, CGROUPS, control_groups

__all__ = ["available_memory_gb"]

_MEMINFO = Path("/proc/meminfo")
# Of versions 2 and 1: the limit, what is taken, and what of that files in the cache have, which give it back.
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory_gb(meminfo: Path = _MEMINFO, cgroups: Path = CGROUPS, root: Path = CGROUP_ROOT) -> float:
    """What this process can still take, in 1e9 bytes: what the machine has left, and what its control groups allow.
    Infinite where the system does not tell.

    Args:
        meminfo: of proc(5).
        cgroups, root: as in `control_groups`.
    """
    text = meminfo.read_text() if meminfo.is_file() else ""
    rests = [int(n) * 1024 for n in re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)]
    rests += [rest for group in control_groups("memory", cgroups, root) for rest in _rest(group)]
    return max(0, min(rests)) / 1e9 if rests else float("inf")


def _rest(group: Path) -> Iterator[int]:
    for limit, taken, cached in _LIMITS:
        try:
            most = (group / limit).read_text().strip()
            if most == "max":
                continue
            found = re.search(rf"^{cached} (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            yield int(most) - int((group / taken).read_text()) + (int(found.group(1)) if found else 0)
        except (OSError, ValueError):  # of the other version, or no limit here
            continue
