"""Planted failures match their names, and the verdict distinguishes them from a good series."""

import nibabel
import numpy as np
import pytest
import torch

from groupmorph_monai.apps.configs import bundle_root, config_files
from groupmorph_monai.benchmarks import planted
from groupmorph_monai.benchmarks.compare import BundleMethod
from groupmorph_monai.benchmarks.planted_scans import patient_cases
from groupmorph_monai.benchmarks.verdicts import (
    measure_case,
    measure_contrast_case,
    tabulate,
    tabulate_residuals,
    verdicts,
)
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import landmark_distances_mm
from groupmorph_monai.evaluation.verdict import judge
from groupmorph_monai.space.transforms import AffineTransform, ComposedTransform


def test_a_header_is_changed_about_the_middle_and_its_voxels_stay():
    plain, wrong = planted.make_case("phantom", 4, 3), planted.mirrored("phantom", 4)
    first, last = plain.series.frames[0], wrong.series.frames[-1]
    np.testing.assert_array_equal(last.data, plain.series.frames[-1].data)
    np.testing.assert_allclose(last.grid.centre, 0, atol=1e-9)
    change = last.affine @ np.linalg.inv(first.affine)
    np.testing.assert_allclose(change, np.diag([1, -1, 1, 1]), atol=1e-9)
    change = planted.turned("phantom", 4).series.frames[-1].affine @ np.linalg.inv(first.affine)
    np.testing.assert_allclose(change[:3, :3], [[1, 0, 0], [0, 0, -1], [0, 1, 0]], atol=1e-9)


def test_landmarks_follow_a_header():
    plain, beyond = planted.make_case("phantom", 5, 4), planted.beyond_reach("phantom", 5)
    change = torch.from_numpy(beyond.series.frames[-1].affine @ np.linalg.inv(plain.series.frames[-1].affine))
    transforms = [*[ComposedTransform()] * 3, AffineTransform(change)]
    expected = landmark_distances_mm(plain.landmarks_mm, [ComposedTransform()] * 4)
    error = landmark_distances_mm(beyond.landmarks_mm, transforms)
    np.testing.assert_allclose(error, expected, atol=1e-9)


def test_verdicts_are_counted_and_motion_that_was_found_is_good():
    good, bad = {"folding_percent": 0.0, "error_voxels": 0.1}, {"folding_percent": 2.0, "error_voxels": 9.0}
    results = [(None, good), (None, bad), ("x", bad), (planted.BEYOND_REACH, good), (planted.BEYOND_REACH, bad)]
    rows = {row["planted failure"]: row for row in tabulate(results)}
    assert rows["none"]["series"] == 2 and rows["none"]["FAIL, %"] == 50
    assert rows["all good ones"]["series"] == 3 and rows["all good ones"]["PASS, %"] == pytest.approx(200 / 3)
    assert rows["all failures"]["FAIL, %"] == 100 and rows["x"]["checks triggered"] == "folding_percent (1)"


def test_residuals_are_tabulated_for_each_failure():
    results = [
        ("x", {"kinetic_residual_ratio": ratio, "folding_percent": folds}) for ratio, folds in ((0.5, 9), (3, 0))
    ]
    results += [(None, {"kinetic_residual_ratio": None, "folding_percent": 0})]
    rows = {row["planted failure"]: row for row in tabulate_residuals(results)}
    assert (rows["x"]["series"], rows["x"]["with a fit"], rows["none"]["with a fit"]) == (2, 2, 0)
    assert [rows["x"][name] for name in ("least", "median", "greatest")] == [0.5, 1.75, 3]
    assert rows["x"]["FAIL by this check"] == 1 and rows["x"]["LOOK or FAIL by the other checks"] == 1


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


def test_failures_are_planted_in_scans_of_patients(tmp_path):
    generator, files = np.random.default_rng(0), []
    for number in range(2):
        scan = np.pad(generator.random((12, 10, 8)), 4).astype(np.float32)
        files.append(tmp_path / f"{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(scan, np.diag([2.0, 2.0, 3.0, 1.0]) + 50 * np.eye(4, k=3)), files[-1])
    cases = {case.failure: case.series.frames for case in list(patient_cases(files, [1]))[4:]}  # of the second patient
    assert set(cases) == {None, "another patient", "mirrored header", "header rotated by 90 degrees"}
    first, second = cases[None]
    np.testing.assert_array_equal(first.data, nibabel.load(files[1]).get_fdata())
    np.testing.assert_allclose(first.grid.centre, 0, atol=1e-6)
    assert 0.5 < np.corrcoef(first.data.ravel(), second.data.ravel())[0, 1] < 0.999
    np.testing.assert_array_equal(cases["another patient"][1].data, nibabel.load(files[0]).get_fdata())
    change = cases["mirrored header"][1].affine @ np.linalg.inv(first.affine)
    np.testing.assert_allclose(change, np.diag([1, -1, 1, 1]), atol=1e-6)
    with pytest.raises(InputError, match="--patients: expected at least two files"):
        list(patient_cases(files[:1], [1]))


def test_only_the_cases_of_a_run_are_tabulated(tmp_path, monkeypatch):
    good = planted.make_case("phantom", 1, 2)
    bad = planted.mirrored("phantom", 1, 2)
    monkeypatch.setattr(BundleMethod, "prepare_item", lambda self: lambda series: {})
    monkeypatch.setattr("groupmorph_monai.benchmarks.verdicts.measure_case", lambda item, case: {"folding_percent": 0})
    method = BundleMethod([], "")
    assert [row["series"] for row in verdicts(method, tmp_path, [good, bad])[-2:]] == [1, 1]
    assert [row["series"] for row in verdicts(method, tmp_path, [bad])[-2:]] == [0, 1]


@pytest.mark.slow
def test_another_patient_and_a_turned_header_do_not_pass_and_a_good_series_does():
    method = BundleMethod(config_files("inference", ["effort/no_refine"]), str(bundle_root() / "models" / "model.pt"))
    register = method.prepare_item()
    for case, expected in (
        (planted.make_case("phantom", 1, 3), {"PASS"}),
        (planted.another_patient("phantom", 4), {"LOOK", "FAIL"}),
        (planted.turned("phantom", 4), {"LOOK", "FAIL"}),
    ):
        verdict = judge(measure_case(register(case.series), case))
        assert verdict["verdict"] in expected, verdict["reasons"]
