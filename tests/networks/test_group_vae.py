import pytest
import torch

from groupmorph_monai.networks import GroupVAE
from groupmorph_monai.probability import split_parameters

SMALL = {"encoder_channels": (4, 6, 6), "decoder_channels": (6,)}


def network(**options):
    torch.manual_seed(0)
    net = GroupVAE(3, **{**SMALL, **options}).eval()
    for head in (net.mean_head, net.variance_head):
        torch.nn.init.normal_(head.weight, std=0.2)
    return net


def images(size=(12, 16, 8), batch=1):
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def test_untrained_it_is_the_identity_with_the_initial_variance():
    mean, log_variance = split_parameters(GroupVAE(3, initial_std_voxels=0.05)(images()), 3)
    assert mean.abs().max() < 1e-2
    torch.testing.assert_close((0.5 * log_variance).exp(), torch.full_like(mean, 0.05), atol=1e-3, rtol=0)


def test_filters_are_voxelmorph_diffs():
    shapes = {name: tuple(w.shape[:2]) for name, w in GroupVAE(6).state_dict().items() if name.endswith("weight")}
    assert list(shapes.values()) == [
        (32, 6), (64, 32), (64, 64), (64, 64), (64, 64),
        (64, 128), (64, 128), (64, 128),
        (18, 64), (18, 64),
    ]  # fmt: skip


def test_z_lies_on_every_second_voxel_and_odd_sizes_are_padded_by_their_border():
    net, x = network(), images((11, 14, 9))
    padded = torch.nn.functional.pad(x, [0, 3, 0, 2, 0, 1], mode="replicate")
    torch.testing.assert_close(net(x), net(padded)[..., :6, :7, :5])
    assert net.stride == 2


def test_shifting_the_images_shifts_the_field():
    # Away from the border, whose zero padding affects as many voxels as the receptive field covers: here 14.
    net = network()
    x = images((48, 48, 48))
    shifted = net(x.roll((4, 4, 4), dims=(2, 3, 4)))
    expected = net(x).roll((2, 2, 2), dims=(2, 3, 4))
    inside = (..., *[slice(10, -10)] * 3)
    torch.testing.assert_close(shifted[inside], expected[inside], atol=1e-4, rtol=0)
    assert expected[inside].std() > 1e-2


def test_the_mean_is_bounded_by_alpha_and_has_the_heads_slope_near_zero():
    net = network(max_velocity_voxels=2.0)
    torch.nn.init.normal_(net.mean_head.weight, std=50)
    mean, _ = split_parameters(net(images()), 3)
    assert 1.9 < mean.abs().max() <= 2
    torch.nn.init.constant_(net.mean_head.weight, 0)
    torch.nn.init.constant_(net.mean_head.bias, 0.01)
    mean, _ = split_parameters(net(images()), 3)
    torch.testing.assert_close(mean, torch.full_like(mean, 0.01), atol=1e-6, rtol=0)


def test_a_batch_equals_its_items():
    net, x = network(), images(batch=2)
    torch.testing.assert_close(net(x), torch.cat([net(x[:1]), net(x[1:])]), atol=1e-5, rtol=1e-5)


def test_scripted_it_is_the_same():
    net = network()
    scripted = torch.jit.script(net)
    for size in ((12, 16, 8), (9, 10, 11)):
        torch.testing.assert_close(scripted(images(size)), net(images(size)))


def test_another_number_of_timepoints_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="expected 3 timepoints, got 5") as error:
        network()(torch.rand(1, 5, 8, 8, 8))
    assert "\n" not in str(error.value)
