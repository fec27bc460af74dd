import torch

from groupmorph_monai.benchmarks.chest_ct import thorax_cases
from groupmorph_monai.benchmarks.compare import compare


def test_the_true_motion_brings_the_landmarks_of_phantoms_together():
    (case,) = thorax_cases([3], (48, 48, 40), 3)
    voxels = case["affine"][:3, :3].diagonal()
    torch.testing.assert_close(case["landmarks_mm"], case["landmarks"].double() * voxels)
    unregistered, true_motion = compare([case], {}, progress=lambda line: None)
    assert unregistered["mean error, voxels"] > 0.5
    # Only beside the sliding border is the inverse of the sampled motion not exact.
    assert true_motion["mean error, voxels"] < 0.05 * unregistered["mean error, voxels"]
