"""A user's mistake: one line that names file and cure, exit code 2, and nothing left behind."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import run

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.input_errors import find_input_error
from groupmorph_monai.networks import MomentumNet

REPOSITORY = Path(__file__).parents[2]


def save(path, data, affine=None):
    nibabel.save(nibabel.Nifti1Image(np.asarray(data, dtype=np.float32), np.eye(4) if affine is None else affine), path)
    return str(path)


def missing(series, folder):
    return [*series[:5], str(folder / "absent.nii.gz")], "absent.nii.gz"


def truncated(series, folder):
    (folder / "half.nii.gz").write_bytes(Path(series[0]).read_bytes()[:2000])
    return [*series[:5], str(folder / "half.nii.gz")], "half.nii.gz"


def no_image(series, folder):
    (folder / "notes.txt").write_text("not an image\n", encoding="utf-8")
    return [*series[:5], str(folder / "notes.txt")], "notes.txt"


def one_timepoint(series, folder):
    return series[:1], "one timepoint"


def apart(series, folder):
    first = nibabel.load(series[0])
    away = first.affine.copy()
    away[:3, 3] = 1000
    return [*series[:5], save(folder / "far.nii.gz", first.get_fdata(), away)], "far.nii.gz"


def not_a_number(series, folder):
    data = nibabel.load(series[0]).get_fdata()
    data[3, 3, 3] = np.nan
    return [*series[:5], save(folder / "nan.nii.gz", data)], "nan.nii.gz"


def constant(series, folder):
    return [*series[:5], save(folder / "flat.nii.gz", np.ones((28, 24, 20)))], "flat.nii.gz"


CASES = [missing, truncated, no_image, one_timepoint, apart, not_a_number, constant]


def check_line(error, names):
    """One line of ours, which names what is wrong, and no traceback."""
    (line,) = [line for line in error.splitlines() if line.startswith("groupmorph: ")]
    assert names in line
    assert "Traceback" not in error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_series(case, series, tmp_path, capfd):
    files, names = case(series, tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "warped.nii.gz").write_text("an earlier result", encoding="utf-8")
    assert main(["register", *files, "--output", str(tmp_path / "out")]) == 2
    check_line(capfd.readouterr().err, names)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["warped.nii.gz"]
    assert (tmp_path / "out" / "warped.nii.gz").read_text(encoding="utf-8") == "an earlier result"


def test_an_output_that_cannot_be_a_folder(series, tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["register", *series, "--output", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_reference_that_there_is_not(series, tmp_path, capsys):
    assert main(["register", *series[:2], "--output", str(tmp_path), "--reference", "9"]) == 2
    assert "timepoints" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_mask_that_nothing_would_look_at(series, tmp_path, capsys):
    assert (
        main(["register", *series, "--output", str(tmp_path), "--no-refine", "--initial", "none", "--mask", series[0]])
        == 2
    )
    assert "--mask" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting, names", [("std_draws=-3", "std_draws"), ("passes=0", "passes")])
def test_a_number_below_what_it_can_be(setting, names, series, tmp_path, capsys):
    assert main(["register", *series, "--output", str(tmp_path), "--set", setting]) == 2
    assert f"groupmorph: --set {names}: expected" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_papers_network_takes_its_own_number_of_timepoints_alone(series, tmp_path):
    configs = REPOSITORY / "bundle" / "configs"
    with pytest.raises(RuntimeError) as raised:
        run(
            "inference", config_file=[str(configs / f"{name}.yaml") for name in ("inference", "models/groupmorph")],
            bundle_root=str(REPOSITORY / "bundle"), series=series[:4], output_dir=str(tmp_path / "out"),
        )  # fmt: skip
    assert "expected 6 timepoints" in str(find_input_error(raised.value))


def test_a_setting_without_a_value_and_a_dataset_that_is_none(tmp_path, capsys):
    train = ["train", "--phantoms", "--output", str(tmp_path)]
    assert main([*train, "--set", "learning_rate"]) == 2
    assert "--set: expected NAME=VALUE" in capsys.readouterr().err
    assert main([*train, "--set", "max_iterations=abc"]) == 2
    assert "--set max_iterations: expected a whole number" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*train, "--iterations", "0"])
    assert "groupmorph: --iterations: expected a whole number from 1" in capsys.readouterr().err
    assert main(["evaluate", "--dataset", str(tmp_path / "absent"), "--output", str(tmp_path)]) == 2
    assert "absent" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case", [missing, pytest.param(one_timepoint, marks=pytest.mark.slow)], ids=lambda case: case.__name__
)
def test_the_bundle_command_answers_in_one_line_too(case, series, tmp_path):
    files, names = case(series, tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference"]
    command += [
        "--config_file",
        "bundle/configs/inference.yaml",
        "--series",
        str(files),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    check_line(done.stderr, names)
    assert "Traceback" not in done.stdout
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_an_unknown_overlay_is_named_with_those_that_there_are(series, tmp_path, capsys):
    assert main(["register", *series, "--output", str(tmp_path), "--overlay", "data/lungs"]) == 2
    assert re.fullmatch(
        r"groupmorph: --overlay: expected one of .*data/lung_ct.*; got 'data/lungs'\n", capsys.readouterr().err
    )


def test_weights_of_another_model_and_weights_that_there_are_not(series, tmp_path, capsys):
    weights, out = tmp_path / "avsm.pt", tmp_path / "out"
    assert main(["register", *series[:2], "--output", str(out), "--weights", str(weights)]) == 2
    assert f"groupmorph: weights: {weights}: expected a file, found none" in capsys.readouterr().err
    torch.save(MomentumNet().state_dict(), weights)
    assert main(["register", *series[:2], "--output", str(out), "--weights", str(weights)]) == 2
    assert "groupmorph: weights: expected weights of a GroupSetVAE" in capsys.readouterr().err
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.ELOOP])
def test_a_path_that_the_system_refuses_is_no_internal_error(code):
    error = OSError(code, os.strerror(code), "scans/t0.nii.gz")
    assert str(find_input_error(error)).startswith(
        f"scans/t0.nii.gz: expected a path that can be used, got {error.strerror}"
    )
    assert find_input_error(OSError(errno.EIO, "input/output error", "scans/t0.nii.gz")) is None
