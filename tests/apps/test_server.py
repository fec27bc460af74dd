"""A result of a cohort is on the disk, whole, before it takes its name."""

import os

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
