import itk
import numpy as np
import pytest

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.data.reading import readers
from groupmorph_monai.workflow import cost

LEVELS = "1/2 of the resolution (at most 6 steps), full resolution (at most 6 steps)"


def test_it_tells_grids_steps_memory_time_and_files_and_writes_nothing(series, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["register", *series[:3], "--output", str(output), "--dry-run", "--spacing-mm", "2", "--jacobian"]
    assert main(arguments) == 0
    printed = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["output grid"].split() == "28 x 24 x 20 voxels of 1 x 1 x 1.2 mm".split()
    assert printed["working grid"].split() == "15 x 13 x 13 voxels of 2 x 2 x 2 mm".split()
    assert printed["refinement"].split() == LEVELS.split()
    assert "jacobian_00 to 02.nii.gz" in printed["files"] and "std_mm" not in printed["files"]
    assert {"scans", "memory"} <= set(printed) and not output.exists()
    assert "s of processor time" in printed["time"] and "more if scans are far apart" in printed["time"]


def test_it_names_the_files_that_are_then_written(series, tmp_path, capsys):
    options = [
        "--fields",
        "none",
        "--transforms",
        "--sequence",
        "--bids-names",
        "--std",
        "2",
        "--no-refine",
        "--initial",
        "none",
    ]
    arguments = ["register", *series[:2], "--output", str(tmp_path / "out"), *options]
    assert main([*arguments, "--dry-run"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("files:"))
    names = printed.removeprefix("files:").rsplit(" in ", 1)[0].split(",")
    printed = {name.strip().replace("00 to 01", number) for name in names for number in ("00", "01")}
    assert main(arguments) == 0
    assert printed == {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_dicom_of_a_series_that_was_none_is_refused(options, series, tmp_path, capsys):
    assert main(["register", *series[:2], "--output", str(tmp_path / "out"), "--dicom", *options]) == 2
    assert "--dicom: expected a series that was read from DICOM" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_too_little_memory_ends_in_one_line_before_anything_is_written(options, series, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 0.1)
    output = tmp_path / "out"
    assert main(["register", *series[:3], "--output", str(output), "--quiet", *options]) == 2
    assert capsys.readouterr().err.startswith("groupmorph: memory: expected ") and not output.exists()


@pytest.mark.parametrize("ending, options", [("nii.gz", []), ("nrrd", ["--dry-run"])])
def test_hundreds_of_scans_are_refused_by_their_headers(ending, options, tmp_path, capsys, monkeypatch):
    data = np.random.default_rng(0).integers(0, 9, (24, 20, 16)).astype(np.int16)
    scan = tmp_path / f"scan.{ending}"
    itk.imwrite(itk.image_from_array(data.T.copy()), str(scan))
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 0.7)
    monkeypatch.setattr(readers, "_load", lambda *arguments: pytest.fail("an image was read"))
    assert main(["register", *[str(scan)] * 300, "--output", str(tmp_path / "out"), *options]) == 2
    assert "GB for 300 scans on 24 x 20 x 16 voxels of 1 mm, got 0.7 GB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_more_draws_than_memory_or_sense_are_refused(series, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["register", *series[:2], "--output", str(tmp_path / "out"), "--std", "1000000", "--dry-run"])
    assert "--std" in capsys.readouterr().err
