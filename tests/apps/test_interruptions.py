import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from groupmorph_monai.apps import command_line, commands
from groupmorph_monai.apps.signals import STOPPED, stopping_signals
from groupmorph_monai.data.writing.output_folder import atomic_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGXCPU, 152)]
)
def test_a_stopped_command_ends_in_one_line_and_leaves_nothing(number, code, tmp_path, monkeypatch, capsys, request):
    def stopped(args: argparse.Namespace):
        with atomic_folder(args.output) as folder:
            (folder / "warped.nii.gz").write_text("half", encoding="utf-8")
            os.kill(os.getpid(), number)
            time.sleep(10)

    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where `nohup` ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, previous))
    before = [signal.getsignal(each) for each in stopping_signals()]
    monkeypatch.setitem(commands.COMMANDS, "demo", stopped)
    assert command_line.main(["demo", "--output", str(tmp_path / "out")]) == code
    assert capsys.readouterr().err == f"{STOPPED}\n"
    assert not (tmp_path / "out").exists()
    assert [signal.getsignal(each) for each in stopping_signals()] == before


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("module", ["groupmorph_monai.apps.command_line", "yaml", "torch", "nibabel"])
def test_a_signal_during_an_import_ends_the_command_in_one_line(module, number, code):
    program = f"""
import os, runpy, signal, sys

class Finder:
    def find_spec(name, path, target=None):
        if name == "{module}":
            os.kill(os.getpid(), {int(number)})

signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.meta_path.insert(0, Finder)
sys.argv[1:] = ["demo", "--output", "never"]
runpy.run_module("groupmorph_monai.apps", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{STOPPED}\n")


def test_nohup_keeps_a_command_running_after_its_terminal(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    assert stopping_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGXCPU]


TINY = [
    "phantom_size_voxels=[20,20,20]",
    "patch_size_voxels=[16,16,16]",
    "phantom_max_motion_voxels=2.0",
    "phantoms_training=2",
    "phantoms_validation=1",
    "iterations_per_epoch=2",
]


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["training data", "best value"])
def test_a_stopped_training_ends_in_one_line(moment, number, code, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "groupmorph_monai.apps", "train", "--phantoms"]
    command += ["--output", str(tmp_path / "run"), "--iterations", "10000"]
    command += [part for setting in TINY for part in ("--set", setting)]
    log = tmp_path / "log"
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file)
        try:
            until = time.monotonic() + 200
            while moment not in log.read_text(encoding="utf-8") and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.5)
            process.send_signal(number)
            assert process.wait(60) == code
        finally:
            process.kill()
    text = log.read_text(encoding="utf-8")
    assert text.splitlines()[-1] == STOPPED
    assert "Traceback" not in text and len(text) < 5000
    hidden = [p.name for p in (tmp_path / "run").rglob(".*")]
    assert hidden == []


@pytest.mark.slow
def test_the_bundle_command_ends_in_one_line_too(tmp_path):
    options = [part for setting in TINY for part in (f"--{setting.split('=')[0]}", setting.split("=")[1])]
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", "bundle/configs/train.yaml", "--output_dir", str(tmp_path / "run"), *options]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "training data" in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert lines[-1] == f"{STOPPED}\n"
    assert "Traceback" not in "".join(lines)
