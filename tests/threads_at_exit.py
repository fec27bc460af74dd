"""Print the names of a process's threads when Python exits."""

import atexit
from pathlib import Path


def print_at_exit():
    atexit.register(lambda: print("threads at exit:", *names(), flush=True))


def names():
    return [(task / "comm").read_text(encoding="utf-8").strip() for task in Path("/proc/self/task").iterdir()]
