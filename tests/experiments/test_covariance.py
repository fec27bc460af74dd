import math

import pytest
import torch

from experiments.covariance import draws, heart_cases, matched_smoothing_voxels, roughness
from groupmorph_monai.data import HEART_MOTIONS, make_heart
from groupmorph_monai.probability import Posterior
from groupmorph_monai.space import MeanAlignment, ScalingAndSquaring
from groupmorph_monai.space.filters import gaussian_filter
from groupmorph_monai.space.transforms import interpolate


def test_landmarks_of_a_heart_lie_in_it_and_move_as_it_does():
    first, second = heart_cases([3, 4], size=(24, 24, 16), landmarks=50)
    kinds = list(HEART_MOTIONS)
    for case, heart in (
        (first, make_heart(3, kinds[0], size=(24, 24, 16))),
        (second, make_heart(4, kinds[1], size=(24, 24, 16))),
    ):
        rest, contracted = case["landmarks"]
        assert torch.equal(case["image"], heart["image"]) and len(rest) == 50
        assert (interpolate(heart["heart"][None], contracted) > 0.99).all()
        torch.testing.assert_close(rest - contracted, interpolate(heart["motion"], contracted))
        assert (rest - contracted).norm(dim=1).mean() > 0.3


def test_roughness_is_1_of_white_noise_and_less_of_what_is_smooth():
    noise = torch.randn(2, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    assert roughness(noise) == pytest.approx(1, abs=0.02)
    # Neighbours in a Gaussian-filtered field of width s correlate by exp(-1 / (4 s^2)).
    smooth = gaussian_filter(noise[None], 2.0)[0]
    assert roughness(smooth) == pytest.approx((1 - 2.718281828 ** (-1 / 16)) ** 0.5, rel=0.1)


def test_the_matched_kernels_peak_is_the_variance_of_a_voxel_with_six_neighbours():
    sigma = matched_smoothing_voxels(20.0)
    assert (2 * math.pi * sigma**2) ** -1.5 == pytest.approx(1 / 120)


class Method:
    """Method that ignores the images, with draws of known standard deviation."""

    def __init__(self, smoothing_voxels):
        self.posterior = Posterior(smoothing_voxels)
        self.alignment, self.transformation = MeanAlignment(), ScalingAndSquaring(3)

    def parts(self):
        return self, None, lambda images: images[None]

    def fields(self, images, network):
        z = torch.zeros(1, 2, 3, *images.shape[2:])
        return {"z_mean": z, "z_log_variance": z - 1}


def test_smooth_draws_are_smoother_and_fold_less(tmp_path):
    cases = heart_cases([1], size=(24, 24, 16), landmarks=10)
    rough, smooth = draws(cases, {"diagonal": Method(0.0), "smoothed": Method(1.5)}, tmp_path, number=4)
    assert rough["roughness of draws"] == pytest.approx(1, abs=0.05) and smooth["roughness of draws"] < 0.5
    assert rough["standard deviation, voxels of z"] == pytest.approx(2.718281828**-0.5, rel=0.1)
    assert rough["folds of draws, %"] > 0.01 and smooth["folds of draws, %"] == 0
    assert (tmp_path / "draws.png").stat().st_size > 10_000
