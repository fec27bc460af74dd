import pytest
import torch

from groupmorph_monai.networks import AffineNet, MomentumNet
from groupmorph_monai.probability import MomentumNorm, Posterior, split_parameters
from groupmorph_monai.space import (
    AffineFlow,
    DisplacementField,
    MultiGaussian,
    ReferenceAlignment,
    ScalingAndSquaring,
    compose,
)
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.space.filters import gaussian_filter
from groupmorph_monai.workflow import NetworkPasses, RegistrationInferer


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
    # The integral over an image whose longest side, of 12 voxels of z, is 1.
    expected = 2.5 * (momentum * velocity / 12**2).flatten(2).sum() / (3 * 9 * 12 * 10)
    assert MomentumNorm(2.5)(momentum).item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0  # the filter is positive definite


def test_refining_a_velocity_pays_what_its_momentum_would():
    size, prior = (16, 20, 12), MomentumNorm(2.5, MultiGaussian((0.05, 0.2), (0.5, 0.5)))
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    momentum = gaussian_filter(noise, 1.0).unsqueeze(1)
    velocity = prior.smoothing(momentum)
    (precision,) = prior.terms(size)
    energy = (precision * CosineTransform(size, velocity)(velocity).square()).sum()
    torch.testing.assert_close(energy, momentum.shape[3:].numel() * prior(momentum), rtol=1e-3, atol=0)
    # The same velocity on every second voxel is half as long in these voxels, each of which represents eight.
    (coarse,) = prior.terms([n // 2 for n in size], 2.0)
    torch.testing.assert_close(coarse[:3, :3, :3], 32 * precision[:3, :3, :3])


def test_too_few_volumes_are_refused():
    with pytest.raises(ValueError, match="timepoints.*1"):
        network()(images(1))


def affine_network():
    torch.manual_seed(0)
    return AffineNet((4, 6)).eval()


@pytest.mark.parametrize("make, transformation", [(network, ScalingAndSquaring(6)), (affine_network, AffineFlow())])
@pytest.mark.parametrize("passes", [1, 2])
def test_exchanging_a_pair_gives_the_inverse_map(make, transformation, passes):
    """AVSM, Eqs. 5 and 10: what its symmetry losses ask for holds for any weights."""
    net = make()
    if isinstance(net, MomentumNet):
        torch.nn.init.normal_(net.head.weight, std=3.0)
    inferer = RegistrationInferer(ReferenceAlignment(0), transformation, NetworkPasses(passes))
    pair = gaussian_filter(images(2, (32, 32, 32)), 2.0)
    pair = (pair - pair.min()) / (pair.max() - pair.min())
    with torch.no_grad():
        ddfs = (inferer(x, net)["ddf"][:, 1:] for x in (pair, pair.flip(1)))
        forward, inverse = map(DisplacementField.on_voxels, ddfs)
    inside = (..., *[slice(8, -8)] * 3)
    length, residual = (u.values[inside].norm(dim=2).mean() for u in (forward, compose(forward, inverse)))
    assert length > 0.1 and residual < 0.05 * length
