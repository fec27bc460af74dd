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
VOL_SERIES = """
from pathlib import Path
from groupmorph_monai.data.reading.readers import header_grids, read_series
from tests.data.reading.test_vol import AXIAL, SAGITTAL, write
Path("series").mkdir()
for k, affine in enumerate((AXIAL, SAGITTAL)):
    write(Path("series", f"t{k}.vol"), affine, lambda x, y, z: x + 10 * y + 100 * z)
frames = read_series("series").frames
assert [grid.affine.tolist() for grid in header_grids("series")] == [frame.affine.tolist() for frame in frames]
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

    def lint(self, clone, *files):
        for command in ("check", "format --check"):
            self.run(f"python -m ruff {command} {' '.join(files)}", clone)

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
    """Steps 1 to 5 of the recipe, in a copy of the package."""
    recipe, clone = Recipe("likelihood", tmp_path), copy_of_the_package(tmp_path)
    (imports,) = re.findall(r"^```python\n(from \.\..*?)```", recipe.text, re.DOTALL | re.MULTILINE)
    (overlay,) = re.findall(r"^```yaml\n(# Student's t: .*?)```", recipe.text, re.DOTALL | re.MULTILINE)
    (entry,) = re.findall(r'^ +"student_t_noise": .*\n', recipe.text, re.MULTILINE)
    probability = clone / "groupmorph_monai" / "probability"
    if (probability / "student_t.py").exists():
        pytest.skip("the recipe was followed in this clone")
    code = (tmp_path / "student_t.py").read_text(encoding="utf-8")
    code = re.sub(r"^(from groupmorph_monai.*\n)+", imports, code, flags=re.MULTILINE)
    (probability / "student_t.py").write_text(code, encoding="utf-8")
    replace(probability / "__init__.py", "from .surface", "from .student_t import StudentT\nfrom .surface")
    replace(probability / "__init__.py", '    "SurfaceDistance"', '    "StudentT",\n    "SurfaceDistance"')
    contracts = clone / "tests" / "probability" / "test_contracts.py"
    test = (tmp_path / "test_student_t.py").read_text(encoding="utf-8")
    contract = test[test.index("class ") :]
    replace(contracts, "\n\ndef test_every_", f"\n\n{contract}\n\ndef test_every_")
    replace(contracts, "    SurfaceDistance,\n", "    StudentT,\n    SurfaceDistance,\n")
    replace(contracts, "\nfrom torch import nn", "\nfrom scipy.stats import t\nfrom torch import nn")
    (clone / "bundle" / "configs" / "likelihoods" / "student_t.yaml").write_text(overlay, encoding="utf-8")
    replace(clone / "groupmorph_monai" / "apps" / "settings.py", "    # likelihood\n", f"    # likelihood\n{entry}")
    (listed,) = re.findall(r'^    "likelihoods/student_t",\n', recipe.text, re.MULTILINE)
    comment = "    # likelihoods of intensities, which take enhancement for motion\n"
    replace(clone / "tests" / "bundle" / "test_inference.py", comment, comment + listed)
    changed = ("probability/student_t.py", "apps/settings.py")
    recipe.lint(clone, *(f"groupmorph_monai/{file}" for file in changed), "tests/bundle/test_inference.py")
    files = ("apps/test_settings", "apps/suites/test_suites", "bundle/test_training", "bundle/test_inference")
    files += ("probability/test_contracts", "program/test_uncertainty")
    names = "test_settings or test_suites or student_t or StudentT or under_contract"
    recipe.run(f"python -m pytest -q {' '.join(f'tests/{file}.py' for file in files)} -k '{names}' --rootdir .", clone)
    recipe.run(f"python -c {shlex.quote(PHANTOM)}", clone)
    (command,) = re.findall(r"^groupmorph (register .*)", recipe.text, re.MULTILINE)
    recipe.run(f"python -m groupmorph_monai.apps {command.replace('SERIES', 'series.nii.gz')}", clone)
    settings = json.loads((clone / "aligned" / "report.json").read_text(encoding="utf-8"))["settings"]
    assert settings["likelihood"]["name"] == "StudentT" and settings["overlays"] == ["likelihoods/student_t"]


@pytest.mark.slow
def test_the_format_joins_the_package(tmp_path):
    """Steps 1 and 2 of the recipe, in a copy of the package."""
    recipe, clone = Recipe("file format", tmp_path), copy_of_the_package(tmp_path)
    imports, vol_format = re.findall(r"^```python\n((?!# ).*?)```", recipe.text, re.DOTALL | re.MULTILINE)
    reading = clone / "groupmorph_monai" / "data" / "reading"
    if (reading / "vol.py").exists():
        pytest.skip("the recipe was followed in this clone")
    code = (tmp_path / "vol.py").read_text(encoding="utf-8").replace("from collections.abc import Sequence\n", "")
    code = re.sub(r"^(from groupmorph_monai.*\n)+", imports, code, flags=re.MULTILINE)
    code = re.sub(r"^def read_vol_series.*", lambda _: vol_format, code, flags=re.DOTALL | re.MULTILINE)
    (reading / "vol.py").write_text(code, encoding="utf-8")
    readers = reading / "readers.py"
    choice = '    if str(path).lower().endswith(".vol"):\n        return VolFormat()\n'
    replace(readers, "-> ImageFormat:\n", f"-> ImageFormat:\n{choice}")
    replace(readers, "import check_regular_file\n", "import check_regular_file\nfrom .vol import VolFormat\n")
    replace(reading / "names.py", "\nIMAGE_ENDINGS = (", '\nIMAGE_ENDINGS = (".vol", ')
    test = (tmp_path / "test_vol.py").read_text(encoding="utf-8")
    test = test.replace("from vol import read_vol, read_vol_series\n", "")
    moved = "from groupmorph_monai.data.reading.vol import read_vol\n"
    test = test.replace("from groupmorph_monai.errors", f"{moved}from groupmorph_monai.errors")
    test = test.replace("read_vol_series([fixed, moved])", "[fixed, moved]")
    (clone / "tests" / "data" / "reading" / "test_vol.py").write_text(test, encoding="utf-8")
    recipe.lint(clone, "groupmorph_monai/data/reading/vol.py", "tests/data/reading/test_vol.py")
    recipe.run("python -m pytest -q tests/data/reading/test_vol.py --rootdir .", clone)
    recipe.run(f"python -c {shlex.quote(VOL_SERIES)}", clone)
    recipe.run("python -m groupmorph_monai.apps register series --dry-run --output aligned", clone)


def copy_of_the_package(folder):
    clone = folder / "clone"
    for name in ("groupmorph_monai", "bundle", "experiments", "tests"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, clone)
    return clone


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
