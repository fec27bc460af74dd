"""Planted failures match their names."""

import nibabel
import numpy as np
import pytest
import torch

from groupmorph_monai.benchmarks import planted
from groupmorph_monai.benchmarks.planted_scans import patient_cases
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.metrics import landmark_distances_mm
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
