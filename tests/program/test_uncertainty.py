"""`--std` predicts the errors, or is refused where it cannot."""

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from groupmorph_monai import probability
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.configs import config_files, overlay_names, read_configs
from groupmorph_monai.apps.suites.reliability import inside_share
from groupmorph_monai.benchmarks.cases import with_landmarks_mm
from groupmorph_monai.data import make_phantom
from groupmorph_monai.data.writing.applying import apply_field_to_points


def standardised_errors(phantom, folder):
    """Divide the errors of landmarks mapped from the reference, the first scan, to each other scan by their written
    standard deviation, per component."""
    points = with_landmarks_mm(phantom)["landmarks_mm"].numpy()
    for k in range(1, len(points)):
        errors = apply_field_to_points(folder / f"ddf_{k:02d}.nii.gz", points[0]) - points[k]
        std_mm = nibabel.load(folder / f"std_mm_{k:02d}.nii.gz").get_fdata() / 3**0.5
        yield errors / map_coordinates(std_mm, phantom["landmarks"][0].numpy().T, order=1)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize("timepoints, seeds, least", [(2, (3, 4, 5), 0.82), (6, (3, 4), 0.78)])
def test_nine_of_ten_errors_lie_in_the_90_percent_interval(timepoints, seeds, least, save_series, tmp_path):
    errors = []
    for seed in seeds:
        phantom = make_phantom(seed, (36, 36, 36), timepoints, landmarks=1000, noise=0.04)
        (tmp_path / str(seed)).mkdir()
        files, output = save_series(phantom, tmp_path / str(seed)), tmp_path / str(seed) / "out"
        assert main(["register", *files, "--output", str(output), "--reference", "0", "--std", "20"]) == 0
        errors += standardised_errors(phantom, output)
    share = inside_share(torch.from_numpy(np.concatenate(errors)), 0.9)
    print(f"share {share:.3f}")
    assert least < share < 0.97


def calibrated(overlay):
    """Return whether the likelihood that an overlay selects is in nats; None if it selects none."""
    part = read_configs(config_files("inference", [overlay])[-1:]).get("likelihood", {})
    return getattr(probability, part["_target_"].split(".")[-1]).calibrated if "_target_" in part else None


@pytest.mark.parametrize("overlay", [name for name in overlay_names() if calibrated(name) is False])
def test_no_uncertainty_is_stated_whose_scale_is_arbitrary(overlay, series, tmp_path, capsys):
    output = tmp_path / "out"
    scans = series if overlay in ("models/groupmorph",) or "likelihoods" in overlay else series[:2]
    assert main(["register", *scans, "--overlay", overlay, "--std", "5", "--output", str(output)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("groupmorph")]
    assert "--std" in line and "; omit it" in line
    assert not output.exists()


@pytest.mark.parametrize("overlay", ["models/groupmorph", "posteriors/smoothed"])
def test_no_uncertainty_is_stated_of_a_network_that_is_not_calibrated(overlay, series, tmp_path, capsys):
    command = [
        "register",
        *series,
        "--overlay",
        overlay,
        "--no-refine",
        "--std",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("groupmorph")]
    assert "std_draws (--std)" in line and "network_std_factor = null" in line
    assert not (tmp_path / "out").exists()
    assert main([*command, "--set", "network_std_factor=1"]) == 0
