import pytest
import torch

from groupmorph_monai.benchmarks.compare import compare, lesion_volume_error_percent
from groupmorph_monai.data import make_phantom
from groupmorph_monai.space import voxel_grid


def no_motion(images):
    return torch.zeros(len(images), 3, *images.shape[1:])


@pytest.fixture(scope="module")
def case():
    return {"name": "one", **make_phantom(6, (32, 28, 24), 3, max_motion_voxels=3, landmarks=200)}


def test_a_method_that_moves_nothing_is_as_good_as_no_registration(case):
    unregistered, true, row = compare([case], {"still": no_motion}, progress=lambda line: None)
    assert true["mean error, voxels"] < 0.02 and true["lesion volume error, %"] < 6
    assert row["method"] == "still" and unregistered["method"] == "unregistered"
    for name, value in unregistered.items():
        if name != "method":
            assert row[name] == pytest.approx(value, nan_ok=True)
    distances = torch.cat(
        [(case["landmarks"][i] - case["landmarks"][j]).norm(dim=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    )
    assert unregistered["mean error, voxels"] == pytest.approx(distances.mean().item(), rel=1e-4)
    assert row["peak memory, GB"] > 0.05 and row["seconds"] >= 0


def test_the_volume_that_a_field_gives_a_lesion_is_its_jacobians():
    """Timepoint 1 is timepoint 0 stretched by 1.25 along the first axis about the centre of the grid."""
    size, middle = (41, 21, 21), torch.tensor([20.0, 10, 10])
    grid = voxel_grid(size, torch.empty(0))
    offset = grid - middle.view(3, 1, 1, 1)
    lesions = torch.stack([(offset[0].abs() <= 8), (offset[0].abs() <= 10)]).int()
    lesions = lesions * ((offset[1].abs() <= 5) & (offset[2].abs() <= 5))
    stretched = torch.zeros(2, 3, *size)
    stretched[1, 0] = 0.25 * offset[0]
    assert lesion_volume_error_percent(stretched, lesions) < 3
    expected = 100 * 0.5 * (abs(17 / 21 - 1) + abs(21 / 17 - 1))
    assert lesion_volume_error_percent(torch.zeros_like(stretched), lesions) == pytest.approx(expected, rel=1e-4)
