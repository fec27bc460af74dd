import pytest
import torch

from groupmorph_monai.networks import AffineNet
from groupmorph_monai.networks.affine_net import affine_fit, gradient_equations, soft_match
from groupmorph_monai.probability import AffineNorm, fading_weight, split_parameters
from groupmorph_monai.space import AffineFlow, GeodesicMeanAlignment, ReferenceAlignment, VelocityField
from groupmorph_monai.workflow import NetworkPasses, RegistrationInferer


def images(timepoints=3, size=(17, 24, 20)):
    return torch.rand(1, timepoints, *size, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return AffineNet((4, 6)).eval()


@pytest.mark.parametrize("timepoints", [2, 5])
def test_reordering_the_timepoints_reorders_the_maps(timepoints):
    net, x = network(), images(timepoints)
    order = torch.randperm(timepoints, generator=torch.Generator().manual_seed(1))
    mean, log_variance = split_parameters(net(x), timepoints)
    assert mean.shape == (1, timepoints, 12, 1, 1, 1) and mean.std() > 1e-6 and log_variance.max() == -torch.inf
    torch.testing.assert_close(split_parameters(net(x[:, order]), timepoints)[0], mean[:, order], atol=1e-7, rtol=1e-4)


def test_a_rotation_turns_about_the_centre_and_a_translation_is_in_half_sides():
    angle, z = 0.3, torch.zeros(1, 2, 12, 1, 1, 1)
    z[0, 0, 1], z[0, 0, 3] = -angle, angle
    z[0, 1, 10] = 0.25
    x = images(2, (17, 25, 21))
    ddf = AffineFlow()(VelocityField.on_voxels(AffineNet().decode(z, x))).values
    turn = torch.tensor(angle)
    matrix = torch.tensor([[turn.cos(), -turn.sin(), 0], [turn.sin(), turn.cos(), 0], [0, 0, 1]])
    away = torch.tensor([-8.0, 12, 3])
    torch.testing.assert_close(ddf[0, 0, :, 0, 24, 13], matrix @ away - away, atol=1e-4, rtol=0)
    assert ddf[0, 0, :, 8, 12, 10].abs().max() < 1e-5
    torch.testing.assert_close(ddf[0, 1], torch.tensor([0.0, 3.125, 0]).view(3, 1, 1, 1).expand(3, 17, 25, 21))


def test_descriptions_that_match_where_an_affine_map_takes_them_give_its_velocity():
    axes = [torch.linspace(-1, 1, 8)] * 3
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    # A quarter turn about the z axis maps the lattice to itself.
    turned = torch.stack([-places[1], places[0], places[2]])
    descriptions = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    descriptions = descriptions / descriptions.norm(dim=0)
    order = (turned[:, :, None] - places[:, None]).square().sum(0).argmin(1)
    own = torch.zeros_like(descriptions)
    own[:, order] = descriptions
    velocity, matched = soft_match(own[None], descriptions[None], places, torch.tensor(1000.0))
    torch.testing.assert_close(matched[0], descriptions, atol=0.01, rtol=0)
    fit = affine_fit(torch.eye(3).expand(1, 512, 3, 3), velocity, places)[0]
    quarter = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [0, 0, 0]])
    torch.testing.assert_close(fit, torch.cat([quarter.flatten(), torch.zeros(3)]), atol=0.01, rtol=0)


def test_slopes_of_smooth_descriptions_give_a_small_affine_velocity():
    spacing = 0.05
    axes = [torch.arange(16) * spacing] * 3
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    velocity = torch.tensor([[0.02, -0.01, 0.0], [0.0, 0.01, 0.02], [0.01, 0.0, -0.02]])
    shift = torch.tensor([0.004, -0.006, 0.002])
    mapped = grid + torch.einsum("de,exyz->dxyz", velocity, grid) + shift.view(3, 1, 1, 1)

    def describe(x):
        waves = torch.tensor([[3.0, 1, 0], [0, 3, 1], [1, 0, 3], [2, 2, 2]])
        return torch.sin(torch.einsum("cd,dxyz->cxyz", waves, x))[None]

    square, right = gradient_equations(describe(grid), describe(mapped), spacing)
    fit = affine_fit(square, right, grid.flatten(1))[0]
    torch.testing.assert_close(fit, torch.cat([velocity.flatten(), shift]), atol=8e-4, rtol=0)


def test_a_large_volume_is_thinned_before():
    x, net = images(3, (33, 41, 37)), network()
    net.most_voxels = 21
    captured = []
    net.first.register_forward_hook(lambda layer, inputs, output: captured.append(inputs[0]))
    with torch.no_grad():
        logarithms = split_parameters(net(x), 3)[0]
        net.most_voxels = 41
        whole = split_parameters(net(x), 3)[0]
    assert [tuple(x.shape[2:]) for x in captured] == [(17, 21, 19), (33, 41, 37)]
    assert logarithms.shape == whole.shape and not torch.equal(logarithms, whole)


def test_the_pull_to_the_identity_fades_as_the_paper_says():
    half_turn = torch.zeros(1, 3, 12, 1, 1, 1)
    half_turn[0, 1, 1], half_turn[0, 1, 3], half_turn[0, 1, 11] = -torch.pi, torch.pi, 0.5
    # The map to the two others, which coincide, is diag(-1, -1, 1) with a shift of a half, and back the opposite shift.
    assert AffineNorm(ReferenceAlignment(0))(half_turn).item() == pytest.approx(4 / 6 * (4 + 4 + 0.25), rel=1e-4)
    assert fading_weight(10, 4, 1) == pytest.approx(10 * 4 / (4 + 1))
    assert fading_weight(10, 4, 21) == pytest.approx(40 / (4 + 148.413), rel=1e-4)
    assert fading_weight(10, 4, 10**6) < 1e-200


def test_several_looks_are_trained_through():
    net, x = network().train(), images(2, (16, 16, 16))
    ask = RegistrationInferer(GeodesicMeanAlignment(), AffineFlow(), passes=NetworkPasses(2))
    captured = []
    net.register_forward_hook(lambda layer, inputs, output: captured.append(inputs[0]))
    result = ask(x, net)
    assert len(captured) == 2 and not torch.equal(captured[0], captured[1])
    result["warped"].square().mean().backward()
    assert net.log_sharpness.grad.abs() > 0 and net.first.weight.grad.abs().max() > 0


def test_the_contrast_of_a_timepoint_does_not_matter():
    x, net = images(3), network()
    changed = torch.cat([0.3 + 0.6 * x[:, :1], x[:, 1:]], dim=1)
    unchanged, again = (split_parameters(net(volumes), 3)[0] for volumes in (x, changed))
    torch.testing.assert_close(again, unchanged, atol=0.02 * float(unchanged.detach().abs().max()), rtol=0)
