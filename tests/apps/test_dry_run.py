from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.data.reading import readers
from groupmorph_monai.workflow import cost

LEVELS = "1/2 of the resolution (at most 6 steps), full resolution (at most 6 steps)"


def test_description(series, tmp_path, capsys):
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


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_spacing_that_leaves_too_few_voxels_is_refused(options, series, refused):
    command = ["register", *series[:2], "--output", "out", "--spacing-mm", "20", *options]
    refused(command, "spacing_mm: expected one that leaves 4 voxels", "got 20", "choose less than")


def test_the_share_of_the_mask(series, tmp_path, capsys):
    scan = nib.load(series[1])
    inside = np.zeros(scan.shape, np.uint8)
    inside[:14] = 1  # of 28
    nib.save(nib.Nifti1Image(inside, scan.affine), tmp_path / "half.nii.gz")
    command = ["register", *series[:2], "--output", "out", "--dry-run", "--reference", "1", "--mask"]
    assert main([*command, str(tmp_path / "half.nii.gz")]) == 0
    assert "mask: 50 % of scan 1" in " ".join(capsys.readouterr().out.split())


def test_files_are_those_that_a_run_writes(series, tmp_path, capsys):
    options = "--fields none --transforms --sequence --bids-names --std 2 --no-refine --initial none".split()
    arguments = ["register", *series[:2], "--output", str(tmp_path / "out"), *options]
    assert main([*arguments, "--dry-run"]) == 0
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("files:"))
    names = printed.removeprefix("files:").rsplit(" in ", 1)[0].split(",")
    printed = {name.strip().replace("00 to 01", number) for name in names for number in ("00", "01")}
    assert main(arguments) == 0
    assert printed == {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_dicom_of_other_files_is_refused(options, series, refused):
    command = ["register", *series[:2], "--output", "out", "--dicom", *options]
    refused(command, "--dicom: expected a series that was read from DICOM")


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_too_little_memory_is_refused(options, series, refused, monkeypatch):
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 0.1)
    refused(["register", *series[:3], "--output", "out", "--quiet", *options], "groupmorph: memory: expected ")
    assert not Path("out").exists()


@pytest.mark.parametrize("ending, options", [("nii.gz", []), ("nrrd", ["--dry-run"])])
def test_hundreds_of_scans_are_refused_by_their_headers(ending, options, tmp_path, refused, monkeypatch):
    data = np.random.default_rng(0).integers(0, 9, (24, 20, 16)).astype(np.int16)
    scan = tmp_path / f"scan.{ending}"
    itk.imwrite(itk.image_from_array(data.T.copy()), str(scan))
    monkeypatch.setattr(cost, "available_memory_gb", lambda: 0.7)
    monkeypatch.setattr(readers, "_load", lambda *arguments: pytest.fail("an image was read"))
    command = ["register", *[str(scan)] * 300, "--output", "out", *options]
    refused(
        command,
        "GB for 300 scans of up to 24 x 20 x 16 voxels (timepoint 0) on 24 x 20 x 16 voxels of 1 mm, got 0.7 GB",
    )
    assert not Path("out").exists()
