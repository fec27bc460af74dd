"""AVSM's two networks in one registration, run by its command."""

import nibabel
import numpy as np
import pytest
import torch
from json_files import read_json

from experiments.affine import affine_cases
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.configs import bundle_root
from groupmorph_monai.data.writing.applying import apply_field_to_points
from groupmorph_monai.networks import AffineNet, MomentumNet

pytestmark = pytest.mark.usefixtures("no_pictures")
SPACING = np.diag([2.0, 2.0, 3.0, 1.0])


@pytest.fixture
def pair(tmp_path):
    """Write two scans with affine motion between them and their landmarks in mm."""
    (case,) = affine_cases([4], timepoints=2)
    files = [str(tmp_path / f"t{k}.nii.gz") for k in range(2)]
    for file, volume in zip(files, case["image"].numpy()):
        nibabel.save(nibabel.Nifti1Image(volume, SPACING), file)
    return files, case["landmarks"].numpy() @ SPACING[:3, :3]


@pytest.fixture
def weights(tmp_path):
    """Save untrained weights: the affine network is guided by its slopes and matches, and the vSVF network has large
    outputs."""
    torch.manual_seed(0)
    affine, momenta = AffineNet(), MomentumNet()
    torch.nn.init.normal_(momenta.head.weight, std=0.03)
    for network, name in ((affine, "affine.pt"), (momenta, "momenta.pt")):
        torch.save(network.state_dict(), tmp_path / name)
    return tmp_path / "affine.pt", tmp_path / "momenta.pt"


def register(files, output, *options):
    return main(["register", *files, "--overlay", "models/avsm", "--output", str(output), "--no-refine", *options])


def test_both_networks_register_in_one_command(pair, weights, tmp_path):
    files, landmarks = pair
    output, options = tmp_path / "out", ["--weights", str(weights[1]), "--set", f"affine_weights={weights[0]}"]
    assert register(files, output, *options) == 0
    report = read_json(output / "report.json")
    assert report["settings"]["initial_alignment"] == "network" and report["settings"]["passes"] == 2
    assert not nibabel.load(output / "ddf_00.nii.gz").get_fdata().any()  # the first scan stays
    mapped = apply_field_to_points(output / "ddf_01.nii.gz", landmarks[0])
    before, after = (np.linalg.norm(landmarks[1] - p, axis=1).mean() for p in (landmarks[0], mapped))
    assert after < 0.5 * before
    # The part that no affine map explains is from the vSVF network.
    design = np.c_[landmarks[0], np.ones(len(landmarks[0]))]
    left = mapped - design @ np.linalg.lstsq(design, mapped, rcond=None)[0]
    assert 0.01 < np.linalg.norm(left, axis=1).mean() < 2
    assert report["metrics"]["folding_percent"] == 0


def test_the_optimisation_may_stand_before_vsvf_too(pair, weights, tmp_path):
    files, landmarks = pair
    output = tmp_path / "out"
    assert register(files, output, "--weights", str(weights[1]), "--initial", "affine") == 0
    assert read_json(output / "report.json")["settings"]["initial_alignment"] == "affine"
    mapped = apply_field_to_points(output / "ddf_01.nii.gz", landmarks[0])
    assert np.linalg.norm(landmarks[1] - mapped, axis=1).mean() < 2


def test_weights_that_do_not_ship_are_named_with_the_way_to_them(pair, tmp_path, capsys):
    files, _ = pair
    assert main(["register", *files, "--overlay", "models/time_dependent", "--output", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    (line,) = [line for line in printed.splitlines() if line.startswith("groupmorph: ")]
    absent = bundle_root() / "models" / "time_dependent.pt"
    assert line.startswith(f"groupmorph: weights: {absent}: no weights ship for models/time_dependent")
    assert "train --phantoms --overlay models/time_dependent --output DIR" in line
    assert line.endswith("--weights DIR/model_best.pt")
    assert "Traceback" not in printed and not (tmp_path / "out").exists()
