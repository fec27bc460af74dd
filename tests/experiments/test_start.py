from dataclasses import replace

import pytest
import torch

from experiments.start import breast_cases, start, start_methods, thorax_cases
from groupmorph_monai.benchmarks.cases import synthetic_cases
from groupmorph_monai.benchmarks.compare import before_and_after_mm, compare, lesion_volume_error_percent
from groupmorph_monai.space import DisplacementField, invert
from groupmorph_monai.workflow import timepoint_transforms


def test_a_network_that_compares_nothing_predicts_no_motion(tmp_path):
    methods = start_methods(None, tmp_path)
    zero = methods["default, from zero"]
    assert len(methods) == 5 and zero.weights == str(tmp_path / "zero.pt")
    alone = replace(zero, config_files=methods["network alone"].config_files)
    ddf, _ = alone.prepare()(torch.rand(2, 32, 32, 32))
    assert not ddf.any()
    ddf, _ = methods["network alone"].prepare()(synthetic_cases([1], (32, 32, 32), 2)[0]["image"])
    assert ddf.abs().mean() > 0.1


def hold(images):
    return torch.zeros(len(images), 3, *images.shape[1:])


def test_each_kind_of_series_has_a_row_per_method():
    cases = {"one": synthetic_cases([1], (24, 24, 24), 2), "other": synthetic_cases([2], (24, 24, 24), 2)}
    rows = start(cases, {"hold": hold}, progress=lambda line: None)
    assert [(row["series"], row["method"]) for row in rows] == [
        (kind, method) for kind in ("one", "other") for method in ("unregistered", "hold")
    ]
    before, after = rows[0]["mean error, voxels"], rows[1]["mean error, voxels"]
    assert before == after > 0.5 and "seconds" in rows[1]


@pytest.mark.slow
def test_the_true_motion_of_breasts_leaves_no_error_in_mm_nor_in_lesion_volumes():
    (case,) = breast_cases([1], (96, 84, 54), (3.2, 3.2, 3.4), landmarks=200)
    motion = DisplacementField.on_voxels(case["motion"][None])
    field = invert(motion, iterations=40)
    before, after = before_and_after_mm(case["landmarks_mm"], timepoint_transforms(field, motion, case["affine"]))
    ddf = field.values[0]
    assert before.mean() > 1 and after.max() < 0.1
    i, j, k = case["landmarks"][0].round().long().unbind(dim=1)
    assert (case["lesion_mask"][0][i, j, k] > 0).float().mean() > 0.05
    assert lesion_volume_error_percent(ddf, case["lesion_mask"]) < 5  # by the voxels' size
    stretched = ddf.clone()
    stretched[::2, 0] += 0.3 * (torch.arange(96.0).view(-1, 1, 1) - 47.5)
    assert lesion_volume_error_percent(stretched, case["lesion_mask"]) > 10


def test_the_true_motion_brings_the_landmarks_of_a_thorax_together():
    (case,) = thorax_cases([3], (48, 48, 40), 3)
    voxels = case["affine"][:3, :3].diagonal()
    torch.testing.assert_close(case["landmarks_mm"], case["landmarks"].double() * voxels)
    unregistered, true_motion = compare([case], {}, progress=lambda line: None)
    assert unregistered["mean error, voxels"] > 0.5
    # Only beside the sliding border is the inverse of the sampled motion not exact.
    assert true_motion["mean error, voxels"] < 0.05 * unregistered["mean error, voxels"]
