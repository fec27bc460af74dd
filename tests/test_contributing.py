"""The recipes in CONTRIBUTING.md work as they stand."""

import json
import re
import shlex
import shutil
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
    """Write the files of a section of the page to a folder, and run its commands."""

    def __init__(self, kind, folder):
        page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        (text,) = re.findall(rf"^## Add a {kind}\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
        files = dict(re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
        assert set(files) == FILES[kind]
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        self.text, self.folder, self.commands = (
            text,
            folder,
            re.findall(r"^PYTHONPATH=\. (python .*)", text, re.MULTILINE),
        )

    def run(self, command, clone=ROOT):
        words, folder = shlex.split(command.replace("$CLONE", str(clone))), self.folder if clone == ROOT else clone
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{folder}:{clone}", "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, check=True)

    def register(self, command):
        """Run a command that registers SERIES, and return the settings in its report."""
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
def test_the_likelihood_joins_the_package(tmp_path):
    """Steps 1 and 3 to 5 of the recipe, in a copy of the package."""
    recipe, clone = Recipe("likelihood", tmp_path), tmp_path / "clone"
    for name in ("groupmorph_monai", "bundle", "experiments", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, clone)
    (imports,) = re.findall(r"^```python\n(from \.\..*?)```", recipe.text, re.DOTALL | re.MULTILINE)
    (overlay,) = re.findall(r"^```yaml\n(# Student's t: .*?)```", recipe.text, re.DOTALL | re.MULTILINE)
    (entry,) = re.findall(r'^ +"student_t_noise": .*\n', recipe.text, re.MULTILINE)
    probability = clone / "groupmorph_monai" / "probability"
    code = (tmp_path / "student_t.py").read_text(encoding="utf-8")
    code = re.sub(r"^(from groupmorph_monai.*\n)+", imports, code, flags=re.MULTILINE)
    (probability / "student_t.py").write_text(code, encoding="utf-8")
    replace(probability / "__init__.py", "\n\n__all__", "\nfrom .student_t import StudentT\n\n__all__")
    (clone / "bundle" / "configs" / "likelihoods" / "student_t.yaml").write_text(overlay, encoding="utf-8")
    replace(clone / "groupmorph_monai" / "apps" / "settings.py", "    # likelihood\n", f"    # likelihood\n{entry}")
    replace(clone / "tests" / "bundle" / "test_inference.py", ": set[str] = set()", ' = {"likelihoods/student_t"}')
    tests = "tests/apps/test_settings.py tests/bundle/test_training.py tests/bundle/test_inference.py"
    recipe.run(f"python -m pytest -q {tests} -k 'test_settings or student_t' --rootdir .", clone)
    recipe.run(f"python -c {shlex.quote(PHANTOM)}", clone)
    (command,) = re.findall(r"^groupmorph (register .*)", recipe.text, re.MULTILINE)
    recipe.run(f"python -m groupmorph_monai.apps {command.replace('SERIES', 'series.nii.gz')}", clone)
    settings = json.loads((clone / "aligned" / "report.json").read_text(encoding="utf-8"))["settings"]
    assert settings["likelihood"]["name"] == "StudentT" and settings["overlays"] == ["likelihoods/student_t"]


def replace(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, (file, old)
    file.write_text(text.replace(old, new), encoding="utf-8")


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
