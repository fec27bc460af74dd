"""Coordinates inside networks are float32 at any precision of the convolutions."""

import pytest
import torch
from torch.nn import functional as F

from groupmorph_monai.networks import AffineNet, GroupSetVAE, KrebsCVAE, MomentumNet
from groupmorph_monai.networks.affine_net import affine_fit, normalised_coordinates, soft_match
from groupmorph_monai.networks.gauss_newton_update import GaussNewtonUpdate
from groupmorph_monai.networks.group_set_vae import FinerUpdate
from groupmorph_monai.space import AffineFlow, VelocityField
from groupmorph_monai.space.sampling import displace

SIZE = (4, 160, 6)


def coordinates(axis):
    line = torch.arange(float(SIZE[axis])).view([-1 if a == axis else 1 for a in range(3)])
    return line.expand(1, 1, *SIZE).contiguous()


def lowered():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_warp_of_features_is_exact(axis, script):
    function = torch.jit.script(displace) if script else displace
    static = torch.zeros(1, 3, *SIZE)
    shifted = static.clone()
    shifted[:, axis] = 0.25
    with lowered():
        identity, quarter = function(coordinates(axis), static), function(coordinates(axis), shifted)
    assert identity.dtype == torch.float32
    torch.testing.assert_close(identity, coordinates(axis), atol=1e-4, rtol=0)
    last = SIZE[axis] - 1
    torch.testing.assert_close(quarter, (coordinates(axis) + 0.25).clamp_max(last), atol=1e-4, rtol=0)


def test_an_update_moves_features_to_places_in_float32(monkeypatch):
    """Compare the arguments of grid_sample under autocast with those in float32."""
    torch.manual_seed(0)
    update, features, grids = FinerUpdate(2, 4), torch.rand(2, 2, 160, 8, 10), []
    grid_sample = F.grid_sample
    monkeypatch.setattr(F, "grid_sample", lambda x, grid, **o: grids.append(grid) or grid_sample(x, grid, **o))
    z = F.interpolate(3 * torch.randn(2, 3, 5, 2, 2), size=(80, 4, 5), mode="trilinear", align_corners=True)
    for context in (lowered(), torch.autocast("cpu", enabled=False)):
        with context, torch.no_grad():
            update(features, z, 2)
    half = len(grids) // 2
    for low, full in zip(grids[:half], grids[half:]):
        assert low.dtype == torch.float32
        assert (low - full).abs().max() * 160 / 2 < 1e-4


def test_the_last_update_is_the_same_under_autocast():
    torch.manual_seed(0)
    update, images, z = GaussNewtonUpdate(2), torch.rand(2, 1, 32, 16, 16), torch.randn(2, 3, 8, 4, 4)
    full = update(images, z, 2)
    with lowered():
        low = update(images, z, 2)
    assert (full - z).abs().max() > 0.1 and torch.equal(low, full)


def test_affine_places_matches_and_maps_are_exact():
    z = torch.zeros(1, 2, 12, 1, 1, 1)
    z[0, 0, :3], z[0, 1, 9:] = torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1, 1), 0.123
    places = normalised_coordinates(SIZE, 1, SIZE, z).flatten(1)
    square, right = torch.eye(3).expand(1, places.shape[1], 3, 3), 0.1 * places.T[None]
    with lowered():
        velocity = AffineNet().decode(z, torch.empty(1, 2, *SIZE))
        ddf = AffineFlow()(VelocityField.on_voxels(velocity)).values
        places_low = normalised_coordinates(SIZE, 1, SIZE, z).flatten(1)
        flow, _ = soft_match(torch.eye(8)[None], torch.eye(8)[None], places[:, :8], torch.tensor(100.0))
        fitted = affine_fit(square, right, places)
    assert torch.equal(places_low, places)
    expected = torch.stack([0.1 * places[0] - 0.2 * places[1] + 0.3 * places[2], 0 * places[0], 0 * places[0]])
    torch.testing.assert_close(velocity[0, 0].flatten(1), 80 * expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity[0, 1], torch.full((3, *SIZE), 80 * 0.123), atol=1e-4, rtol=0)
    torch.testing.assert_close(ddf[0, 1], velocity[0, 1], atol=1e-4, rtol=0)
    assert flow.abs().max() < 1e-6
    assert fitted[0, 4] == pytest.approx(0.1, abs=1e-3) and torch.equal(fitted, affine_fit(square, right, places))


def test_velocities_are_decoded_as_in_float32():
    torch.manual_seed(0)
    images = torch.rand(1, 2, 8, 160, 8)
    krebs, avsm = KrebsCVAE(lattice_voxels=(2, 2, 2)), MomentumNet((3, 4, 5, 6))
    torch.nn.init.normal_(krebs.last[1].weight, std=0.3)
    with torch.no_grad():
        for network, z in ((krebs, torch.randn(1, 2, 16, 1, 1, 1)), (avsm, torch.randn(1, 2, 3, 4, 80, 4))):
            full = network.decode(z, images)
            with lowered():
                low = network.decode(z, images)
            assert full.abs().max() > 0.1 and torch.equal(low, full)


def test_the_default_network_scripts_to_the_same_places():
    torch.manual_seed(0)
    net, x = GroupSetVAE().eval(), torch.rand(1, 2, 33, 40, 36)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x), atol=1e-5, rtol=1e-4)
