import torch

from groupmorph_monai.probability import draw, split_parameters


def test_parameters_are_mean_then_log_variance_timepoint_by_timepoint():
    parameters = torch.arange(12.0).view(1, 12, 1, 1, 1)
    mean, log_variance = split_parameters(parameters, timepoints=2)
    torch.testing.assert_close(mean[0, :, :, 0, 0, 0], torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    torch.testing.assert_close(log_variance[0, :, :, 0, 0, 0], torch.tensor([[6.0, 7, 8], [9, 10, 11]]))


def test_draws_have_the_posteriors_mean_and_variance():
    torch.manual_seed(0)
    mean = torch.full((1, 1, 3, 40, 40, 40), 1.5)
    log_variance = torch.full_like(mean, 2 * torch.log(torch.tensor(0.3)))
    z = draw(mean, log_variance)
    torch.testing.assert_close(z.mean(), torch.tensor(1.5), atol=5e-3, rtol=0)
    torch.testing.assert_close(z.std(), torch.tensor(0.3), atol=5e-3, rtol=0)


def test_the_gradient_reaches_mean_and_variance():
    mean = torch.zeros(1, 1, 3, 4, 4, 4, requires_grad=True)
    log_variance = torch.zeros_like(mean, requires_grad=True)
    torch.manual_seed(0)
    z = draw(mean, log_variance)
    z.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(log_variance.grad, 0.5 * z.detach())  # z is the noise here, and sd = exp(l / 2)
