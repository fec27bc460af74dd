"""The loss of a training compares unchanged intensities if no contrast is drawn, and all passes of a network."""

import numpy as np
import pytest
import torch
from bundle_runs import read_scalars
from image_files import write_nifti
from scipy.ndimage import gaussian_filter

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.networks import GroupVAE, KrebsCVAE

TINY = {"patch_size_voxels": [16, 16, 16], "max_iterations": 2, "iterations_per_epoch": 2}
PHANTOMS = {
    "phantom_size_voxels": [20, 20, 20],
    "phantom_max_motion_voxels": 2,
    "phantoms_training": 1,
    "phantoms_validation": 1,
}


def constant_pair_network(velocity_voxels=0.0):
    """Make weights of models/voxelmorph that predict this velocity everywhere with almost no variance."""
    network = GroupVAE(2, encoder_channels=[32, 64, 64, 64, 64], decoder_channels=[64, 64, 64])
    for head, value in ((network.mean_head, velocity_voxels), (network.variance_head, -30.0)):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.constant_(head.bias, value)
    return network.state_dict()


def static_code_network():
    network = KrebsCVAE()
    torch.nn.init.zeros_(network.last[1].weight)
    return network.state_dict()


def train_at_rate_0(folder, weights, *data, model, **settings):
    """Train by the command line without changing the weights, and return the folder."""
    folder.mkdir(exist_ok=True)
    torch.save(weights, folder / "weights.pt")
    settings = {**TINY, "log_interval": 1, "learning_rate": 1e-30, "initial_alignment": "none", **settings}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    files = ["--weights", str(folder / "weights.pt"), "--output", str(folder / "out")]
    assert main(["train", *data, "--overlay", model, *files, *words]) == 0
    return folder / "out"


def test_the_prior_sees_the_sum_of_all_passes(tmp_path):
    """Each of T passes adds the same velocity v: the energy of the sum is `lambda_v (T v)^2 / 2` in each component."""
    lambda_v, velocity, kls = 0.1, 0.5, []
    for passes in (1, 4):
        settings = {**PHANTOMS, "lambda_v": lambda_v, "passes": passes}
        weights = constant_pair_network(velocity)
        output = train_at_rate_0(tmp_path / str(passes), weights, "--phantoms", model="models/voxelmorph", **settings)
        kls.append(read_scalars(output, "train/kl")[1][0])
    assert kls[1] - kls[0] == pytest.approx(3 * lambda_v * (4**2 - 1) * velocity**2 / 2, rel=0.01)


@pytest.mark.parametrize(
    "model, weights, of_equal_scans",
    [("models/voxelmorph_diff", constant_pair_network, 0.0), ("models/krebs_cvae", static_code_network, 1.0)],
)
def test_a_contrast_that_is_off_changes_no_intensity(model, weights, of_equal_scans, tmp_path):
    """Equal scans remain equal: their squared error is 0, and their correlation 1."""
    volume = gaussian_filter(np.random.default_rng(0).normal(size=(24, 24, 24)), 2)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(2):
            write_nifti(tmp_path / "data" / name / f"t{k}.nii.gz", volume.astype(np.float32), np.eye(4))
    data = ["--dataset", str(tmp_path / "data")]
    output = train_at_rate_0(tmp_path, weights(), *data, model=model, affine_probability=0)
    assert read_scalars(output, "train/log_likelihood")[1] == pytest.approx([of_equal_scans] * 2, abs=0.01)
