"""The published models with the shipped weights, run by their commands."""

import nibabel
import numpy as np
import pytest
from bundle_runs import distances_mm
from json_files import read_json

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.configs import overlay_names
from groupmorph_monai.apps.demo import SEED
from groupmorph_monai.data import make_phantom
from groupmorph_monai.data.phantoms.hearts import make_heart
from groupmorph_monai.data.writing.applying import apply_field_to_points

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pictures")]


# The affine network of models/avsm was not trained on hearts, and moves them a little.
@pytest.mark.parametrize(
    "model, most", [("models/voxelmorph_diff", 0.5), ("models/krebs_cvae", 0.5), ("models/avsm", 0.7)]
)
def test_a_beating_heart_that_no_network_has_seen_comes_together(model, most, tmp_path):
    heart = make_heart(500, "shortening")
    files = [str(tmp_path / f"t{k}.nii.gz") for k in range(2)]
    for file, volume in zip(files, heart["image"].numpy()):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)
    assert main(["register", *files, "--overlay", model, "--no-refine", "--output", str(tmp_path / "out")]) == 0
    rest, contracted = heart["landmarks"].numpy()
    before, after = (
        np.linalg.norm(contracted - points, axis=1).mean()
        for points in (rest, apply_field_to_points(tmp_path / "out" / "ddf_01.nii.gz", _common(rest, tmp_path)))
    )
    assert after < most * before


@pytest.mark.parametrize(
    "overlays, most", [(["groupmorph", "all_to_one"], 0.45), (["groupmorph"], 0.45), (["voxelmorph"], 0.45)]
)
def test_published_networks_align_phantoms_that_they_have_not_seen(overlays, most, tmp_path):
    names = ["effort/no_refine", "data/phantom_small", f"models/{overlays[0]}"]
    names += [*(f"modes/{mode}" for mode in overlays[1:]), "data/phantom_published"]
    options = [word for name in names for word in ("--overlay", name)]
    assert main(["evaluate", "--phantoms", "--set", "phantoms=2", *options, "--output", str(tmp_path)]) == 0
    mean = read_json(tmp_path / "metrics.json")["mean"]
    assert mean["landmark_after_mm_mean"] < most * mean["landmark_before_mm_mean"]
    assert mean["folding_percent"] < 1e-3


# Scans of the demo's series, options, and the largest share of the motion in mm that may remain. It is not affine. The
# networks of Krebs and VoxelMorph-diff were trained on hearts alone: the refinement reduces most of the error.
DEMO = {
    "models/avsm": (2, [], 0.25),
    "models/avsm_affine": (2, [], 0.92),
    "models/groupmorph": (6, ["--no-refine"], 0.4),
    "models/krebs_cvae": (2, [], 0.7),
    "models/voxelmorph": (2, ["--no-refine"], 0.4),
    "models/voxelmorph_diff": (2, [], 0.35),
}
WITHOUT_WEIGHTS = {"models/time_dependent"}


@pytest.fixture(scope="module")
def demo():
    return make_phantom(SEED)


@pytest.mark.parametrize("model", [n for n in overlay_names() if n.startswith("models/") and n not in WITHOUT_WEIGHTS])
def test_every_model_registers_the_series_of_the_demo(model, demo, save_series, tmp_path):
    number, options, most = DEMO[model]
    files = save_series(demo, tmp_path)[:number]
    assert main(["register", *files, "--overlay", model, *options, "--output", str(tmp_path / "out")]) == 0
    before, after = distances_mm(demo, tmp_path / "out", number)
    print(f"mean {after:.3f} mm of {before:.3f} mm")
    assert after < most * before


@pytest.mark.parametrize("model", sorted(WITHOUT_WEIGHTS))
def test_a_model_without_weights_says_how_to_train_them(model, series, tmp_path, capsys):
    assert main(["register", *series, "--overlay", model, "--output", str(tmp_path / "out")]) == 2
    assert f"groupmorph train --phantoms --overlay {model}" in capsys.readouterr().err


def _common(rest, folder):
    """Map points of the first scan to the common space."""
    return apply_field_to_points(folder / "out" / "inverse_ddf_00.nii.gz", rest)
