"""Weights that predict refined velocities."""

import torch

from experiments.distillation import Patches, distil, refine_series
from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.data import RandTimepointsd
from groupmorph_monai.networks import GroupVAE
from groupmorph_monai.probability import split_parameters
from groupmorph_monai.space import Lattice, MidpointSquaring, ReferenceAlignment, VelocityField
from groupmorph_monai.space.warping import warp
from groupmorph_monai.workflow.parsed_config import parsed_config
from groupmorph_monai.workflow.weights import load_weights


def pair_of(images, velocity):
    """Make images that the velocity aligns."""
    dvf = VelocityField(velocity[None], Lattice(images.shape[1:], 2))
    return warp(images[None], ReferenceAlignment(0)(dvf, MidpointSquaring(3)).at(1))[0]


def test_refined_velocities_align_the_series_and_are_kept(tmp_path):
    overlays = ("data/phantom_small", "models/groupmorph", "modes/all_to_one", "data/phantom_published")
    size = [32, 32, 32]
    values = {"phantoms_training": 1, "phantom_size_voxels": size, "patch_size_voxels": size, "timepoints": 3}
    config = parsed_config(config_files("train", overlays), {**values, "output_dir": str(tmp_path)})
    refine_series(tmp_path, config, [0], ["effort/fast"])
    file = tmp_path / "0000.pt"
    pair = torch.load(file)
    images, velocity = pair["images"].float(), pair["velocity"].float()
    before, after = (x[1:].sub(x[:1]).abs().mean() for x in (images, pair_of(images, velocity)))
    assert after < 0.7 * before
    written = file.stat().st_mtime_ns
    refine_series(tmp_path, config, [0], ["effort/fast"])
    assert file.stat().st_mtime_ns == written


def test_drawn_timepoints_are_different_ones_in_any_order_and_number():
    select = RandTimepointsd(("images", "velocity"), least=2, most=6).set_random_state(0)
    pairs = [select({"images": torch.arange(5), "velocity": torch.arange(5)}) for _ in range(200)]
    assert all(torch.equal(pair["images"], pair["velocity"]) for pair in pairs)
    drawn = [pair["velocity"].tolist() for pair in pairs]
    assert {len(indices) for indices in drawn} == {2, 3, 4, 5}
    assert {indices[0] for indices in drawn} == {0, 1, 2, 3, 4}
    assert all(len(set(indices)) == len(indices) for indices in drawn)


def saved(folder, images, velocity):
    torch.save({"images": images, "velocity": velocity}, folder / "0000.pt")
    return [folder / "0000.pt"]


def test_flipped_patches_show_the_same_motion(tmp_path):
    torch.manual_seed(0)
    coarse = torch.randn(2, 3, 3, 3, 3)
    velocity = 0.6 * torch.nn.functional.interpolate(coarse.flatten(0, 1)[None], size=(16, 16, 16), mode="trilinear")
    velocity = velocity.view(2, 3, 16, 16, 16)
    texture = torch.nn.functional.interpolate(torch.rand(1, 1, 12, 12, 12), size=(32, 32, 32), mode="trilinear")[0, 0]
    dvf = VelocityField(velocity[None], Lattice((32, 32, 32), 2))
    inverse = ReferenceAlignment(0).inverse(dvf, MidpointSquaring(3)).at(1)
    images = warp(texture.expand(1, 2, -1, -1, -1), inverse)[0]
    patches = iter(Patches(saved(tmp_path, images, velocity), side=28, stride=2))
    for _ in range(12):
        moved, z = next(patches)
        inner = pair_of(moved[0], z[0])[:, 6:-6, 6:-6, 6:-6]
        before = (moved[0, 1] - moved[0, 0])[6:-6, 6:-6, 6:-6].abs().mean()
        assert (inner[1] - inner[0]).abs().mean() < 0.4 * before


def test_velocities_on_a_coarser_lattice_have_its_unit(tmp_path):
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 32, 32, 16)
    velocity = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 3, 16, 16, 8)
    files = saved(tmp_path, images.clone(), velocity.clone())
    patch, z = next(
        iter(Patches(files, side=16, stride=4, select=lambda pair: {name: x[[2, 1]] for name, x in pair.items()}))
    )
    assert patch.shape == (1, 2, 16, 16, 16) and z.shape == (1, 2, 3, 4, 4, 4)
    assert patch[0, :, 0, 0, 0].tolist() == [2, 1]
    assert z[0, :, :, 0, 0, 0].abs().tolist() == [[1.0] * 3, [0.5] * 3]


def test_the_averaged_network_learns_the_velocities_and_their_spread(tmp_path):
    torch.manual_seed(0)
    line = torch.linspace(-1, 1, 16)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"))
    images = points.square().sum(dim=0).expand(2, -1, -1, -1)  # unchanged by flips, like an expansion
    velocity = torch.stack([torch.zeros(3, 8, 8, 8), 0.5 * (points[:, ::2, ::2, ::2] + line[1] / 2 - line[0] / 2)])
    files = saved(tmp_path, images.clone(), velocity)
    network = GroupVAE(timepoints=2, encoder_channels=[8, 12, 12], decoder_channels=[12])
    patches, alignment = Patches(files, side=16, stride=2), ReferenceAlignment(0)
    distil(network, alignment, iter(patches), 300, 3e-3, tmp_path / "distilled")
    load_weights(network, tmp_path / "distilled")
    with torch.no_grad():
        mean, log_variance = split_parameters(network.eval()(images[None]), 2)
    left = alignment.constrain_values(mean - velocity)
    assert left.norm(dim=2).mean() < 0.3 * alignment.constrain_values(velocity[None]).norm(dim=2).mean()
    spread = (2 * left.square().mean()).sqrt()
    assert 0.5 * spread < log_variance.exp().mean().sqrt() < 2 * spread
