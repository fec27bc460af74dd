import pytest
import torch

from groupmorph_monai.networks import MomentumNet
from groupmorph_monai.probability import MomentumNorm, Posterior, split_parameters
from groupmorph_monai.space import MultiGaussian


def images(timepoints=3, size=(17, 24, 20)):
    return torch.rand(1, timepoints, *size, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return MomentumNet((3, 4, 5, 6)).eval()


@pytest.mark.parametrize("timepoints", [2, 5])
def test_reordering_the_timepoints_reorders_the_momenta(timepoints):
    net, x = network(), images(timepoints)
    order = torch.randperm(timepoints, generator=torch.Generator().manual_seed(1))
    mean, _ = split_parameters(net(x), timepoints)
    assert mean.shape == (1, timepoints, 3, 9, 12, 10) and mean.std() > 1e-5
    torch.testing.assert_close(split_parameters(net(x[:, order]), timepoints)[0], mean[:, order], atol=1e-6, rtol=1e-4)


def test_a_point_estimate_draws_its_mean():
    mean, log_variance = split_parameters(network()(images()), 3)
    torch.testing.assert_close(Posterior().draw(mean, log_variance), mean, atol=0, rtol=0)


def test_the_velocity_is_the_smoothed_momentum_and_its_norm_the_inner_product():
    net, x = network(), images()
    momentum, _ = split_parameters(net(x), 3)
    velocity = net.decode(momentum, x)
    torch.testing.assert_close(velocity, MultiGaussian()(momentum))
    expected = 2.5 * (momentum * velocity).flatten(2).sum() / (3 * 9 * 12 * 10)
    assert MomentumNorm(2.5)(momentum).item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0  # the filter is positive definite


def test_too_few_volumes_are_refused():
    with pytest.raises(ValueError, match="timepoints.*1"):
        network()(images(1))
