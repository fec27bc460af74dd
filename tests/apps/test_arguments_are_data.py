"""Arguments and file names are never evaluated or resolved as references by MONAI's ConfigParser."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from json_files import read_json
from monai.bundle import ConfigParser, ConfigWorkflow

from groupmorph_monai.apps import commands, run
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.workflow import literal

SIGNS = [
    "$__import__('pathlib').Path('pwned').touch()", "@weights", "@series", "@none", "%run", "%inference#run", "a#1",
    "#", "a@#b", "50%#b", "a::b", "$", "_target_", "$import os", "null", "[1, 2]", "a~b", "{}",
]  # fmt: skip


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """Record the parsed values of a run's config by name."""
    values = {}

    class Recorded(ConfigWorkflow):
        def initialize(self):
            self.parser.parse()

        def run(self):
            self.parser.globals.clear()
            for name in NAMES:
                if name in self.parser:
                    values[name] = self.parser.get_parsed_content(name)

    monkeypatch.setattr(run, "ConfigWorkflow", Recorded)
    monkeypatch.setattr(run, "check_dataset", lambda *arguments, **options: None)
    monkeypatch.setattr(run, "read_weights", lambda path: None)
    monkeypatch.setattr(commands, "print_verdict", lambda folder, quiet: None)
    monkeypatch.chdir(tmp_path)
    return values


NAMES = ("series", "mask", "donor", "output_dir", "weights", "dataset_dir", "bundle_root", "sample_seed")
OPTIONS = {
    "register FILES": (["register", "{}", "--output", "out"], "series", [True]),
    "register --output": (["register", "scans", "--output", "{}"], "output_dir", False),
    "register --weights": (["register", "scans", "--output", "out", "--weights", "{}"], "weights", False),
    "register --mask": (["register", "scans", "--output", "out", "--mask", "{}"], "mask", [True]),
    "evaluate --dataset": (["evaluate", "--dataset", "{}", "--output", "out"], "dataset_dir", False),
    "evaluate --output": (["evaluate", "--phantoms", "--output", "{}"], "output_dir", False),
    "evaluate --weights": (["evaluate", "--phantoms", "--output", "out", "--weights", "{}"], "weights", False),
    "train --dataset": (["train", "--dataset", "{}", "--output", "out"], "dataset_dir", False),
    "train --output": (["train", "--phantoms", "--output", "{}"], "output_dir", False),
    "train --weights": (["train", "--phantoms", "--output", "out", "--weights", "{}"], "weights", False),
    "sample --weights": (["sample", "scan", "--output", "out", "--weights", "{}"], "weights", False),
    "sample --output": (["sample", "scan", "--weights", "w", "--output", "{}"], "output_dir", False),
    "sample FILE": (["sample", "{}", "--weights", "w", "--output", "out"], "series", [True] * 6),
    "transport --weights": (["transport", "scan", "--to", "b", "--output", "out", "--weights", "{}"], "weights", False),
    "transport FILES": (["transport", "{}", "--to", "b", "--output", "out", "--weights", "w"], "donor", [True]),
    "transport --to": (["transport", "scan", "--to", "{}", "--output", "out", "--weights", "w"], "series", [True] * 2),
}


@pytest.mark.parametrize(
    "option, sign",
    [(option, sign) for option in OPTIONS for sign in SIGNS[:2]] + [("register --output", sign) for sign in SIGNS[2:]],
)
def test_an_option_means_what_was_typed(option, sign, parsed, monkeypatch, tmp_path):
    words, name, is_list = OPTIONS[option]
    if words[0] == "transport":
        monkeypatch.setattr(commands, "read_series", lambda files: type("Two", (), {"frames": (0, 1)}))
    assert main([sign if word == "{}" else word for word in words]) == 0
    expected = [str(tmp_path / sign)] * len(is_list) if is_list else sign
    assert parsed[name] == expected
    assert not (tmp_path / "pwned").exists()


def test_many_scans_mean_what_was_typed(parsed, tmp_path):
    assert main(["register", *SIGNS, "--output", "out"]) == 0
    assert parsed["series"] == [str(tmp_path / sign) for sign in SIGNS]


def test_the_seed_of_samples_is_an_option_or_a_setting(parsed, capsys):
    command = ["sample", "scan", "--weights", "w", "--output", "out"]
    for options, value in ((["--seed", "3"], 3), (["--set", "sample_seed=4"], 4)):
        assert main([*command, *options]) == 0
        assert parsed["sample_seed"] == value
    assert main([*command, "--seed", "3", "--set", "sample_seed=4"]) == 2
    assert "--set sample_seed: conflicts with the option" in capsys.readouterr().err


def test_bytes_that_are_no_text_come_through(parsed, tmp_path):
    name = b"scan\xff".decode(errors="surrogateescape")
    assert main(["register", name, "--output", "out"]) == 0
    assert parsed["series"] == [str(tmp_path / name)]


@pytest.mark.parametrize(
    "value", [[1, 2.5, None, True], "$1 + 1", ["$x", ["@b", 3]], [], [{"$x": "@b", "a#b": ["%it", {"c": "\udcff"}]}]]
)
def test_a_literal_is_itself(value):
    parser = ConfigParser({"it": literal(value), "b": 1, "again": "@it"})
    assert parser.get_parsed_content("again") == value


@pytest.mark.parametrize("sign", [SIGNS[0], "@weights", "%run"])
@pytest.mark.parametrize("config", ["noise", "spacing_mm", "device", "weights", "output_dir", "nmi_kind", "outside"])
def test_a_setting_takes_no_expression(config, sign, parsed, tmp_path, capsys):
    command = ["register", "scans", "--output", "out", "--overlay", "likelihoods/group_nmi"]
    assert main([*command, "--set", f"{config}={sign}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("groupmorph: --set") and not (tmp_path / "pwned").exists() and not parsed


@pytest.mark.slow
def test_files_and_folders_with_signs_are_registered_as_others(series, tmp_path, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    Path("@weights").mkdir()
    names = ["@weights/$t0#1.nii.gz", "@weights/@series.nii.gz", "@weights/%run#2.nii.gz"]
    for source, name in zip(series, names):
        shutil.copy(source, name)
    options = ["--no-refine", "--initial", "none", "--quiet"]
    assert main(["register", *series[:3], "--output", "plain", *options]) == 0
    assert main(["register", *names, "--output", "$out@x #1%", *options]) == 0
    for number in range(3):
        fields = [nibabel.load(Path(f) / f"ddf_{number:02d}.nii.gz").get_fdata() for f in ("plain", "$out@x #1%")]
        np.testing.assert_array_equal(*fields)
    report = read_json(Path("$out@x #1%", "report.json"))
    assert report["series"] == [str(tmp_path / name) for name in names]
    command = ["groupmorph", "register", *names, "--output", "$out@x #1%", *options]
    assert report["settings"]["command"] == shlex.join(command)
    assert report["settings"]["overlays"] == ["effort/no_refine"]


@pytest.mark.slow
def test_names_that_are_no_text_are_registered_and_reported(series, tmp_path):
    """Runs in a separate process, as pytest-xdist cannot send log messages with such names."""
    name = os.fsencode(tmp_path) + b"/scan\xff.nii.gz"
    shutil.copy(series[0], os.fsdecode(name))
    command = [sys.executable, "-m", "groupmorph_monai.apps", "register", name, series[1]]
    options = ["--output", tmp_path / "out", "--no-refine", "--initial", "none"]
    run = subprocess.run([*command, *options], capture_output=True)
    assert run.returncode == 0, run.stderr
    assert "scan" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
