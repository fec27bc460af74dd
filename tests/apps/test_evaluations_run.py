"""An evaluation on workers, one of which is killed, writes the table of a single process."""

import csv
import os
import shutil

import numpy as np
import pytest
from json_files import read_json

from groupmorph_monai.data import make_phantom

pytest.importorskip("psutil")
pytest.importorskip("distributed")
from worker_runs import (  # noqa: E402 - needs psutil
    PATIENCE_S,
    kill_a_worker_and_the_command,
    kill_with_its_servers,
    start,
    wait_for,
)

pytestmark = pytest.mark.slow
NUMBER, BROKEN = 10, "p04"
OPTIONS = ("--overlay", "effort/no_refine", "--set", "initial_alignment=none", "--threads", "1")


@pytest.fixture
def study(save_series, tmp_path):
    """A folder of small series with landmarks, and the same folder with a broken series too."""
    for n in range(NUMBER):
        phantom = make_phantom(n, size=(18, 16, 14), timepoints=2, max_motion_voxels=2, landmarks=3)
        noise = np.random.default_rng(n).normal(0, 3, phantom["image"].shape).astype("float32")
        folder = tmp_path / "all" / f"p{n:02d}"
        folder.mkdir(parents=True)
        save_series({**phantom, "image": phantom["image"] + noise}, folder)
    shutil.copytree(tmp_path / "all", tmp_path / "whole", ignore=shutil.ignore_patterns(BROKEN))
    scan = tmp_path / "all" / BROKEN / "t01.nii.gz"
    scan.write_bytes(scan.read_bytes()[:1500])
    return tmp_path


def evaluate(dataset, output, *options):
    words = ("evaluate", "--dataset", str(dataset), "--output", str(output), *OPTIONS, *options)
    return start(f"{output}.log", "groupmorph_monai.apps", *words)


def rows(output):
    """Read the table without the seconds, which differ between runs."""
    with open(output / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def finished(output):
    """Return the time at which each finished series was measured."""
    folders = (output / "evaluation" / "series").glob("*")
    return {folder.name: (folder / "status.json").stat().st_mtime_ns for folder in folders}


def test_an_evaluation_killed_at_several_moments_makes_the_same_table(study):
    one, output = study / "one", study / "killed"
    assert evaluate(study / "whole", one).wait(timeout=PATIENCE_S) == 0
    for number in (0, 1, 5):  # the first kill comes while it starts
        process = evaluate(study / "whole", output)
        wait_for(lambda number=number: len(list((output / ".measured").glob("*.json"))) >= number, process, output)
        kill_with_its_servers(process)
    assert evaluate(study / "whole", output).wait(timeout=PATIENCE_S) == 0
    assert rows(output) == rows(one)
    assert sorted(os.listdir(output)) == sorted(os.listdir(one)) == ["metrics.csv", "metrics.json"]


def test_killed_workers_and_a_killed_command_change_nothing(study):
    one, output = study / "one", study / "workers"
    assert evaluate(study / "whole", one).wait(timeout=PATIENCE_S) == 0
    process = evaluate(study / "all", output, "--workers", "2")
    kill_a_worker_and_the_command(process, output, finished, 2, 4)
    before = finished(output)
    assert 4 <= len(before) < NUMBER - 1 and not (output / "metrics.csv").exists()

    assert evaluate(study / "all", output, "--workers", "2").wait(timeout=PATIENCE_S) == 3
    after = finished(output)
    assert {name: after[name] for name in before} == before  # nothing was measured twice
    assert len(after) == NUMBER - 1 and rows(output) == rows(one)
    failed = read_json(output / "evaluation" / "failed" / BROKEN / "status.json")
    assert "t01.nii.gz: expected a complete image" in failed["error"] and failed["attempt"] == 2
    assert sorted(os.listdir(output / "evaluation")) == ["cohort.html", "cohort.log", "cohort.tsv", "failed", "series"]

    shutil.copytree(study / "whole" / "p00", study / "all" / BROKEN, dirs_exist_ok=True)
    for shard in ("1/2", "2/2"):  # of which one has nothing to do
        process = evaluate(study / "all", output, "--shard", shard)
        assert process.wait(timeout=PATIENCE_S) == 0
    assert len(rows(output)) == NUMBER + 1 and not (output / "evaluation" / "failed" / BROKEN).exists()
