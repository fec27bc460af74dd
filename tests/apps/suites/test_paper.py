"""The complete command on a small phantom is killed midway, resumes, and writes the page."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.suites.paper import table_method
from groupmorph_monai.benchmarks.paper.cases import cases
from groupmorph_monai.benchmarks.paper.cells import Cell
from groupmorph_monai.benchmarks.paper.methods import METHODS
from groupmorph_monai.benchmarks.program import PairwiseProgram, Program
from groupmorph_monai.evaluation.metrics import landmark_distances_mm
from groupmorph_monai.space import ScalingAndSquaring
from groupmorph_monai.space.transforms import ComposedTransform

SIZE = (32, 28, 24)
PATIENCE_S = 1200  # a guard against hanging alone


def start(folder):
    command = [sys.executable, "-m", "groupmorph_monai.apps", "benchmark", "paper", "--seeds", "6"]
    command += ["--size", *map(str, SIZE), "--timepoints", "2", "--output", str(folder), "--against", "set-one-pass"]
    command += ["--methods", "demons", "elastix-default", "set-one-pass"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.getcwd()})


def files_of(folder, method):
    return list((folder / "cells").glob(f"phantom_6--{method}--*.json"))


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    run, deadline = start(tmp_path), time.monotonic() + PATIENCE_S
    while not files_of(tmp_path, "elastix-default") and time.monotonic() < deadline:
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.2)
    run.send_signal(signal.SIGKILL)
    run.wait()
    (finished,) = files_of(tmp_path, "elastix-default")
    assert not files_of(tmp_path, "demons") and not (tmp_path / "paper.md").exists()
    stamp = finished.stat().st_mtime_ns

    assert start(tmp_path).wait(PATIENCE_S) == 0
    assert files_of(tmp_path, "elastix-default") == [finished] and finished.stat().st_mtime_ns == stamp
    with open(tmp_path / "paper.csv", encoding="utf-8", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["none", "truth", "elastix-default", "demons", "set-one-pass"]
    series = cases("phantom", [6], SIZE, 2)[0].load()
    true = float(landmark_distances_mm(series["landmarks_mm"], [ComposedTransform()] * 2).mean())
    distance = {name: float(row["landmarks_mm_mean"]) for name, row in rows.items()}
    assert distance["none"] == pytest.approx(true, rel=1e-5)
    assert distance["truth"] < 0.02
    for name in ("elastix-default", "demons", "set-one-pass"):
        assert rows[name]["status"] == "ok" and distance[name] < 0.9 * distance["none"]
        assert 0 < float(rows[name]["processor_seconds"]) and 0.05 < float(rows[name]["peak_memory_gb"]) < 4
    page = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert "(kept)" in (tmp_path / "paper.log").read_text(encoding="utf-8") and "| GroupMorph-set, one pass |" in page


def test_rows_are_what_their_names_say():
    methods = {name: table_method(name) for name in METHODS}
    ours = {name: method for name, method in methods.items() if isinstance(method, Program)}
    assert set(ours) == {name for name, row in METHODS.items() if row.ours}
    pair_wise = {name for name, method in ours.items() if isinstance(method, PairwiseProgram)}
    assert pair_wise == {name for name in ours if not METHODS[name].group_wise}
    weights = {name: os.path.basename(program.method.weights) for name, program in ours.items()}
    assert {weights[name].split("_")[0].split(".")[0] for name in pair_wise} == {"voxelmorph"}
    assert weights["groupmorph-all-diff"] == "groupmorph.pt" and weights["voxelmorph-diff"] == "voxelmorph.pt"
    for name, program in ours.items():
        inferer = program.method.parts()[0] if os.path.isfile(program.method.weights) else None
        if inferer is None:
            continue
        assert (inferer.refinement is not None) == (name == "set-refined")
        velocity = isinstance(inferer.transformation, ScalingAndSquaring)
        assert velocity == (name.endswith("-diff") or name.startswith("set-"))
        one = type(inferer.alignment).__name__ == "ReferenceAlignment"
        assert one == ("-one" in name and not name.startswith("set-") or name.startswith("voxelmorph"))


def test_time_is_measured_on_growing_phantoms(monkeypatch, tmp_path):
    drawn = []

    def fill(series, methods, *arguments):
        seconds = {"seconds": float(series[0].load()["image"].numel())}
        none, failed = Cell(series[0].name, "none", "ok", {}, {}), Cell(series[0].name, "greedy", "failed", {}, {})
        return [none, failed, *(Cell(series[0].name, name, "ok", seconds, {}) for name in methods)]

    def write_page(cells, rows, output, against, settings, scaling):
        drawn.extend(scaling)
        (output / "paper.md").touch()
        return output / "paper.md"

    monkeypatch.setattr("groupmorph_monai.benchmarks.paper.cells.fill", fill)
    monkeypatch.setattr("groupmorph_monai.benchmarks.paper.page.write_page", write_page)
    options = ["--methods", "demons", "--seeds", "1", "--size", "32", "24", "20", "--timepoints", "2", "--scaling"]
    assert main(["benchmark", "paper", *options, "--output", str(tmp_path)]) == 0
    sizes = [(6, 16 * 16 * 16), (6, 20 * 16 * 16), *((timepoints, 32 * 24 * 20) for timepoints in (6, 2, 4, 6))]
    assert [row["seconds"] for row in drawn] == [timepoints * voxels for timepoints, voxels in sizes]
    ats = [*(voxels for _, voxels in sizes[:3]), 2, 4, 6]
    assert [(row["axis"], row["at"]) for row in drawn] == list(zip(["voxels"] * 3 + ["timepoints"] * 3, ats))
    assert {row["method"] for row in drawn} == {"demons"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "8", "32", "32"], "--size: expected a whole number from 16"),
        (["--timepoints", "1"], "--timepoints: expected a whole number from 2"),
        (["--threads", "0"], "--threads: expected a whole number from 1"),
        (
            ["--methods", "set-refined", "--against", "demons"],
            "--against: expected one of --methods, got demons; add it to",
        ),
    ],
)
def test_an_option_out_of_its_range_is_refused(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["benchmark", "paper", *options])
    except SystemExit as left:
        code = left.code
    assert code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())
