import pytest
import torch

from groupmorph_monai.networks import GroupSetVAE
from groupmorph_monai.probability import split_parameters

SMALL = {"encoder_channels": (3, 4, 5, 6), "features": (2, 4, 4, 4), "hidden_channels": 6, "updates": (1, 2, 1, 1, 1)}


def network(**options):
    torch.manual_seed(0)
    net = GroupSetVAE(**{**SMALL, **options}).eval()
    for update in net.look:
        torch.nn.init.normal_(update.head.weight, std=0.1)
    torch.nn.init.normal_(net.variance_head.weight, std=0.1)
    return net


def images(timepoints=3, size=(32, 36, 40), batch=1):
    return torch.rand(batch, timepoints, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("timepoints", [2, 5, 6, 10, 40])
def test_reordering_the_timepoints_reorders_the_posterior_for_every_k(timepoints):
    net, x = network(), images(timepoints, (32, 32, 32))
    order = torch.randperm(timepoints, generator=torch.Generator().manual_seed(2))
    for ordered, reordered in zip(split_parameters(net(x), timepoints), split_parameters(net(x[:, order]), timepoints)):
        assert ordered.shape == (1, timepoints, 3, 8, 8, 8)
        assert ordered.std() > 1e-2
        torch.testing.assert_close(reordered, ordered[:, order], atol=1e-4, rtol=1e-4)


def test_equal_volumes_stay_where_they_are():
    mean, _ = split_parameters(network()(images(1).expand(-1, 4, -1, -1, -1)), 4)
    assert mean.abs().max() < 1e-5


def test_the_mean_over_timepoints_is_zero():
    mean, _ = split_parameters(network(max_velocity_voxels=1e4)(images()), 3)
    assert mean.abs().max() > 0.1
    assert mean.mean(dim=1).abs().max() < 1e-5


def test_untrained_it_brings_a_shifted_volume_nearer():
    torch.manual_seed(0)
    coarse = torch.rand(1, 1, 10, 10, 10, generator=torch.Generator().manual_seed(3))
    volume = torch.nn.functional.interpolate(coarse, size=(56, 48, 48), mode="trilinear")
    x = torch.cat([volume[:, :, :48], volume[:, :, 4:52]], dim=1)  # the second volume is shifted by 4 voxels
    mean, _ = split_parameters(GroupSetVAE().eval()(x), 2)
    motion = 4 * (mean[0, 0] - mean[0, 1])[:, 3:-3, 3:-3, 3:-3].flatten(1).median(dim=1).values
    assert motion[0] > 1 and motion[1:].abs().max() < 0.5


def test_velocities_of_all_pieces_begin_as_one_and_part_by_what_is_learned():
    alone, net, x = network(max_velocity_voxels=1e4), network(velocities=2, max_velocity_voxels=1e4), images()
    weights = {name: w for name, w in alone.state_dict().items() if not name.startswith("variance_head")}
    assert not net.load_state_dict(weights, strict=False).unexpected_keys
    for weight in (net.velocity_offsets[0].weight, net.velocity_offsets[0].bias):
        torch.nn.init.zeros_(weight)
    mean, log_variance = split_parameters(net(x), 3)
    assert mean.shape == log_variance.shape == (1, 3, 6, 8, 9, 10)
    torch.testing.assert_close(mean[:, :, :3], mean[:, :, 3:])
    torch.testing.assert_close(mean[:, :, :3], split_parameters(alone(x), 3)[0])
    torch.nn.init.normal_(net.velocity_offsets[0].weight, std=0.1)
    parted = split_parameters(net(x), 3)[0]
    assert (parted[:, :, :3] - parted[:, :, 3:]).abs().max() > 0.1
    assert parted.mean(dim=1).abs().max() < 1e-5
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(split_parameters(net(x[:, order]), 3)[0], parted[:, order], atol=1e-4, rtol=1e-4)


def test_odd_sizes_are_padded_by_their_border():
    net, x = network(), images(size=(33, 34, 41))
    padded = torch.nn.functional.pad(x, [0, 7, 0, 14, 0, 15], mode="replicate")
    torch.testing.assert_close(net(x), net(padded)[..., :9, :9, :11])
    assert net.stride == 4


def test_a_batch_equals_its_items():
    net, x = network(), images(batch=2)
    torch.testing.assert_close(net(x), torch.cat([net(x[:1]), net(x[1:])]), atol=1e-5, rtol=1e-4)


def test_scripted_it_is_the_same():
    net = network()
    scripted = torch.jit.script(net)
    for timepoints, size in ((2, (32, 32, 32)), (4, (20, 35, 33))):
        x = images(timepoints, size)
        torch.testing.assert_close(scripted(x), net(x))


def test_one_timepoint_is_refused():
    with pytest.raises(ValueError, match="at least 2 timepoints"):
        network()(images(1))


def test_a_patch_without_structure_does_not_spoil_the_gradient():
    net = network().train()
    net(torch.zeros(1, 2, 32, 32, 32)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)


def test_another_number_of_updates_is_refused():
    with pytest.raises(ValueError, match=r"updates: expected 5 numbers, got \[2, 2, 2, 3\]"):
        network(updates=(2, 2, 2, 3))
