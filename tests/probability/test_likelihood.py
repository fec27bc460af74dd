import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch.distributions import Normal

from groupmorph_monai.probability import GroupNMI, SquaredError, impute, likelihood


def volumes(timepoints=3, size=(9, 8, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(1, 1, *size, dtype=torch.float64, generator=generator)
    noise = torch.rand(1, timepoints, *size, dtype=torch.float64, generator=generator)
    return (0.6 * base + 0.4 * noise).clamp(0, 1)


def numpy_nmi(a, b, bins, kind):
    edges = (np.arange(bins + 1) - 0.5) / (bins - 1)  # windows are centred on 0 ... 1
    joint, _, _ = np.histogram2d(a.ravel(), b.ravel(), bins=[edges, edges])
    joint /= joint.sum()

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    one, other, both = entropy(joint.sum(1)), entropy(joint.sum(0)), entropy(joint)
    return (one + other) / both if kind == "studholme" else 2 * (one + other - both) / (one + other)


@pytest.mark.parametrize("kind", ["uncertainty", "studholme"])
def test_narrow_windows_give_numpys_histogram_for_every_pair(kind):
    images = volumes()
    pairs = GroupNMI(bins=8, window_bins=0.002, kind=kind).pairwise(images)[0]
    for i in range(3):
        for j in range(3):
            expected = numpy_nmi(images[0, i].numpy(), images[0, j].numpy(), 8, kind)
            assert pairs[i, j].item() == pytest.approx(expected, abs=1e-3)


def test_identical_volumes_determine_one_another():
    image = volumes(1).expand(1, 3, -1, -1, -1)
    assert GroupNMI(bins=8, window_bins=0.002)(image).item() == pytest.approx(1, abs=1e-3)


def test_a_monotonous_change_of_contrast_does_not_matter_but_a_shift_does():
    smooth = torch.nn.functional.interpolate(volumes(1, (5, 5, 5)), size=(20, 20, 20), mode="trilinear")
    scores = [
        GroupNMI(bins=16)(torch.cat([smooth, 1 - smooth.roll(shift, dims=2) ** 2], dim=1)[:, :, 4:-4]).item()
        for shift in (-2, -1, 0, 1, 2)
    ]
    assert scores.index(max(scores)) == 2
    assert scores[2] > 1.5 * scores[0]


def test_gradient_is_right_and_finite_where_bins_are_empty():
    images = (volumes(2, (3, 3, 3)) * 0.5 + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(GroupNMI(bins=5, window_bins=0.7), (images,))
    narrow = torch.autograd.grad(GroupNMI(bins=64, window_bins=0.1)(images), images)[0]
    assert narrow.isfinite().all()
    constant = torch.full((1, 2, 3, 3, 3), 0.5, requires_grad=True)
    value = GroupNMI()(constant)
    assert value.isfinite()
    assert torch.autograd.grad(value, constant)[0].isfinite().all()


def test_a_fraction_of_the_voxels_is_drawn_only_while_training():
    images, likelihood = volumes(size=(20, 20, 20)), GroupNMI(bins=8, voxel_fraction=0.2)
    whole = GroupNMI(bins=8)(images)
    first, second = likelihood(images), likelihood(images)
    assert first != second
    assert first.item() == pytest.approx(whole.item(), abs=0.05)
    torch.testing.assert_close(likelihood.eval()(images), whole)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least 2 timepoints"):
        GroupNMI()(volumes(1))
    with pytest.raises(ValueError, match="kind.*'mi'"):
        GroupNMI(kind="mi")
    with pytest.raises(ValueError, match="voxel_fraction"):
        GroupNMI(voxel_fraction=0)


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_squared_errors_second_order_model_is_the_log_density_of_volumes_around_a_latent_image(timepoints):
    """The paper's noise is the noise of a difference. A flat prior of the latent image leaves K - 1 contrasts."""
    noise, x = 0.3, volumes(timepoints)
    change = 0.1 * volumes(timepoints, seed=3)
    change = change - change.mean(dim=1, keepdim=True)
    contrasts = torch.linalg.eigh(torch.eye(timepoints).double() - 1 / timepoints).eigenvectors[:, 1:].T
    of_contrasts = Normal(torch.zeros((), dtype=torch.float64), noise / 2**0.5)
    volume_log_density = of_contrasts.log_prob(torch.einsum("ck,bk...->bc...", contrasts, x + change))
    constant = of_contrasts.log_prob(torch.zeros(())) * (timepoints - 1)
    expected = volume_log_density.sum(dim=1, keepdim=True) - constant
    value, guide, score, weight, number = SquaredError(noise).linearise(x)
    actual = value + (score * change - 0.5 * weight * change.square()).sum(dim=1, keepdim=True)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(guide, x.mean(dim=1, keepdim=True))
    assert (number == timepoints).all()


@pytest.mark.parametrize("kind, without_information", [("uncertainty", 0), ("studholme", 1)])
def test_two_volumes_without_a_common_voxel_have_no_mutual_information(kind, without_information):
    x, valid = volumes(2).requires_grad_(), torch.ones(1, 2, 9, 8, 7, dtype=torch.bool)
    valid[:, 0, :5], valid[:, 1, 5:] = False, False
    likelihood = GroupNMI(bins=8, kind=kind)
    assert likelihood(x, valid).item() == pytest.approx(without_information, abs=1e-6)
    assert torch.autograd.grad(likelihood(x, valid), x)[0].abs().max() < 1e-6
    assert likelihood(x).item() > without_information + 0.01


class Slope(likelihood.Likelihood):
    """``sum(score * warped)``, whose scores are given."""

    def __init__(self, score, **options):
        super().__init__(**options)
        self.slope = score

    def forward(self, warped, valid=None):
        return (self.slope * warped).mean()


def test_a_weight_is_the_mean_square_of_the_scores_around():
    """Fisher's identity, by scipy's filter: a score that differs from voxel to voxel and between timepoints."""
    score = volumes(3, (12, 10, 9)) - 0.4
    score[:, 1] *= 10
    for smooth, stiffness in ((1, 4.0), (3, 1.0)):
        actual = Slope(score, smooth_voxels=smooth, stiffness=stiffness).linearise(volumes(3, (12, 10, 9), seed=1))
        window = (1, 1, *[2 * smooth + 1] * 3)
        expected = stiffness * uniform_filter(score.numpy() ** 2, window, mode="nearest")
        torch.testing.assert_close(actual.score, score)
        np.testing.assert_allclose(actual.weight.numpy(), expected, rtol=1e-9)
        assert actual.weight[:, 1].mean() > 50 * actual.weight[:, 0].mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("valid_dtype", [torch.bool, torch.float32])
def test_imputed_values_keep_their_precision(dtype, valid_dtype):
    x = torch.tensor([[[1.0], [2.0], [9.0]]], dtype=dtype)
    imputed = impute(x, torch.tensor([[[1], [1], [0]]]).to(valid_dtype))
    torch.testing.assert_close(imputed, torch.tensor([[[1.0], [2.0], [1.5]]], dtype=dtype))
