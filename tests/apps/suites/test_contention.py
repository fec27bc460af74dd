import os
import time
from argparse import Namespace

import pytest
from faults import KILLED, in_a_child, kill

from groupmorph_monai.apps.suites import contention as module
from groupmorph_monai.benchmarks import compare


def parent_of(pid):
    """Return the parent of a running process; None if the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            state, parent = file.read().rpartition(") ")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def children():
    """List the running child processes of this process."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and parent_of(name) == os.getpid()]


def test_rows_are_measured_beside_as_many_busy_processes(monkeypatch, capsys):
    beside, idle = [], len(children())

    def measure(method, images):
        beside.append(len(children()) - idle)
        return [], 2.0 + len(beside), 1.0

    monkeypatch.setattr(compare, "measure", measure)
    rows = module.contention(Namespace(weights=None, threads=2), size=(16, 16, 16))
    assert beside == [0, 2, 4] and len(children()) == idle
    assert [row["times as long"] for row in rows] == pytest.approx([1, 4 / 3, 5 / 3]) and len(
        capsys.readouterr().out.splitlines()
    ) == 3


def test_busy_processes_end_with_what_they_disturb():
    idle = len(children())
    with pytest.raises(KeyError), module.busy_processes(2):
        raise KeyError
    assert len(children()) == idle


def test_busy_processes_end_with_a_killed_one(tmp_path):
    file = tmp_path / "pid"

    def killed():
        with module.busy_processes(1):
            file.write_text(str(children()[0]), encoding="utf-8")
            kill(first=True)

    assert in_a_child(killed) == KILLED
    pid, until = int(file.read_text(encoding="utf-8")), time.monotonic() + 20
    while parent_of(pid) is not None and time.monotonic() < until:
        time.sleep(0.05)
    assert parent_of(pid) is None
