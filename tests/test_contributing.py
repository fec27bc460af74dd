"""The recipe in CONTRIBUTING.md works as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_likelihood_of_the_recipe_passes_its_tests_and_registers(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.DOTALL))
    assert set(files) == {"student_t.py", "test_student_t.py", "student_t.yaml"}
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    tests, registration = re.findall(r"^PYTHONPATH=\. (.*)", text, re.MULTILINE)
    subprocess.run([sys.executable, "-c", PHANTOM], cwd=tmp_path, check=True)
    for command in (tests, registration.replace("SERIES", "series.nii.gz")):
        command = command.replace("$CLONE", str(ROOT)).replace("python -m", f"{sys.executable} -m")
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
        subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, check=True)
    settings = (tmp_path / "aligned" / "report.json").read_text(encoding="utf-8")
    assert '"StudentT"' in settings


PHANTOM = """
import nibabel, torch
from groupmorph_monai.data import make_phantom
phantom = make_phantom(7, size=(32, 32, 24), timepoints=2)
nibabel.save(nibabel.Nifti1Image(phantom["image"].movedim(0, -1).numpy(), phantom["affine"].numpy()), "series.nii.gz")
"""
