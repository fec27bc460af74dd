import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from groupmorph_monai.probability import (
    CodePosterior,
    Posterior,
    StepPosterior,
    UnitGaussian,
    split_parameters,
)


def test_parameters_are_mean_then_log_variance_timepoint_by_timepoint():
    parameters = torch.arange(12.0).view(1, 12, 1, 1, 1)
    mean, log_variance = split_parameters(parameters, timepoints=2)
    torch.testing.assert_close(mean[0, :, :, 0, 0, 0], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    torch.testing.assert_close(log_variance[0, :, :, 0, 0, 0], torch.tensor([[6.0, 7, 8], [9, 10, 11]]))


def test_draws_have_the_posteriors_mean_and_variance():
    torch.manual_seed(0)
    mean = torch.full((1, 1, 3, 40, 40, 40), 1.5)
    log_variance = torch.full_like(mean, 2 * torch.log(torch.tensor(0.3)))
    z = Posterior().draw(mean, log_variance)
    torch.testing.assert_close(z.mean(), torch.tensor(1.5), atol=5e-3, rtol=0)
    torch.testing.assert_close(z.std(), torch.tensor(0.3), atol=5e-3, rtol=0)


@pytest.mark.parametrize("posterior", [Posterior(0.8), CodePosterior(), StepPosterior()])
def test_a_scaled_posterior_draws_further_from_the_same_mean(posterior):
    mean, log_variance = torch.randn(2, 1, 2, 3, 6, 5, 4)
    scaled = posterior.scaled(2.5)
    draws = []
    for q in (posterior, scaled):
        torch.manual_seed(0)
        draws.append(q.draw(mean, log_variance))
    torch.testing.assert_close(draws[1] - mean, 2.5 * (draws[0] - mean))
    assert posterior.std_factor == 1 and type(scaled) is type(posterior)


def test_the_gradient_reaches_mean_and_variance():
    mean = torch.zeros(1, 1, 3, 4, 4, 4, requires_grad=True)
    log_variance = torch.zeros_like(mean, requires_grad=True)
    torch.manual_seed(0)
    z = Posterior().draw(mean, log_variance)
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(log_variance.grad, 0.5 * z.detach())  # z is the noise here, and sd = exp(l / 2)


def test_a_code_is_split_as_a_field_is():
    mean, log_variance = split_parameters(torch.arange(64.0).view(1, 64, 1, 1, 1), timepoints=2)
    assert mean.shape == (1, 2, 16, 1, 1, 1) and log_variance[0, 0, 0].item() == 32


def test_draws_are_white_noise_through_scipys_gaussian(monkeypatch):
    impulse = torch.zeros(1, 1, 1, 24, 20, 22, dtype=torch.float64)
    impulse[..., 12, 9, 2] = 1  # near a border, where the filter reflects
    monkeypatch.setattr(torch, "randn_like", lambda mean: impulse)
    z = Posterior(1.5).draw(torch.zeros_like(impulse), torch.full_like(impulse, 2 * math.log(3.0)))
    expected = 3 * gaussian_filter(impulse[0, 0, 0].numpy(), 1.5, mode="reflect", truncate=6)
    assert expected.max() > 0.05
    np.testing.assert_allclose(z[0, 0, 0].numpy(), expected, atol=4e-3)


def test_after_several_passes_a_prior_sees_the_sum_of_what_adds_up_and_codes_side_by_side():
    generator = torch.Generator().manual_seed(0)
    draws, means, log_variances = (
        [torch.randn(1, 2, 3, 5, 4, 3, generator=generator) for _ in range(3)] for _ in range(3)
    )
    mean, log_variance = Posterior().of_passes(draws, means, log_variances)
    torch.testing.assert_close(mean, draws[0] + draws[1] + means[2])
    assert torch.equal(log_variance, log_variances[2])
    assert all(map(torch.equal, StepPosterior().of_passes(draws, means, log_variances), (means[2], log_variances[2])))
    codes = CodePosterior().of_passes(*([x[..., :1, :1, :1] for x in part] for part in (draws, means, log_variances)))
    each = [UnitGaussian()(m[..., :1, :1, :1], v[..., :1, :1, :1]) for m, v in zip(means, log_variances)]
    torch.testing.assert_close(UnitGaussian()(*codes), sum(each))
