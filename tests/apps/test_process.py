"""Who owns the process decides what the bundle may change in it."""

import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigWorkflow

from groupmorph_monai.workflow import memory


def state_of_the_process():
    return {
        "hook": sys.excepthook,
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "filters": [list(handler.filters) for handler in logging.getLogger().handlers],
        "matmul": torch.backends.cuda.matmul.fp32_precision,
    }


@pytest.mark.parametrize("name", ["inference", "train"])
def test_running_the_bundle_in_memory_leaves_the_program_unchanged(name, bundle, series, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: pytest.fail("the host's allocator was set"))
    monkeypatch.chdir(tmp_path)
    before = state_of_the_process()
    options = {"series": series[:2]} if name == "inference" else {}
    workflow = ConfigWorkflow(
        str(bundle / "configs" / f"{name}.yaml"), logging_file=False, bundle_root=str(bundle), **options
    )
    workflow.initialize()
    assert workflow.parser.get_parsed_content("network").training
    assert state_of_the_process() == before
    assert list(tmp_path.iterdir()) == []  # no folder for results before a run


@pytest.mark.parametrize(
    "files, name", [(["none.nii"], "none.nii"), pytest.param([], "one timepoint", marks=pytest.mark.slow)]
)
def test_mistake_in_monais_command(files, name, bundle, series, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference", "--bundle_root", str(bundle)]
    command += ["--config_file", str(bundle / "configs" / "inference.yaml"), "--series", str([series[0], *files])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("groupmorph: ")]
    assert done.returncode == 2 and name in line
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []
