import pytest
import torch
from torch.nn.functional import grid_sample

from groupmorph_monai.data.phantoms.breathing import make_breathing_series


@pytest.fixture(scope="module")
def breathing():
    return make_breathing_series(3, max_motion_mm=20, size=(64, 56, 24), spacing_mm=(3, 3, 6), noise=0)


def test_landmarks_show_the_same_tissue_at_every_timepoint(breathing):
    image, spacing = breathing["image"], breathing["affine"].diagonal()[:3]
    values = []
    for volume, points in zip(image, breathing["landmarks_mm"].double()):
        voxels = points / spacing
        grid = (2 * voxels / (torch.tensor(volume.shape) - 1) - 1).flip(1)[None, :, None, None]
        values.append(grid_sample(volume.double()[None, None], grid, align_corners=True).flatten())
    inside = breathing["inside"]
    for k, value in enumerate(values):
        gain = 1 + 0.5 * k / 5
        apart = (value[inside] / gain - values[0][inside]).abs()
        # Interpolation between voxels of 3 x 3 x 6 mm blurs finer detail.
        assert apart.mean() < 0.25 * (values[0][inside] - values[0][inside].flip(0)).abs().mean()
        torch.testing.assert_close(value[~inside], values[0][~inside])


def test_organs_slide_along_a_static_wall(breathing):
    points, inside = breathing["landmarks_mm"], breathing["inside"]
    displacements = points[:, None] - points[None]
    assert inside.any() and (~inside).any()
    assert displacements[:, :, ~inside].abs().max() == 0
    assert displacements[..., [0, 2]].abs().max() == 0
    assert 12 < displacements[:, :, inside, 1].abs().max() < 25


def test_a_seed_repeats_itself():
    options = {"size": (16, 14, 12), "spacing_mm": (8, 8, 10), "landmarks": 20}
    one, same, other = (make_breathing_series(seed, **options) for seed in (5, 5, 6))
    assert torch.equal(one["image"], same["image"]) and torch.equal(one["landmarks_mm"], same["landmarks_mm"])
    assert not torch.equal(one["image"], other["image"])
