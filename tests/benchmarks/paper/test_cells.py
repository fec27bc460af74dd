"""Finished cells are kept, cells are separate for each setting, and a failing method does not stop the run."""

import os
import time
from dataclasses import dataclass, replace

import pytest
import torch

from groupmorph_monai.benchmarks.paper import cells as module
from groupmorph_monai.benchmarks.paper.cases import cases
from groupmorph_monai.benchmarks.paper.cells import CellStore, fill
from groupmorph_monai.benchmarks.paper.worker import Outcome, register
from groupmorph_monai.benchmarks.peers import MissingError


@dataclass(frozen=True)
class Fake:
    """A method whose behaviour ``kind`` selects, in the calling process."""

    kind: str

    def settings(self):
        return {"kind": self.kind}

    def prepare(self):
        if self.kind == "missing":
            raise MissingError("not installed: nothing; pip install nothing")
        return getattr(self, f"_{self.kind}")

    def _zero(self, images, affine):
        return torch.zeros(len(images), 3, *images.shape[1:])

    def _sleeping(self, images, affine):
        time.sleep(600)

    def _crashing(self, images, affine):
        os._exit(7)

    def _wrong(self, images, affine):
        raise ValueError("of no use\nat all")

    def _not_finite(self, images, affine):
        return self._zero(images, affine) / 0


@pytest.fixture
def one():
    return cases("phantom", [6], (24, 20, 16), 2)


@pytest.fixture
def runs(monkeypatch):
    """Record the methods that run, in this process instead of separate ones."""
    run = []

    def here(method, series, folder, log, limit_s, threads):
        run.append(method.kind)
        if method.kind == "sleeping":
            return Outcome(f"over the time limit of {limit_s:g} s")
        if method.kind == "wrong":
            return Outcome("failed: of no use")
        field = method.prepare()(series["image"], series["affine"])
        return Outcome("ok", (field,), {"seconds": 1.5, "processor_seconds": 1.0, "peak_memory_gb": 0.5})

    monkeypatch.setattr(module, "register", here)
    return run


def test_finished_cells_are_read_and_not_run_again(one, runs, tmp_path):
    store, lines = CellStore(tmp_path, 1), []
    first = fill(one, {"fake": Fake("zero")}, store, 60, lines.append)
    again = fill(one, {"fake": Fake("zero")}, store, 60, lines.append)
    assert runs == ["zero"] and "(kept)" in lines[-1] and "[3/3] phantom 6, fake" in lines[-1]
    assert [cell.method for cell in again] == ["none", "truth", "fake"]
    for cell, kept in zip(first, again):
        assert kept.arrays.keys() == cell.arrays.keys() and (kept.arrays["jacobian"] == cell.arrays["jacobian"]).all()
        measured = {k: v for k, v in cell.numbers.items() if v == v}
        assert {k: v for k, v in kept.numbers.items() if v is not None} == pytest.approx(measured)
    assert again[2].numbers["seconds"] == 1.5
    assert again[2].numbers["landmarks_mm_mean"] == pytest.approx(again[0].numbers["landmarks_mm_mean"])


def test_other_settings_are_other_cells(one, tmp_path):
    case, method = one[0], Fake("zero")
    paths = {
        CellStore(tmp_path, 1).path(case, "fake", method),
        CellStore(tmp_path, 2).path(case, "fake", method),
        CellStore(tmp_path, 1).path(case, "fake", Fake("wrong")),
        CellStore(tmp_path, 1).path(cases("phantom", [6], (24, 20, 18), 2)[0], "fake", method),
        CellStore(tmp_path, 1).path(cases("phantom", [6], (24, 20, 16), 3)[0], "fake", method),
        CellStore(tmp_path, 1).path(replace(case, name="other"), "fake", method),
    }
    assert len(paths) == 6 and CellStore(tmp_path, 1).path(case, "fake", method) in paths


def test_failed_cells_are_repeated_and_timeouts_with_a_longer_limit(one, runs, tmp_path):
    store, methods = CellStore(tmp_path, 1), {"late": Fake("sleeping"), "bad": Fake("wrong")}
    for limit in (60, 60, 30, 90):
        late, bad = fill(one, methods, store, limit, lambda line: None)[2:]
    assert runs.count("sleeping") == 2 and runs.count("wrong") == 4
    assert late.status == "over the time limit of 90 s" and bad.status == "failed: of no use"


def test_a_cell_without_its_arrays_is_not_finished(one, runs, tmp_path):
    """The process may be killed between the two files; the JSON is written last."""
    store = CellStore(tmp_path, 1)
    fill(one, {"fake": Fake("zero")}, store, 60, lambda line: None)
    store.path(one[0], "fake", Fake("zero")).unlink()
    fill(one, {"fake": Fake("zero")}, store, 60, lambda line: None)
    assert runs == ["zero", "zero"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "limit_s", "status"),
    [
        ("zero", 300, "ok"),
        ("missing", 300, "not installed: nothing; pip install nothing"),
        ("crashing", 300, "failed: ended with code 7; see fake.log"),
        ("wrong", 300, "failed: of no use at all; see fake.log"),
        ("not_finite", 300, "failed: the field is not finite"),
        ("sleeping", 3, "over the time limit of 3 s"),
    ],
)
def test_a_separate_process_reports_its_status(one, tmp_path, kind, limit_s, status):
    series, log = one[0].load(), tmp_path / "fake.log"
    threads = os.environ.get("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    started = time.monotonic()
    outcome = register(Fake(kind), series, tmp_path, log, limit_s, 1)
    assert outcome.status == status
    assert os.environ.get("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS") == threads
    if kind == "zero":
        assert outcome.fields[0].shape == (2, 3, 24, 20, 16) and not outcome.fields[0].any()
        assert 0 <= outcome.cost["processor_seconds"] and outcome.cost["peak_memory_gb"] > 0.05
    if kind == "wrong":
        assert "ValueError: of no use" in log.read_text(encoding="utf-8")
    if kind == "sleeping":
        assert time.monotonic() - started < 300
