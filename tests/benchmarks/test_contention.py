import os

import pytest

from groupmorph_monai.benchmarks import contention as module


def children():
    """Processes that this one has started and that run."""
    pids = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8") as file:
                state, parent = file.read().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            pids.append(int(name))
    return pids


def test_rows_are_measured_beside_as_many_busy_processes(monkeypatch):
    beside, idle = [], len(children())

    def measure(method, images):
        beside.append(len(children()) - idle)
        return [], 2.0 + len(beside), 1.0

    monkeypatch.setattr(module, "measure", measure)
    lines = []
    rows = module.contention(None, cores=2, size=(16, 16, 16), progress=lines.append)
    assert beside == [0, 2, 4] and len(children()) == idle
    assert [row["times as long"] for row in rows] == pytest.approx([1, 4 / 3, 5 / 3]) and len(lines) == 3


def test_busy_processes_end_with_what_they_disturb():
    idle = len(children())
    with pytest.raises(KeyError), module.busy_processes(2):
        raise KeyError
    assert len(children()) == idle
