"""The recipes in CONTRIBUTING.md work as they stand."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Added to the page's command for training, which would take hours.
A_FEW_ITERATIONS = (
    "--max_iterations 4 --iterations_per_epoch 2 --phantoms_training 2 --phantoms_validation 1 "
    "--phantom_size_voxels [20,20,20] --patch_size_voxels [16,16,16]"
)
PHANTOM = """
import nibabel, torch
from groupmorph_monai.data import make_phantom
phantom = make_phantom(7, size=(32, 32, 24), timepoints=2)
nibabel.save(nibabel.Nifti1Image(phantom["image"].movedim(0, -1).numpy(), phantom["affine"].numpy()), "series.nii.gz")
"""
FILES = {
    "likelihood": {"student_t.py", "test_student_t.py", "student_t.yaml"},
    "model": {"two_layers.py", "test_two_layers.py", "two_layers.yaml"},
    "file format": {"vol.py", "test_vol.py"},
}


class Recipe:
    """A section of the page: its files, written to a folder, and its commands."""

    def __init__(self, kind, folder):
        page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        (text,) = re.findall(rf"^## Add a {kind}\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
        files = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        assert set(files) == FILES[kind]
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        self.folder, self.commands = folder, re.findall(r"^PYTHONPATH=\. (python .*)", text, re.MULTILINE)

    def run(self, command):
        words = shlex.split(command.replace("$CLONE", str(ROOT)))
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{self.folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *words[1:]], cwd=self.folder, env=environment, check=True)

    def register(self, command):
        """Run a command that registers SERIES. Returns the settings in its report."""
        self.run(f"python -c {shlex.quote(PHANTOM)}")
        self.run(command.replace("SERIES", "series.nii.gz"))
        return json.loads((self.folder / "aligned" / "report.json").read_text(encoding="utf-8"))["settings"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_the_tests_of_a_recipe_pass(kind, tmp_path):
    recipe = Recipe(kind, tmp_path)
    recipe.run(recipe.commands[0])


@pytest.mark.slow
def test_the_likelihood_registers(tmp_path):
    recipe = Recipe("likelihood", tmp_path)
    _, registration = recipe.commands
    assert '"StudentT"' in json.dumps(recipe.register(registration))


@pytest.mark.slow
def test_the_model_trains_and_registers(tmp_path):
    recipe = Recipe("model", tmp_path)
    _, training, registration = recipe.commands
    recipe.run(f"{training} {A_FEW_ITERATIONS}")
    settings = recipe.register(registration)
    assert settings["model"] == "TwoLayers" and settings["weights"].endswith("two_layers/model_best.pt")


@pytest.mark.parametrize("kind", FILES)
def test_the_code_of_a_recipe_passes_the_linter(kind, tmp_path):
    recipe = Recipe(kind, tmp_path)
    # The order of imports (I) depends on which packages lie in the folder; test files have no docstrings (D100, D101).
    for command in ("check --extend-ignore I,D100,D101", "format --check"):
        recipe.run(f"python -m ruff {command} --config $CLONE/pyproject.toml .")
