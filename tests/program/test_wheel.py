"""The package as installed by pip, outside of the repository."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from json_files import read_json

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a function that runs a command in a fresh environment with the wheel's files and all packages of this
    environment."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "runs")
    source = shutil.copytree(REPOSITORY, folder / "source", ignore=ignored)  # a build leaves files in its folder
    venv.create(folder / "env", symlinks=True, with_pip=False)
    python = folder / "env" / "bin" / "python"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", source]
    subprocess.run(install, check=True, env=environment)
    shutil.rmtree(source)
    shared = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (Path(site) / "shared.pth").write_text(
        "\n".join(shared), encoding="utf-8"
    )  # whose own .pth files, a checkout's, are not read

    def run(*words):
        command = [folder / "env" / "bin" / words[0], *words[1:]]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)

    run.site = Path(site)
    return run


def test_it_registers_from_anywhere_with_an_overlay(installed, series, tmp_path):
    fast = ["--no-refine", "--initial", "none"]
    done = installed(
        "groupmorph", "register", *series[:2], *fast, "--overlay", "likelihoods/low_rank", "--output", tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = read_json(tmp_path / "report.json")["metrics"]
    assert metrics["nmi_after"] > metrics["nmi_before"]


def test_every_file_of_the_package_and_of_the_bundle_is_there(installed):
    package = installed.site / "groupmorph_monai"
    for root, place in ((REPOSITORY / "groupmorph_monai", package), (REPOSITORY / "bundle", package / "bundle")):
        files = [
            path.relative_to(root) for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts
        ]
        assert len(files) > 50 and [str(file) for file in files if not (place / file).is_file()] == []


def test_experiments_do_not_ship(installed):
    assert not (installed.site / "experiments").exists()
    assert installed("groupmorph", "benchmark").returncode == 0
    assert installed("python", "-c", "import experiments").returncode == 1


@pytest.mark.parametrize(
    "words",
    [
        ["register", "a.nii.gz", "b.nii.gz", "--output", "o", "--overlay", "models/time_dependent"],
        ["register", "absent.nii.gz", "--output", "o"],
    ],
)
def test_a_mistake_names_files_that_there_are(installed, words, series):
    words = [{"a.nii.gz": series[0], "b.nii.gz": series[1]}.get(word, word) for word in words]
    done = installed("groupmorph", *words)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("groupmorph: ")
    for word in done.stderr.replace(",", " ").split():
        if word.endswith(".md"):
            assert Path(word).is_file(), word
