import numpy as np
import pytest
import torch
from contracts import along, noisy_series
from scipy.ndimage import binary_dilation

from groupmorph_monai.probability import GaussianCorrelation, LocalCorrelation, WindowCorrelation
from groupmorph_monai.space.filters import gaussian_filter


def volumes(timepoints=3, size=(11, 9, 10), sigma=0.0, seed=0):
    x = torch.rand(1, timepoints, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return gaussian_filter(x, sigma) if sigma else x


def test_the_gain_and_offset_of_a_timepoint_do_not_count():
    x = volumes()
    factors = torch.tensor([1.0, 3.0, 0.4], dtype=torch.float64).view(1, 3, 1, 1, 1)
    likelihood = LocalCorrelation((2,), noise=1e-7)
    torch.testing.assert_close(likelihood(factors * x + factors), likelihood(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_score_and_weight_are_the_derivatives_of_the_value(timepoints):
    x, d, change = noisy_series(timepoints, 0.05)
    likelihood, inner, step = LocalCorrelation((2,), noise=1e-3), change != 0, 0.02

    def value(offset):
        return float(likelihood(x + offset * change) * x.numel())

    _, guide, _, weight, _ = likelihood.linearise(x)
    second = (value(step) - 2 * value(0) + value(-step)) / step**2
    assert float((weight * (inner * along(guide, d)).square()).sum()) == pytest.approx(-second, rel=0.15)
    off = 0.1  # of d
    _, guide, score, *_ = likelihood.linearise(x - off * change)
    first = (value(step - off) - value(-step - off)) / (2 * step)
    assert float((score * inner * along(guide, d)).sum()) == pytest.approx(first, rel=0.15)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_the_noise_of_the_guide_is_that_of_a_mean(timepoints, masked):
    x, _, _ = noisy_series(timepoints, 0.05)
    x = x * torch.arange(1.0, timepoints + 1).view(1, -1, 1, 1, 1)
    noise = LocalCorrelation((2,), noise=1e-6).guide_noise(x, torch.ones_like(x) > 0 if masked else None)
    # The texture's standard deviation is 0.2 and the noise's 0.05.
    expected = 0.05**2 / (0.2**2 + 0.05**2) / timepoints
    assert float(noise[..., 6:-6, 6:-6, 6:-6].mean()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_noise_alone_has_no_value(timepoints):
    x = torch.randn(1, timepoints, 24, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert abs(float(LocalCorrelation((3,), noise=1e-6)(x))) < 0.01


@pytest.mark.parametrize("radii", [(), (0, 2)])
def test_no_window_and_a_window_of_a_voxel_are_refused(radii):
    with pytest.raises(ValueError, match="radii_voxels"):
        LocalCorrelation(radii)


def test_windows_that_reach_beyond_the_volume_are_refused():
    with pytest.raises(ValueError, match="kernel_voxels.*odd"):
        GaussianCorrelation(kernel_voxels=8)
    with pytest.raises(ValueError, match="fit into a volume"):
        WindowCorrelation((0.5, 0.75), (1.0, 1.0), dilation=2)


def unseen_box(timepoints, size):
    """Each volume lacks a slab at another face: ``(1, K, *size)`` bool."""
    covered = torch.ones(1, timepoints, *size, dtype=torch.bool)
    for k in range(timepoints):
        lacking = covered[0, k].movedim(k % 3, 0)
        if k < 3:
            lacking[:3] = False
        else:
            lacking[-2:] = False
    return covered


def near(covered, voxels):
    """Mark voxels with an invalid voxel within this distance along every axis."""
    return binary_dilation(~covered.numpy(), np.ones((1, 1, *[2 * voxels + 1] * 3)))


@pytest.mark.parametrize("how", ["zero", "constant", "noise"])
@pytest.mark.parametrize("timepoints", [2, 3, 6])
@pytest.mark.parametrize("radii", [(1,), (2,), (1, 2)])
def test_values_that_nobody_measured_change_nothing(radii, timepoints, how):
    size = (20, 19, 18)
    x, covered = volumes(timepoints, size, sigma=1.0), unseen_box(timepoints, size)
    other = {"zero": torch.zeros_like(x), "constant": torch.full_like(x, 0.9)}.get(
        how, volumes(timepoints, size, seed=8)
    )
    likelihood = LocalCorrelation(radii)
    expected, actual = (likelihood.linearise(images, covered) for images in (x, torch.where(covered, x, other)))
    for name in ("value", "guide", "score", "weight", "volume_count"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-9, atol=1e-12, msg=name)
    assert (
        likelihood.linearise(x).score.sub(likelihood.linearise(torch.where(covered, x, other)).score).abs().max() > 1e-2
    )
    unknown = near(covered, 1)
    assert (actual.score.numpy()[unknown] == 0).all() and (actual.weight.numpy()[unknown] == 0).all()
    counts = actual.weight.numpy() > 0
    np.testing.assert_array_equal(actual.volume_count.numpy(), counts.sum(axis=1, keepdims=True))
    assert set(np.unique(actual.volume_count)) <= {0, *range(2, timepoints + 1)}
    clear = ~near(covered, max(radii))
    assert counts[clear & (clear.sum(axis=1, keepdims=True) > 1)].all() and clear.any()


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_beyond_the_windows_of_what_was_not_seen_all_is_as_without_a_mask(timepoints):
    size = (20, 19, 18)
    x, covered = volumes(timepoints, size, sigma=1.0), unseen_box(timepoints, size)
    expected, actual = LocalCorrelation((2,)).linearise(x), LocalCorrelation((2,)).linearise(x, covered)
    far = torch.from_numpy(~near(covered, 4).any(axis=1, keepdims=True))
    assert 0.02 < far.double().mean() < 0.9
    for name in ("value", "guide", "score", "weight"):
        one, other = getattr(actual, name), getattr(expected, name)
        inside = far.expand_as(one)
        torch.testing.assert_close(one[inside], other[inside], rtol=1e-9, atol=1e-12, msg=name)
    assert (actual.volume_count[far] == timepoints).all()


@pytest.mark.parametrize("beside", [0.0, 0.5])
def test_a_constant_beside_a_volume_does_not_score_above_its_own_texture(beside):
    """Half of the second volume, shifted along the first axis, is outside: border or padding instead of tissue."""
    size, shift = (32, 16, 16), 16
    one = volumes(1, size, sigma=1.0)
    x = torch.cat([one, 1.5 * one - 0.2], dim=1) + 0.02 * volumes(2, size, seed=6)
    shifted, covered = x.clone(), torch.ones_like(x, dtype=torch.bool)
    shifted[:, 1, :shift], shifted[:, 1, shift:] = x[:, 1, shift:], beside
    covered[:, 1, shift:] = False
    likelihood = LocalCorrelation((2,))
    aligned, apart = likelihood.linearise(x, covered), likelihood.linearise(shifted, covered)
    # The same voxels count for both, and none beside the volume.
    assert torch.equal(aligned.volume_count, apart.volume_count) and apart.volume_count[:, :, shift - 1 :].max() == 0
    comparable = apart.volume_count > 1
    assert comparable.any() and (apart.value[apart.volume_count == 0] == 0).all()
    assert aligned.value[comparable].mean() > apart.value[comparable].mean() + 0.5
    # The sum over the grid is smaller, too: moving volumes apart adds no voxels.
    assert apart.value.sum() < aligned.value.sum()


def test_one_volume_alone_is_no_evidence():
    x, covered = volumes(3, (16, 9, 10)), torch.ones(1, 3, 16, 9, 10, dtype=torch.bool)
    covered[:, 1:, 8:] = False
    actual = LocalCorrelation((1,)).linearise(x, covered)
    # All three volumes count up to two voxels before the border of the field of view, and none from its last voxel on.
    assert set(actual.volume_count[0, 0, :6].unique().tolist()) == {3}
    assert (actual.volume_count[0, 0, 7:] == 0).all() and (actual.value[0, 0, 7:] == 0).all()
    assert (actual.score[0, :, 7:] == 0).all() and (actual.weight[0, :, 7:] == 0).all()


@pytest.mark.parametrize("noise", [0.0, 0.002])
@pytest.mark.parametrize("timepoints", [2, 3])
def test_tissue_beside_measured_air_explains_nothing(timepoints, noise):
    """The air is measured, unlike what lies beyond a volume; the template then consists of the tissue alone."""
    x = noise * torch.randn(volumes(timepoints, (24, 24, 24)).shape, generator=torch.Generator().manual_seed(1))
    tissue, air = volumes(timepoints, x.shape[2:], sigma=0.5), x.double()
    one = torch.cat([tissue[:, :1], air[:, 1:]], dim=1)
    likelihood = LocalCorrelation((2,))
    apart, aligned = likelihood.linearise(one), likelihood.linearise(tissue[:, :1] + air)
    assert aligned.value.mean() > 1 and abs(apart.value.mean()) < 0.02 * aligned.value.mean()
    assert abs(float(likelihood(one))) < 0.02 * float(likelihood(tissue[:, :1] + air))
    if noise == 0:
        assert apart.weight.abs().max() < 1e-6 * aligned.weight.abs().max()
