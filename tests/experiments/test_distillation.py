"""Weights that predict refined velocities."""

import torch

from experiments.distillation import Patches, distil, refined_velocities
from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.networks import GroupVAE
from groupmorph_monai.probability import split_parameters
from groupmorph_monai.space import MidpointSquaring, ReferenceAlignment
from groupmorph_monai.space.field import Field
from groupmorph_monai.space.grid import warp
from groupmorph_monai.workflow.parsed_config import parsed_config


def pair_of(images, velocity):
    """Images that the velocity brings together."""
    moved = Field(ReferenceAlignment(0)(velocity[None], MidpointSquaring(3)), images.shape[1:], 2).on_image()
    return warp(images[None], moved)[0]


def test_refined_velocities_align_the_phantoms_and_are_kept(tmp_path):
    overlays = ("data/phantom_small", "models/groupmorph", "modes/all_to_one", "data/phantom_published")
    values = {"phantoms_training": 1, "phantom_size_voxels": [32, 32, 32], "timepoints": 3}
    config = parsed_config(config_files("train", overlays), values)
    network = config.get_parsed_content("network")
    ((images, velocity),) = refined_velocities(tmp_path, config, network, 1)
    images = images.float()
    before, after = (x[1:].sub(x[:1]).abs().mean() for x in (images, pair_of(images, velocity.float())))
    assert after < 0.7 * before
    ((_, kept),) = refined_velocities(tmp_path, config, None, 1)
    assert torch.equal(kept, velocity)


def test_flipped_patches_show_the_same_motion():
    torch.manual_seed(0)
    coarse = torch.randn(2, 3, 3, 3, 3)
    velocity = 0.6 * torch.nn.functional.interpolate(coarse.flatten(0, 1)[None], size=(16, 16, 16), mode="trilinear")
    velocity = velocity.view(2, 3, 16, 16, 16)
    texture = torch.nn.functional.interpolate(torch.rand(1, 1, 12, 12, 12), size=(32, 32, 32), mode="trilinear")[0, 0]
    inverse = Field(ReferenceAlignment(0).inverse(velocity[None], MidpointSquaring(3)), (32, 32, 32), 2).on_image()
    images = warp(texture.expand(1, 2, -1, -1, -1), inverse)[0]
    patches = iter(Patches([(images, velocity)], side=28))
    for _ in range(12):
        moved, z = next(patches)
        inner = pair_of(moved[0], z[0])[:, 6:-6, 6:-6, 6:-6]
        before = (moved[0, 1] - moved[0, 0])[6:-6, 6:-6, 6:-6].abs().mean()
        assert (inner[1] - inner[0]).abs().mean() < 0.4 * before


def test_the_averaged_network_learns_the_velocities():
    torch.manual_seed(0)
    line = torch.linspace(-1, 1, 16)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    images = points.square().sum(dim=0).expand(2, -1, -1, -1)  # unchanged by flips, like an expansion
    velocity = torch.stack([torch.zeros(3, 8, 8, 8), 0.5 * (points[:, ::2, ::2, ::2] + line[1] / 2 - line[0] / 2)])
    network = GroupVAE(timepoints=2, encoder_channels=[8, 12, 12], decoder_channels=[12])
    averaged = distil(network, iter(Patches([(images, velocity)], side=16)), 200, 3e-3).eval()
    with torch.no_grad():
        mean, _ = split_parameters(averaged(images[None]), 2)
    left = mean - mean[:, :1] - velocity
    assert left[:, 1:].norm(dim=2).mean() < 0.3 * velocity[1].norm(dim=0).mean()
