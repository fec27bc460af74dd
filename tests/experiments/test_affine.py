import torch

from experiments.affine import affine_cases, align_by_steps
from groupmorph_monai.benchmarks.compare import compare
from groupmorph_monai.data import MakePhantomd, phantom_items


def test_landmarks_lie_on_the_same_tissue_in_every_timepoint():
    (case,) = affine_cases([3], size=(40, 36, 32), degrees=10, shift_voxels=2, margin_voxels=4)
    (same,) = affine_cases([3], size=(40, 36, 32), degrees=10, shift_voxels=2, margin_voxels=4)
    assert torch.equal(case["image"], same["image"])
    assert case["landmarks"].shape[1] > 200
    apart = (case["landmarks"][0] - case["landmarks"][1]).norm(dim=1)
    assert 1 < apart.mean() < 12 and apart.std() > 0.3
    # An affine map takes one timepoint's landmarks to another's.
    ones = torch.cat([case["landmarks"], torch.ones(3, case["landmarks"].shape[1], 1)], dim=2)
    fitted = torch.linalg.lstsq(ones[0], case["landmarks"][1]).solution
    assert (ones[0] @ fitted - case["landmarks"][1]).abs().max() < 0.01


def test_the_optimisation_twin_finds_a_moderate_motion(in_this_process):
    cases = affine_cases([3], size=(36, 32, 28), timepoints=2, degrees=6, shift_voxels=2, scale=0.03)
    unregistered, by_steps = compare(cases, {"steps": align_by_steps}, progress=lambda line: None)
    assert by_steps["mean error, voxels"] < 0.2 < 1 < unregistered["mean error, voxels"]


def test_a_validation_series_is_the_case_of_its_seed():
    (item,) = phantom_items("affine_phantom", [3], size=(20, 18, 16), shift_voxels=2, margin_voxels=2)
    (case,) = affine_cases([3], size=(20, 18, 16), shift_voxels=2, margin_voxels=2)
    loaded = MakePhantomd()(item)
    assert torch.equal(loaded["image"].as_tensor(), case["image"])
    torch.testing.assert_close(loaded["landmarks"], case["landmarks"])  # voxels of 1 mm
