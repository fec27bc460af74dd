"""Each suite passes the configs and weights named in its rows to its measurement."""

import argparse
import csv
from pathlib import Path

import pytest

from experiments.__main__ import EXPERIMENTS
from groupmorph_monai.apps import suites
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.configs import overlay_names
from groupmorph_monai.apps.suites import SUITES
from groupmorph_monai.errors import InputError
from groupmorph_monai.workflow.parsed_config import parsed_config


@pytest.fixture
def measured(monkeypatch):
    """Record the methods passed to `compare`, by name."""
    methods = {}

    def compare(cases, chosen, progress=print):
        methods.update(chosen)
        return [{"method": name, "seconds": 1.0} for name in chosen]

    monkeypatch.setattr("groupmorph_monai.benchmarks.cases.synthetic_cases", lambda seeds: [])
    monkeypatch.setattr("groupmorph_monai.benchmarks.compare.compare", compare)
    return methods


def run(name, folder):
    (suite,) = (suite for suite in SUITES if suite.name == name)
    options = {"weights": None, "series": None, "seeds": [1], "spacing_mm": None, "mask": None, "patients": None}
    return suite.run(argparse.Namespace(output=str(folder), **options))


def value(method, name):
    return parsed_config(method.config_files, method.settings).get(name)


def test_peers_meet_the_single_pass_and_the_refined_answer(measured, tmp_path):
    page = run("synthetic", tmp_path)
    ours = {name: method for name, method in measured.items() if name.startswith("GroupMorph")}
    assert [value(method, "inferer")["refinement"] for method in ours.values()] == [None, "@refinement"]
    with open(page.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(float(row["times as fast as Elastix pair-wise"]) == 1 for row in rows)


def test_each_likelihood_refines_by_itself(measured, tmp_path):
    run("likelihoods", tmp_path)
    kinds = {name: value(method, "likelihood") for name, method in measured.items()}
    assert kinds["group nmi"]["_target_"].endswith("GroupNMI") and kinds["low rank"]["_target_"].endswith("LowRank")
    different = {str(kind) + str(value(measured[name], "window_radii_voxels")) for name, kind in kinds.items()}
    assert len(different) == 1 + sum(name.startswith("likelihoods/") for name in overlay_names())


def test_scans_of_the_user_are_warped_with_known_fields(measured, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        "groupmorph_monai.benchmarks.cases.warped_cases", lambda *args, **options: calls.append((args, options))
    )
    run("warped", tmp_path)
    assert calls == [((None, [1]), {"spacing_mm": None, "mask": None})] and len(measured) == 4


@pytest.mark.parametrize(("name", "file"), [("verdicts", "verdicts.jsonl"), ("kinetics", "residuals.jsonl")])
def test_planted_failures_are_measured_case_by_case_and_tabulated(name, file, monkeypatch, tmp_path):
    values = {"folding_percent": 0.0, "kinetic_residual_ratio": 0.5}

    def measure_cases(method, log, cases, measure):
        assert log == tmp_path / file and value(method, "inferer")["refinement"] == "@refinement"
        return [(next(iter(cases)).failure, values), ("mirrored", values)]

    planted = "groupmorph_monai.benchmarks.planted_results"
    monkeypatch.setattr(f"{planted}.measure_cases", measure_cases)
    monkeypatch.setattr(f"{planted}.measure_added_motion", lambda seeds, voxels: [(f"moved by {voxels:g}", values)])
    page = run(name, tmp_path).read_text(encoding="utf-8")
    assert "| mirrored | 1 |" in page and ("moved by 4" in page) == (name == "kinetics")


def test_elastix_missing_is_said_before_any_registration(measured, monkeypatch, tmp_path):
    monkeypatch.setattr("groupmorph_monai.benchmarks.peers.elastix.itk", object())
    with pytest.raises(InputError, match="pip install 'groupmorph-monai.bench.'"):
        run("synthetic", tmp_path)
    assert measured == {}


def test_without_a_name_the_suites_are_listed(capsys):
    assert main(["benchmark"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [suite.name for suite in SUITES]
    assert all(suite.question in line and len(line) < 120 for suite, line in zip(SUITES, lines))


def test_each_suite_is_a_file_of_its_name():
    files = {file.stem for file in Path(suites.__file__).parent.glob("*.py")}
    assert files - {"__init__", "suite"} == {suite.name for suite in SUITES}


def test_experiments_are_no_suites_of_the_package(capsys):
    assert {e.name for e in EXPERIMENTS}.isdisjoint(suite.name for suite in SUITES)
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", "shapes"])
    assert "got 'shapes'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["warped"], "benchmark warped: expected --series, got none"),
        (["breathing", "--series", "a.nii"], "--series: unknown option of benchmark breathing"),
        (["scaling", "--seeds", "1"], "--seeds: unknown option of benchmark scaling"),
    ],
)
def test_an_option_belongs_to_its_suite(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", *words])
    assert message in capsys.readouterr().err


def test_options_of_warped_scans_want_scans(tmp_path, capsys):
    assert main(["benchmark", "likelihoods", "--mask", "mask.nii", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("groupmorph: --series: required with --spacing-mm and --mask")


def test_the_table_is_a_page_in_the_chosen_folder(tmp_path, capsys):
    assert main(["benchmark", "cohort", "--output", str(tmp_path)]) == 0
    page = (tmp_path / "cohort.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    rows = [line.split("|")[1].strip() for line in page.splitlines()[2:]]
    assert rows == ["1", "10", "100", "1000"]
