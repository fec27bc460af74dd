"""Linux control groups, by which containers and schedulers limit the resources of a process."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def control_groups(controller: str, cgroups: Path = CGROUPS, root: Path = CGROUP_ROOT) -> Iterator[Path]:
    """Find the folders of this process's control groups and their parents, of version 2, and of version 1 for one
    controller. A container often sees its own group as the root.

    Args:
        controller: "cpu" or "memory".
        cgroups: file with the control groups of the process, one ``hierarchy:controllers:path`` per line (cgroups(7)).
        root: mount point of the control groups.
    """
    for line in cgroups.read_text(encoding="utf-8").splitlines() if cgroups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mounts = [root / controllers, root / controller] if controllers else [root]
        for mount in mounts:
            group = mount / path.strip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))
