"""A result of a cohort is complete and flushed to the disk before it is moved into place."""

import os
import shutil

import pytest
from faults import KILLED, at_every_call, kill
from json_files import read_json, write_json

from groupmorph_monai.apps.cohort import server
from groupmorph_monai.apps.cohort.folders import CohortFolder
from groupmorph_monai.apps.cohort.server import complete, publish
from groupmorph_monai.data.writing import replacement


def test_all_files_are_flushed_before_a_result_has_its_name(tmp_path, monkeypatch):
    made, target = tmp_path / "result", tmp_path / "series" / "p01"
    (made / "dicom").mkdir(parents=True)
    (made / "dicom" / "1.dcm").write_text("x", encoding="utf-8")
    flushed = []

    def sync(*paths):
        flushed.extend(os.path.relpath(path, made) for path in paths if not target.exists())

    monkeypatch.setattr(replacement, "sync", sync)
    publish(made, {"state": "finished"}, target)
    assert sorted(flushed) == [".", "dicom", "dicom/1.dcm", "status.json"]
    assert (target / "dicom" / "1.dcm").exists()


def test_a_kill_leaves_the_earlier_result_or_the_new_one(tmp_path):
    made, target = tmp_path / ".work" / "p01", tmp_path / "series" / "p01"

    def write(text):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        (made / "text").write_text(text, encoding="utf-8")
        publish(made, {"state": "finished"}, target)

    write("old")
    ends, texts = [], []
    for end in at_every_call(lambda: write("new"), kill):
        ends.append(end)
        texts.append((target / "text").read_text(encoding="utf-8"))
    assert {*ends} == {0, KILLED} and {*texts} == {"old", "new"} and texts == sorted(texts, reverse=True)


def test_a_kill_among_files_of_the_user_leaves_no_mixture(tmp_path):
    """A sub-folder of the user's own keeps the folders from being exchanged, so that files are moved one by one."""
    made, target = tmp_path / ".work" / "p01", tmp_path / "series" / "p01"
    names = ("report.json", "warped.nii.gz")

    def write(text):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for name in names:
            (made / name).write_text(text, encoding="utf-8")
        complete(target)
        publish(made, {"state": text}, target)

    write("old")
    (target / "notes").mkdir()
    (target / "notes" / "mine").touch()
    ends, states = [], []
    for end in at_every_call(lambda: write("new"), kill):
        ends.append(end)
        status = target / "status.json"
        states.append(read_json(status)["state"] if status.exists() else None)
        CohortFolder(tmp_path).check_results(["p01"])
        if states[-1]:
            assert {(target / name).read_text(encoding="utf-8") for name in names} == {states[-1]}
        assert (target / "notes" / "mine").exists()
    assert {*ends} == {0, KILLED} and {*states} == {"old", None, "new"}


@pytest.fixture
def attempts(monkeypatch):
    """Names of the files of each attempt; None for one that fails. They are written instead of a registration."""
    attempts = []

    def attempt(job, folder):
        names = attempts.pop(0)
        (folder / "logs" / "log.txt").touch()
        (folder / "logs" / "groupmorph-1.log").touch()
        (folder / "result").mkdir()
        for name in names or ():
            (folder / "result" / name).write_text("new", encoding="utf-8")
        write_json(folder / "result" / "report.json", {"files": names})
        return {"state": "failed" if names is None else "finished", **{key: job[key] for key in ("inputs", "settings")}}

    monkeypatch.setattr(server, "_attempt", attempt)
    return attempts


@pytest.mark.parametrize("folder", [None, "drawn"])
def test_files_of_the_user_stay_when_a_series_is_run_again(folder, attempts, tmp_path):
    job = {"name": "p01", "inputs": "1", "settings": "s", "output": str(tmp_path)}
    attempts += [["warped.nii.gz", "ddf_00.nii.gz"], None, ["warped.nii.gz", "ddf_01.nii.gz"]]
    server.process_series(job)
    cohort = CohortFolder(tmp_path)
    server.process_series({**job, "inputs": "2"})
    for target in (cohort.series("p01"), cohort.failed("p01")):
        (target / "mask.nii.gz").write_text("mine", encoding="utf-8")
        if folder:
            (target / folder).mkdir()
    own = {"mask.nii.gz", folder} - {None}
    assert {*os.listdir(cohort.failed("p01"))} == {"groupmorph-1.log", "log.txt", "status.json", *own}
    server.process_series({**job, "inputs": "3"})
    assert {*os.listdir(cohort.failed("p01"))} == own
    written = {"ddf_01.nii.gz", "report.json", "status.json", "warped.nii.gz"}
    assert {*os.listdir(cohort.series("p01"))} == written | own
    assert (cohort.series("p01") / "mask.nii.gz").read_text(encoding="utf-8") == "mine"


def test_only_the_logs_of_the_last_failure_stay(attempts, tmp_path):
    job = {"name": "p01", "inputs": "1", "settings": "s", "output": str(tmp_path)}
    attempts += [None, None, ["warped.nii.gz"]]
    server.process_series(job)
    failed = CohortFolder(tmp_path).failed("p01")
    os.rename(failed / "groupmorph-1.log", failed / "groupmorph-0.log")
    server.process_series(job)
    assert sorted(os.listdir(failed)) == ["groupmorph-1.log", "log.txt", "status.json"]
    server.process_series(job)
    assert not failed.exists()
