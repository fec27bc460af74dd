"""Memory that is still available to this process."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..control_groups import CGROUP_ROOT, CGROUPS, control_groups

_MEMINFO = Path("/proc/meminfo")
# For control groups of versions 2 and 1: files with the limit and the usage, and the entry of memory.stat with the part
# of the usage that is file cache, which the kernel reclaims when memory is short.
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory_gb(meminfo: Path = _MEMINFO, cgroups: Path = CGROUPS, root: Path = CGROUP_ROOT) -> float:
    """Return the memory available to this process in 1e9 bytes: the machine's free memory or, if less, the memory left
    by the limits of the control groups. Infinite if the system provides neither.

    Args:
        meminfo: file in the format of /proc/meminfo (proc(5)).
        cgroups, root: as for `control_groups`.
    """
    text = meminfo.read_text(encoding="utf-8") if meminfo.is_file() else ""
    available = [int(n) * 1024 for n in re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)]
    available += [size for group in control_groups("memory", cgroups, root) for size in _below_limit(group)]
    return max(0, min(available)) / 1e9 if available else float("inf")


def _below_limit(group: Path) -> Iterator[int]:
    """Yield the bytes that the limit of a control group leaves, if it has one."""
    for limit_file, usage_file, cache_entry in _LIMITS:
        try:
            limit = (group / limit_file).read_text(encoding="utf-8").strip()
            if limit == "max":
                continue
            cache = re.search(
                rf"^{cache_entry} (\d+)", (group / "memory.stat").read_text(encoding="utf-8"), re.MULTILINE
            )
            yield (
                int(limit)
                - int((group / usage_file).read_text(encoding="utf-8"))
                + (int(cache.group(1)) if cache else 0)
            )
        except (OSError, ValueError):  # the group is of the other version, or has no limit
            continue
