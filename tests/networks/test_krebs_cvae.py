import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from groupmorph_monai.networks import KrebsCVAE
from groupmorph_monai.probability import split_parameters


def images(timepoints=3, size=(17, 24, 20), seed=0):
    return torch.rand(1, timepoints, *size, generator=torch.Generator().manual_seed(seed))


def network(**options):
    torch.manual_seed(0)
    return KrebsCVAE(**{"lattice_voxels": (3, 3, 3), **options}).eval()


def test_it_has_as_many_weights_as_the_paper_says():
    assert sum(p.numel() for p in KrebsCVAE().parameters()) == pytest.approx(267_000, rel=0.03)


@pytest.mark.parametrize("timepoints", [2, 3, 6])
def test_reordering_the_timepoints_reorders_codes_and_velocities(timepoints):
    net, x = network(), images(timepoints)
    order = torch.randperm(timepoints, generator=torch.Generator().manual_seed(1))
    mean, log_variance = split_parameters(net(x), timepoints)
    assert mean.shape == (1, timepoints, 16, 1, 1, 1) and mean.std() > 1e-3
    again = split_parameters(net(x[:, order]), timepoints)
    torch.testing.assert_close(again[0], mean[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again[1], log_variance[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net.decode(mean[:, order], x), net.decode(mean, x)[:, order])


def test_the_encoder_sees_a_pair_as_moving_and_fixed_image():
    net, x = network(), images(2)
    x[:, 1] = x[:, 0]
    mean, _ = split_parameters(net(x), 2)
    torch.testing.assert_close(mean[:, 0], mean[:, 1])


def test_the_velocity_has_passed_the_gaussian_filter():
    net, x, captured = network(), images(2, (16, 24, 24)), {}
    net.last[1].register_forward_hook(lambda layer, inputs, output: captured.update(raw=output))
    velocity = net.decode(torch.randn(1, 2, 16, 1, 1, 1), x)
    assert velocity.shape == (1, 2, 3, 16, 24, 24)
    expected = captured["raw"].detach().numpy()
    for axis in (2, 3, 4):
        expected = gaussian_filter1d(expected, 3.0, axis=axis, mode="nearest", radius=7)
    torch.testing.assert_close(velocity[0], torch.as_tensor(expected), atol=1e-6, rtol=1e-3)
    assert velocity.std() > 1e-5


def test_the_velocity_depends_on_code_and_image():
    net, z = network(), torch.randn(1, 2, 16, 1, 1, 1)
    one = net.decode(z, images(2))
    for other in (net.decode(z, images(2, seed=5)), net.decode(z.flip(1), images(2))):
        assert (one - other).abs().max() > 1e-3 * one.abs().max()


def test_the_decoder_sees_how_the_first_timepoint_looks_and_no_other():
    net, z, x = network(), torch.randn(1, 3, 16, 1, 1, 1), images(3)
    changed = torch.cat([x[:, :1], 1 - x[:, 1:]], dim=1)
    assert torch.equal(net.decode(z, changed), net.decode(z, x))
    assert not torch.equal(net.decode(z, changed.flip(1)), net.decode(z, x))


@pytest.mark.parametrize("decoder, stride", [((4, 4, 4), 1), ((4, 4), 2), ((4,), 4)])
def test_the_velocitys_lattice_covers_images_of_any_size(decoder, stride):
    net, x = network(decoder_channels=decoder), images(2)
    velocity = net.decode(split_parameters(net(x), 2)[0], x)
    assert net.stride == stride and velocity.shape[3:] == tuple(-(-n // stride) for n in (17, 24, 20))


def test_too_few_volumes_or_wrong_filters_are_refused():
    with pytest.raises(ValueError, match="timepoints.*1"):
        network()(images(1))
    with pytest.raises(ValueError, match="decoder_channels"):
        KrebsCVAE(decoder_channels=())
