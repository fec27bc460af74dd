import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from scipy.ndimage import gaussian_filter as scipys_gaussian

from groupmorph_monai.probability import GaussianCorrelation, LocalCorrelation, WindowCorrelation
from groupmorph_monai.space.filters import gaussian_filter, gradient


def volumes(timepoints=3, size=(11, 9, 10), sigma=0.0, seed=0):
    x = torch.rand(1, timepoints, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return gaussian_filter(x, sigma) if sigma else x


def test_it_is_the_log_of_what_a_windows_regression_leaves():
    x = volumes()
    likelihood = LocalCorrelation((1,), noise=1e-6)
    total, size = 0.0, x.shape[2:]
    z = torch.zeros(x.shape, dtype=torch.float64).numpy()
    padded = np.pad(x[0].numpy(), [(0, 0), (1, 1), (1, 1), (1, 1)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), axis=(1, 2, 3)).reshape(3, *size, 27)
    z = (x[0].numpy() - windows.mean(-1)) / windows.std(-1)
    template = np.pad(z.mean(0), 1, mode="edge")
    t = np.lib.stride_tricks.sliding_window_view(template, (3, 3, 3)).reshape(*size, 27)
    for k in range(3):
        t0, w0 = t - t.mean(-1, keepdims=True), windows[k] - windows[k].mean(-1, keepdims=True)
        explained = (t0 * w0).mean(-1) ** 2 / (t0.var(-1) + 1e-3) / w0.var(-1)
        total -= 2 / 3 * 0.5 * np.log(3 / 2 * (1 - explained)).mean()  # three volumes count as two
    assert likelihood(x).item() == pytest.approx(total / 3, rel=1e-6)


def test_the_gain_and_offset_of_a_timepoint_do_not_count():
    x = volumes()
    factors = torch.tensor([1.0, 3.0, 0.4], dtype=torch.float64).view(1, 3, 1, 1, 1)
    likelihood = LocalCorrelation((2,), noise=1e-7)
    torch.testing.assert_close(likelihood(factors * x + factors), likelihood(x), rtol=1e-6, atol=0)


def noisy_series(timepoints, noise=0.05):
    """Volumes of one texture with noise of its own, displacements ``(1, K, 3)`` of mean 0 over K, and what a volume
    changes by under them, ``(1, K, *S)``, but near the border.

    The texture repeats itself at every window's width, so that all windows have one mean and variance.
    """
    tile = gaussian_filter(volumes(1, (5, 5, 5)).repeat(1, 1, 5, 5, 5), 1.0)[:, :, 10:15, 10:15, 10:15]
    texture = 0.2 * ((tile - tile.mean()) / tile.std()).repeat(1, 1, 6, 6, 6)
    rng = torch.Generator().manual_seed(1)
    x = texture + noise * torch.randn(1, timepoints, 30, 30, 30, generator=rng, dtype=torch.float64)
    d = torch.randn(1, timepoints, 3, generator=rng, dtype=torch.float64)
    d = d - d.mean(dim=1, keepdim=True)
    inner = torch.zeros_like(texture)
    inner[..., 6:-6, 6:-6, 6:-6] = 1
    return x, d, inner * along(texture, d)


def along(guide, d):
    return torch.einsum("bnd,bdijk->bnijk", d, gradient(guide)[:, 0])


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_score_and_weight_are_the_derivatives_of_the_value(timepoints):
    x, d, change = noisy_series(timepoints)
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


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_the_curvature_is_that_under_the_true_noise(timepoints):
    """With the template integrated out, K volumes of known noise have the log likelihood ``-sum_k (x_k - mean)^2 / (2
    noise^2)``: its curvature is what the weights must find without being told the noise."""
    noise = 0.05
    x, d, change = noisy_series(timepoints, noise)
    x = x * torch.linspace(1, 3, timepoints).view(1, -1, 1, 1, 1) + 0.3  # gains and offsets do not count
    _, guide, _, weight, _ = LocalCorrelation((2,), noise=1e-6).linearise(x)
    actual = (weight * ((change != 0) * along(guide, d)).square()).sum()
    assert float(actual) == pytest.approx(float(change.square().sum() / noise**2), rel=0.08)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_the_noise_of_the_guide_is_that_of_a_mean(timepoints, masked):
    x, _, _ = noisy_series(timepoints)
    x = x * torch.arange(1.0, timepoints + 1).view(1, -1, 1, 1, 1)
    noise = LocalCorrelation((2,), noise=1e-6).guide_noise(x, torch.ones_like(x) > 0 if masked else None)
    # The texture's standard deviation is 0.2 and the noise's 0.05.
    expected = 0.05**2 / (0.2**2 + 0.05**2) / timepoints
    assert float(noise[..., 6:-6, 6:-6, 6:-6].mean()) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_noise_alone_has_no_value(timepoints):
    x = torch.randn(1, timepoints, 24, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert abs(float(LocalCorrelation((3,), noise=1e-6)(x))) < 0.01


def test_several_radii_are_averaged_by_their_weights():
    x = volumes()
    one, two = LocalCorrelation((1,))(x), LocalCorrelation((2,))(x)
    torch.testing.assert_close(LocalCorrelation((1, 2), (3.0, 1.0))(x), 0.75 * one + 0.25 * two)


def test_radii_and_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="radii_voxels"):
        LocalCorrelation((1, 2), (1.0,))


def test_gaussian_correlation_is_the_papers_equation_over_all_pairs():
    x, pairs = volumes(3), []

    def mean(a):
        return scipys_gaussian(a.numpy(), 2.0, mode="nearest", radius=4)

    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = x[0, i], x[0, j]
        pairs.append((mean(a * b) ** 2 / (mean(a * a) * mean(b * b) + 1e-5)).mean())
    assert GaussianCorrelation()(x).item() == pytest.approx(np.mean(pairs), rel=1e-9)
    scaled = x * torch.tensor([1.0, 3.0, 0.2]).view(1, 3, 1, 1, 1)
    same = GaussianCorrelation(epsilon=0.0)
    assert same(scaled).item() == pytest.approx(same(x).item(), rel=1e-9)
    assert same(x[:, :1].expand(-1, 3, -1, -1, -1)).item() == pytest.approx(1)


def test_the_values_of_voxels_sum_to_the_likelihood():
    x, likelihood = volumes(4), LocalCorrelation((2,))
    value = likelihood.linearise(x).value
    assert value.shape == (len(x), 1, *x.shape[2:])
    torch.testing.assert_close(value.sum() / x.numel(), likelihood(x))


def test_strided_and_dilated_windows_are_correlated_pair_by_pair():
    x = volumes(3, (12, 10, 8), sigma=1.0)
    likelihood = WindowCorrelation((0.25, 0.5), (0.3, 0.7), step=0.25, dilation=2, noise=0.0)
    total = 0.0
    for side, weight in ((2, 0.3), (4, 0.7)):  # of the smallest extent, 8
        span, actual = 2 * (side - 1) + 1, []
        corners = np.stack(np.meshgrid(*[np.arange(0, n - span + 1, 2) for n in (12, 10, 8)]), axis=-1).reshape(-1, 3)
        for corner in corners:
            box = tuple(slice(c, c + span, 2) for c in corner)
            correlation = np.corrcoef([volume.numpy()[box].ravel() for volume in x[0]])
            actual.append(correlation[np.triu_indices(3, 1)].mean())
        total += weight * np.mean(actual)
    assert likelihood(x).item() == pytest.approx(total, rel=1e-9)


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
    """Where a volume has an unseen voxel at most so many voxels away along every axis."""
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
    """Half of the second volume, moved along the first axis, lies outside: border or padding instead of tissue."""
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
    # Nor do more voxels than were seen: the sum over the grid is no greater either.
    assert apart.value.sum() < aligned.value.sum()


def test_one_volume_alone_is_no_evidence():
    x, covered = volumes(3, (16, 9, 10)), torch.ones(1, 3, 16, 9, 10, dtype=torch.bool)
    covered[:, 1:, 8:] = False
    actual = LocalCorrelation((1,)).linearise(x, covered)
    # All three count up to two voxels before the border of what they have seen, and none beyond that of windows.
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
