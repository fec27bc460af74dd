"""The notebooks run from top to bottom, and their statements hold."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
CHECKS = {
    "first_registration": "assert after_mm < 0.3 * before_mm and dice > 0.8",
    "uncertainty": "assert verdict['verdict'] == 'PASS' and broken_verdict['verdict'] == 'FAIL'\n"
    "assert error_mm[0] < error_mm[2] and predicted_mm[0] < predicted_mm[2]",
    "add_a_likelihood": "assert errors['local correlation'] < 0.5 * errors['unregistered']\n"
    "assert errors['Charbonnier'] < errors['unregistered']",
}


def test_every_notebook_has_its_check_and_no_large_output():
    files = sorted(FOLDER.glob("*.ipynb"))
    assert {file.stem for file in files} == set(CHECKS)
    assert all(file.stat().st_size < 200_000 for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_a_notebook_runs_and_shows_what_it_says(name, tmp_path):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[name]))
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
