"""The bundle changes settings of its own process, but not of a caller's."""

import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigWorkflow

from groupmorph_monai.apps.input_errors import find_config_error
from groupmorph_monai.apps.process import check_options
from groupmorph_monai.errors import InputError
from groupmorph_monai.workflow import memory
from groupmorph_monai.workflow.parsed_config import parsed_config


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
    "files, name",
    [
        (["none.nii"], "none.nii"),
        (["$open('evaluated', 'w')"], "expected a plain value"),
        pytest.param([], "one timepoint", marks=pytest.mark.slow),
    ],
)
def test_mistake_in_monais_command(files, name, bundle, series, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference", "--bundle_root", str(bundle)]
    command += ["--config_file", str(bundle / "configs" / "inference.yaml"), "--series", str([series[0], *files])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("groupmorph: ")]
    assert done.returncode == 2 and name in line
    assert "Traceback" not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "cure"),
    [
        (["--outputdir", "x"], "--outputdir: expected a name that the configs define.*did you mean --output_dir"),
        (["--spacing-mn=2"], "did you mean --spacing_mm"),
        (["--zzz", "1"], "see 'groupmorph settings'"),
    ],
)
def test_an_option_that_monai_would_ignore_is_refused(option, cure, bundle):
    files = [str(bundle / "configs" / name) for name in ("inference.yaml", "modes/all_to_one.yaml")]
    with pytest.raises(InputError, match=cure):
        check_options(["inference", "--config_file", str(files), *option])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--spacing_mm 2mm", "--spacing_mm: expected auto or a number from 0.1 to 1000 .* got '2mm'"),
        ("--std_draws=2.5", "--std_draws: expected a whole number from 0 to 10000, got 2.5"),
        ("--window_size_voxels [8,8]", "--window_size_voxels: expected a list of 3"),
        ("--write_jacobian maybe", "--write_jacobian: expected true or false"),
        ("--percentile_lower 99.5", "--percentile_lower, percentile_upper: expected the first less than the second"),
        ("--output_dir 3", "--output_dir: expected the path of a folder, got 3"),
        ("--output_dir=", "--output_dir: expected the path of a folder, got ''"),
        ("--output_dir ['out']", "--output_dir: expected the path of a folder"),
        ("--output_dir", "--output_dir: expected the path of a folder, got True"),
        ("--device banana", "--device: expected a device available to PyTorch, got banana; use cpu"),
        ("--device cuda:99", "--device: expected a device available to PyTorch, got cuda:99"),
        ("--reference 1", "--reference: expected null for an alignment to the mean"),
        ("--refinement null", "--refinement: expected nothing or None, as configs define this component, got 'null'"),
    ],
)
def test_a_value_that_a_setting_does_not_take_is_refused(option, message, bundle):
    with pytest.raises(InputError, match=message):
        check_options(["inference", "--config_file", str(bundle / "configs" / "inference.yaml"), *option.split()])


@pytest.mark.parametrize(
    "option",
    [
        ["--series", "$__import__('os').system('touch evaluated')"],
        ["-series", "['t0.nii.gz', '$print(1)']"],
        ["--series=%other.yaml"],
        ["--noise", "@std_draws"],
        ["--device", "$'cpu'"],
        ["--series", "{'_target_': 'os.system', 'command': 'touch evaluated'}"],
        ["--likelihood#_target_", "os.system"],
        ["--likelihood::_target_", "os.system"],
        ["--output_dir", "$'out'"],
    ],
)
def test_nothing_on_monais_command_line_is_evaluated(option, bundle):
    with pytest.raises(InputError, match="expected a plain value, got .* which MONAI evaluates"):
        check_options(["inference", "--config_file", str(bundle / "configs" / "inference.yaml"), *option])


def test_a_name_that_monai_would_change_is_refused(bundle):
    with pytest.raises(InputError, match="expected a value without '#', .* got 'a#b.nii.gz'; rename the file"):
        config = str(bundle / "configs" / "inference.yaml")
        check_options(["inference", "--config_file", config, "--series", "['t0.nii.gz','a#b.nii.gz']"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("noise: '@nothing'", "configs: expected a name that they define, got @nothing; check its spelling"),
        ("noise: '@own'\nown: '@noise'", "configs: expected values without circular references, got"),
        ("likelihood: {_target_: a.B}", "configs: expected a class or function, got a.B"),
        ("likelihood: {_target_: groupmorph_monai.probability.LocalCorrelation, a: 1}", "unexpected keyword argument"),
    ],
)
def test_a_mistake_in_a_config_ends_monais_command_in_one_line(content, message, bundle, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(content, encoding="utf-8")
    parser = parsed_config([bundle / "configs" / "inference.yaml", own], {})
    with pytest.raises((ModuleNotFoundError, RuntimeError, ValueError)) as raised:
        parser.get_parsed_content(content.partition(":")[0])
    assert message in str(find_config_error(raised.value))


def test_options_that_configs_use_are_accepted(bundle, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("likelihood: {_target_: a.B, noise: '@own_noise'}\n", encoding="utf-8")
    base = str(bundle / "configs" / "inference.yaml")
    options = (
        "--output_dir x --output-dir=y --network_def#features [1] --refinement::weights 1 --tracking mlflow".split()
    )
    check_options(["inference", "--config_file", base, *options, "--series", "['--a', 'b']"])
    values = "--spacing_mm [1,1,2] --write_jacobian --noise 0.1 -outside nan --window_overlap=0.25 --timepoints None"
    check_options(["inference", "--config_file", base, *values.split(), "--window_size_voxels", "(64, 64, 64)"])
    check_options(["inference", f"--config_file={[base, str(own)]}", "--own_noise", "0.1"])
    check_options(["inference", "--config_file", "gone.yaml", "--zzz", "1"])  # MONAI says that the file is missing
