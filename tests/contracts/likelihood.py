"""Contracts of likelihoods."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from groupmorph_monai.space.filters import gaussian_filter, gradient

from .base import TIMEPOINTS, SeriesContract, another_order, one_at_a_time, random


class LikelihoodContract(SeriesContract):
    """Contract of a likelihood. ``oracle`` takes the volumes ``(K, *S)`` and where they are valid, bool.

    Attributes:
        size: volume size in voxels.
        invariant_to_gain: whether volumes that differ by a factor are aligned perfectly.
        least_effect: voxels change the value by more than this if they are valid.
    """

    size, invariant_to_gain, least_effect = (13, 12, 14), True, 1e-4
    tolerances = {
        **SeriesContract.tolerances,
        "oracle": (1e-8, 1e-10),
        "gradient": (1e-4, 1e-9),
        "linearised": (1e-7, 1e-8),
        "linearised order": (1e-5, 1e-8),
        "chunks": (1e-9, 1e-10),
        "invalid voxels": (1e-9, 1e-12),
        "full mask": (1e-6, 1e-9),
        "weights": (1e-4, 1e-4),
        "fewer voxels": (0.1, 0.0),
    }

    def inputs(self, timepoints, batch=2):
        """Generate different images that share some structure."""
        shared = random(batch, 1, *self.size)
        return (0.1 + 0.5 * shared + 0.3 * random(batch, timepoints, *self.size, seed=1),)

    def valid(self, timepoints, batch=1):
        """Leave out ends of two volumes and a voxel of another. The last rows are valid in one volume, and in none."""
        valid = torch.ones(batch, timepoints, *self.size, dtype=torch.bool)
        valid[:, 0, :5], valid[:, 0, :, :2], valid[:, 0, ..., -2:] = False, False, False
        valid[:, 1, :, -3:], valid[:, -1, 7, 4, 6] = False, False
        valid[:, :-1, 11:], valid[:, :, 12] = False, False
        return valid

    @pytest.fixture(params=product(TIMEPOINTS, (False, True)), ids=lambda p: f"{p[0]}-{'masked' if p[1] else 'whole'}")
    def series(self, request):
        timepoints, masked = request.param
        return *self.inputs(timepoints), *([self.valid(timepoints, batch=2)] if masked else [])

    def expected(self, x, valid=None):
        return super().expected(x, torch.ones_like(x, dtype=torch.bool) if valid is None else valid)

    def linearised(self, x, valid, slope):
        """Compute the second-order model of one series, by Fisher's identity from the likelihood's gradient."""
        likelihood, score = self.subject(), valid.sum() * slope
        window = (1, *[2 * likelihood.smooth_voxels + 1] * 3)
        mean = (valid * x).sum(0) / valid.sum(0).clip(1)
        return {
            "value": np.full((1, *self.size), len(x) * self.oracle(x, valid)),
            "guide": np.where(valid, x, mean),
            "score": score,
            "weight": valid * likelihood.stiffness * uniform_filter(score**2, window, mode="nearest"),
        }

    def test_second_order_model_equals_the_oracle(self, series):
        x, *mask = (part[:1] for part in series)
        (slope,) = torch.autograd.grad(self.value(start := x.clone().requires_grad_(), *mask), start)
        valid = mask[0] if mask else torch.ones_like(x, dtype=torch.bool)
        model = self.subject().linearise(x, *mask)
        for name, expected in self.linearised(*(part[0].numpy() for part in (x, valid, slope))).items():
            self.assert_close("linearised", getattr(model, name)[0].to(x), torch.as_tensor(expected).to(x), name)

    def test_a_timepoint_at_a_time_gives_the_same_model(self, series):
        x, *mask = (part[:1] for part in series)
        likelihood, valid = self.subject(), mask[0] if mask else None
        model, parts = likelihood.linearise(x, valid), list(likelihood.parts(x, valid, one_at_a_time))
        assert len(parts) == (1 if likelihood.couples_all else x.shape[1])
        self.assert_close("chunks", sum(part.value for _, part in parts), model.value, "value")
        for c, part in parts:
            self.assert_close("chunks", part.guide, model.guide, "guide")
            self.assert_close("chunks", part.score, model.score[:, c], "score")
            self.assert_close("chunks", part.weight, model.weight[:, c], "weight")
            if model.volume_count is not None:
                self.assert_close("chunks", part.volume_count, model.volume_count, "volume_count")

    def test_nats_are_under_the_contract_of_calibrated_likelihoods(self):
        assert self.subject().calibrated == isinstance(self, CalibratedContract)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_order_of_timepoints_does_not_matter_to_the_second_order_model(self, timepoints):
        (x,), order, likelihood = self.inputs(timepoints, 1), another_order(timepoints), self.subject()
        model, reordered = likelihood.linearise(x), likelihood.linearise(x[:, order])
        for name in ("value", "guide", "score", "weight"):
            expected = getattr(model, name)
            expected = expected[:, order] if expected.shape[1] == timepoints else expected
            self.assert_close("linearised order", getattr(reordered, name), expected, name)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_aligned_volumes_are_more_likely(self, timepoints):
        (x,), likelihood = self.inputs(timepoints, 1), self.subject()
        gains = torch.linspace(0.6, 1.4, timepoints).view(1, -1, 1, 1, 1).double() if self.invariant_to_gain else 1
        alike = gains * x[:, :1].expand_as(x)
        shifted = torch.cat([v.roll(2 * k, dims=2) for k, v in enumerate(alike.split(1, dim=1))], dim=1)
        assert likelihood(alike) > likelihood(x) and likelihood(alike) > likelihood(shifted)

    @pytest.mark.parametrize("values", ["zero", "constant", "noise"])
    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_invalid_voxels_have_no_score(self, timepoints, values):
        (x,), valid, likelihood = self.inputs(timepoints, 1), self.valid(timepoints), self.subject()
        unseen = {"zero": 0.0, "constant": 0.9, "noise": 0.9 * random(*x.shape, seed=5)}[values]
        other = torch.where(valid, x, unseen)
        model, same = likelihood.linearise(x, valid), likelihood.linearise(other, valid)
        for name in ("value", "guide", "score", "weight"):
            self.assert_close("invalid voxels", getattr(same, name), getattr(model, name), name)
        assert (model.score[~valid] == 0).all() and (model.weight[~valid] == 0).all() and model.score.any()

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_full_mask_equals_no_mask(self, timepoints):
        (x,), likelihood = self.inputs(timepoints, 1), self.subject()
        everywhere = torch.ones_like(x, dtype=torch.bool)
        self.assert_close("full mask", likelihood(x, everywhere), likelihood(x))
        model, masked = likelihood.linearise(x), likelihood.linearise(x, everywhere)
        for name in ("value", "guide", "score", "weight"):
            self.assert_close("full mask", getattr(masked, name), getattr(model, name), name)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_value_depends_on_valid_voxels_only(self, timepoints):
        (x,), valid, likelihood = self.inputs(timepoints, 1), self.valid(timepoints), self.subject()
        other = torch.where(valid, x, 0.9 * random(*x.shape, seed=5)).requires_grad_()
        self.assert_close("invalid voxels", likelihood(other, valid), likelihood(x, valid))
        (gradient,) = torch.autograd.grad(likelihood(other, valid), other)
        assert (gradient[~valid] == 0).all() and gradient[valid].any()
        assert abs(likelihood(other) - likelihood(x)) > self.least_effect  # they would change it, if they counted
        assert torch.isfinite(likelihood(x, torch.zeros_like(valid)))

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_leaving_the_field_of_view_gains_nothing(self, timepoints):
        (x,), likelihood = self.inputs(timepoints, 1), self.subject()
        valid = torch.ones_like(x, dtype=torch.bool)
        valid[:, 1:, : self.size[0] // 2] = False  # one volume alone covers this half
        before, (tolerance, _) = likelihood(x), self.tolerances["fewer voxels"]
        assert likelihood(x, valid) - before < tolerance * before.abs()  # estimates from fewer voxels differ slightly


class CalibratedContract(LikelihoodContract):
    """Contract of a likelihood whose second-order model is in nats.

    Attributes:
        true_noise: standard deviation of the noise in each volume of the volumes.
    """

    true_noise = 0.05
    tolerances = {**LikelihoodContract.tolerances, "curvature": (0.08, 0.0), "guide noise": (0.1, 0.0)}

    def subject_for_noise(self):
        """Return the likelihood for volumes whose noise is `true_noise`."""
        raise NotImplementedError

    @pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_rounding_of_weights_changes_the_result_by_rounding(self, timepoints, weight):
        (x,), likelihood, rounding = self.inputs(timepoints, 1), self.subject(), 1e-7
        valid = torch.where(self.valid(timepoints), 1 - 0.1 * random(*x.shape, seed=6).abs().clamp(0, 1), weight)
        rounded = (valid + rounding * random(*x.shape, seed=7).clamp(-1, 1)).clamp(0, 1)
        model, other = likelihood.linearise(x, valid), likelihood.linearise(x, rounded)
        self.assert_close("weights", likelihood(x, rounded), likelihood(x, valid))
        for name in ("value", "score", "weight", "volume_count"):
            if getattr(model, name) is not None:
                scale = getattr(model, name).abs().max().clamp_min(1e-12)
                self.assert_close("weights", getattr(other, name) / scale, getattr(model, name) / scale, name)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_curvature_is_that_under_the_true_noise(self, timepoints):
        """With the latent image integrated out, K volumes of known noise have the log likelihood ``-sum_k (x_k -
        mean)^2 / (2 noise^2)``."""
        x, d, change = noisy_series(timepoints, self.true_noise)
        if self.invariant_to_gain:
            x = x * torch.linspace(1, 3, timepoints).view(1, -1, 1, 1, 1) + 0.3
        model = self.subject_for_noise().linearise(x)
        actual = (model.weight * ((change != 0) * along(model.guide, d)).square()).sum()
        self.assert_close("curvature", actual, change.square().sum() / self.true_noise**2)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_noise_of_the_guide_is_that_between_guides_of_other_noise(self, timepoints):
        likelihood, inside = self.subject_for_noise(), (..., *[slice(6, -6)] * 3)
        first, second = (noisy_series(timepoints, self.true_noise, seed)[0] for seed in (1, 2))
        difference = likelihood.linearise(first).guide - likelihood.linearise(second).guide
        actual = likelihood.guide_noise(first).expand_as(difference)[inside].mean()
        self.assert_close("guide noise", actual, 0.5 * difference[inside].square().mean())


def noisy_series(timepoints, noise, seed=1):
    """Render volumes of one texture, each with noise of its own, displacements ``(1, K, 3)`` of mean 0 over K, and what
    a volume changes by under them, ``(1, K, *S)``, but near the border.

    The texture repeats itself at a window's width of 5 voxels, so that all windows have one mean and variance.
    """
    tile = gaussian_filter(random(1, 1, 5, 5, 5).repeat(1, 1, 5, 5, 5), 1.0)[:, :, 10:15, 10:15, 10:15]
    texture = 0.2 * ((tile - tile.mean()) / tile.std()).repeat(1, 1, 6, 6, 6)
    rng = torch.Generator().manual_seed(seed)
    x = texture + noise * torch.randn(1, timepoints, 30, 30, 30, generator=rng, dtype=torch.float64)
    d = torch.randn(1, timepoints, 3, generator=rng, dtype=torch.float64)
    d = d - d.mean(dim=1, keepdim=True)
    inner = torch.zeros_like(texture)
    inner[..., 6:-6, 6:-6, 6:-6] = 1
    return x, d, inner * along(texture, d)


def along(guide, d):
    """Compute ``<grad guide, d_k>``, ``(1, K, *S)``."""
    return torch.einsum("bnd,bdijk->bnijk", d, gradient(guide)[:, 0])
