"""The verdict and the kinetic fit distinguish planted failures from good series."""

import pytest
import torch

from groupmorph_monai.apps.suites.suite import bundle_method
from groupmorph_monai.benchmarks import planted
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.benchmarks.planted_results import measure_case, measure_cases, measure_contrast_case
from groupmorph_monai.evaluation.verdict import judge
from groupmorph_monai.space.transforms import AffineTransform, ComposedTransform


def test_motion_that_a_registration_leaves_or_adds_shows_in_the_residual():
    case = planted.make_case("breast", 1, 6)
    identity = [ComposedTransform()] * 6
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3] = 12.0  # two voxels
    away = [*identity[:2], AffineTransform(matrix), *identity[3:]]
    numbers = {"metrics": {}, "initial_confidence": torch.ones(6)}
    left, added = (
        measure_contrast_case({"pred": {"transforms": t}, **numbers}, case)["kinetic_residual_ratio"]
        for t in (identity, away)
    )
    assert left == pytest.approx(1, abs=1e-6) and added > 1.1


def test_only_the_cases_of_a_run_are_tabulated(tmp_path, monkeypatch):
    good, values = planted.make_case("phantom", 1, 2), {"folding_percent": 0}
    bad = planted.mirrored("phantom", 1, 2)
    monkeypatch.setattr(BundleMethod, "prepare_item", lambda self: lambda series: {})
    for cases in ([good, bad], [bad]):
        results = measure_cases(BundleMethod([], ""), tmp_path / "results.jsonl", cases, lambda item, case: values)
        assert results == [(case.failure, values) for case in cases]


@pytest.mark.slow
def test_another_patient_and_a_turned_header_do_not_pass_and_a_good_series_does():
    register = bundle_method(None, "effort/no_refine").prepare_item()
    for case, expected in (
        (planted.make_case("phantom", 1, 3), {"PASS"}),
        (planted.another_patient("phantom", 4), {"LOOK", "FAIL"}),
        (planted.turned("phantom", 4), {"LOOK", "FAIL"}),
    ):
        verdict = judge(measure_case(register(case.series), case))
        assert verdict["verdict"] in expected, verdict["reasons"]
