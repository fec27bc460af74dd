"""Series are checked before workers start, and the table equals that of a single process."""

import csv
import os
import shutil
from pathlib import Path

import pytest
from json_files import write_json

from groupmorph_monai.apps.cohort import evaluations
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.data.writing.output_folder import release_all
from groupmorph_monai.evaluation.metrics_table import write_metrics

EVALUATE = ("evaluate", "--shard", "1/1", "--dataset", "study", "--output", "out")


@pytest.fixture
def study(series, tmp_path, monkeypatch):
    """Three series of two scans with landmarks."""
    for name in "abc":
        (tmp_path / "study" / name).mkdir(parents=True)
        for file in map(Path, series[:2]):
            shutil.copy(file, tmp_path / "study" / name)
            shutil.copy(file.with_name(f"landmarks_{file.name[1:3]}.csv"), tmp_path / "study" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "study"


def jobs(monkeypatch, *options):
    """Return the jobs of an evaluation without running them."""
    studies = []
    monkeypatch.setattr(evaluations, "run_study", lambda args, study: studies.append(study) or 0)
    assert main([*EVALUATE, *options]) == 0
    return {job["name"]: job for job in studies[-1].jobs}


def test_a_job_depends_on_the_files_of_its_series_and_on_the_options(study, monkeypatch):
    first = jobs(monkeypatch)
    assert list(first) == ["a", "b", "c"] and first["a"]["files"] == [str(study / "a")]
    os.utime(study / "b" / "landmarks_01.csv", (1, 1))
    changed = jobs(monkeypatch, "--device", "cpu", "--threads", "2")
    assert [name for name in first if changed[name]["inputs"] != first[name]["inputs"]] == ["b"]
    assert all(changed[name]["settings"] == first[name]["settings"] for name in first)
    for options in (["--set", "noise=0.1"], ["--overlay", "effort/fast"], ["--spacing-mm", "2"]):
        assert jobs(monkeypatch, *options)["a"]["settings"] != first["a"]["settings"], options


def test_a_name_that_is_a_path_becomes_a_folder_name(study, monkeypatch):
    names = [{}, *({"name": name} for name in ("../p 1/scan", "$p", "é.", "x" * 200, "ä" * 130))]
    scans = [["a/t00.nii.gz", f"{folder}/t{k}.nii.gz"] for folder in "ab" for k in ("00", "01")] + ["c", "b"]
    entries = [{"image": image, **name} for image, name in zip(scans, names)]
    write_json(study / "dataset.json", {"training": entries})
    assert list(jobs(monkeypatch)) == ["a_t00.nii.gz", "p 1_scan", "p", "é", "x" * 150, "ä" * 100]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"image": ["a/t00.nii.gz", "gone.nii.gz"]}], ["a/t00.nii.gz: scans: expected a file", "gone.nii.gz"]),
        ([{"image": ["a/t00.nii.gz"]}], ["scans: expected at least two scans, got one"]),
        ([{"image": "a", "landmarks": ["gone.csv"]}], ["a: landmarks: expected a file", "gone.csv"]),
        ([{"image": "a", "labels": ["gone.nii"]}], ["a: labels: expected a file", "gone.nii"]),
        ([{"image": "a", "name": "P/1"}, {"image": "b", "name": "p_1"}], ["'P/1' and 'p_1'; rename one"]),
        ([{"image": "a", "name": "???"}], ["???: name: expected a folder name"]),
        ([{"image": "."}], ["expected"]),
    ],
)
def test_series_are_checked_before_anything_starts(entries, words, study, refused):
    write_json(study / "dataset.json", {"validation": entries})
    refused(EVALUATE, *words)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "absent.pt"], "weights: absent.pt: expected a file"),
        (["--overlay", "models/time_dependent"], "no weights ship"),
        (["--overlay", "modes/sample"], "expected an overlay for evaluate"),
        (["--set", "held_out=d"], "held_out"),
        (["--set", "noise=-1"], "noise"),
        (["--overlay", "modes/all_to_one", "--set", "reference=2"], "a: reference: expected one of the series' 2"),
    ],
)
def test_options_are_checked_before_anything_starts(options, words, study, refused):
    refused([*EVALUATE, *options], words)
    assert not Path("out").exists()


def test_results_are_not_written_among_the_series(study, refused):
    refused([*EVALUATE[:-1], "study"], "--output: expected a folder outside --dataset")
    os.renames("study", "out/evaluation")
    refused([*EVALUATE[:3], "--dataset", "out/evaluation"], "--output: expected a folder outside --dataset")


@pytest.fixture
def metrics(monkeypatch):
    """Metrics by the name of the series, written instead of measured ones; a series without metrics fails."""
    metrics = {"a": {"landmark_after_mm_mean": 1.0, "nmi_after": float("nan")}, "b": {"landmark_after_mm_mean": 2.0}}

    def process(args, study, jobs, log):
        for job in jobs:
            status = {name: job[name] for name in ("name", "inputs", "settings")}
            if job["name"] in metrics:
                folder = study.cohort.series(job["name"])
                folder.mkdir(parents=True)
                write_metrics(folder, [{"series": job["name"], **metrics[job["name"]], "seconds": 3.0}])
                state = {**status, "state": "finished"}
                write_json(folder / "status.json", state)
            else:
                study.cohort.write_failure({**status, "state": "failed", "error": "c: broken"})

    monkeypatch.setattr("groupmorph_monai.apps.cohort.study._process", process)
    return metrics


def test_the_table_has_the_series_that_were_measured_and_the_page_the_worst_first(study, metrics, capsys):
    assert main(EVALUATE) == 3
    release_all()
    assert "1 failed, 0 waiting, 2 finished" in capsys.readouterr().out
    with open("out/metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["series", "landmark_after_mm_mean", "nmi_after", "seconds"],
        ["a", "1.0", "nan", "3.0"],
        ["b", "2.0", "", "3.0"],
        ["mean", "1.5", "nan", "3.0"],
    ]
    page = Path("out/evaluation/cohort.html").read_text(encoding="utf-8")
    places = [page.index(f">{name}<") for name in "cba"]
    assert places == sorted(places) and "c: broken" in page
    table = Path("out/evaluation/cohort.tsv").read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[:2] for line in table[1:]] == [["a", "finished"], ["b", "finished"], ["c", "failed"]]


def test_an_older_table_does_not_stay_if_all_series_fail(study, metrics, capsys):
    assert main(EVALUATE) == 3 and sorted(os.listdir("out")) == ["evaluation", "metrics.csv", "metrics.json"]
    metrics.clear()
    assert main([*EVALUATE, "--set", "noise=0.1"]) == 3 and os.listdir("out") == ["evaluation"]
    release_all()
    assert "3 failed, 0 waiting, 0 finished" in capsys.readouterr().out
