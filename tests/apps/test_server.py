"""A result of a cohort is complete and flushed to the disk before it is moved into place."""

import os
import shutil

from faults import KILLED, at_every_call, kill

from groupmorph_monai.apps.cohort.server import publish
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
