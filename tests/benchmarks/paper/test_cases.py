import os

import nibabel
import numpy as np
import pytest
import torch

from groupmorph_monai.benchmarks.paper.cases import cases


def test_a_phantom_is_generated_on_request():
    case, other = cases("phantom", [1, 2], (20, 18, 16), 2)
    assert (case.name, other.name) == ("phantom 1", "phantom 2") and case.settings != other.settings
    series = case.load()
    assert series["image"].shape == (2, 20, 18, 16) and series["landmarks_mm"].shape[::2] == (2, 3)


def test_a_folder_of_series_is_read_with_its_landmarks(tmp_path):
    """On a grid rotated by 90 degrees with anisotropic spacing, landmarks keep their positions in the patient."""
    affine = np.array([[0.0, -2, 0, 30], [1, 0, 0, -5], [0, 0, 3, 2], [0, 0, 0, 1]])
    folder = tmp_path / "patient"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(2):
        nibabel.Nifti1Image(rng.random((8, 9, 10), dtype=np.float32), affine).to_filename(folder / f"scan{k}.nii.gz")
        (folder / f"landmarks_{k}.csv").write_text(f"x,y,z\n20,0,{3 + k}\n", encoding="utf-8")
    (case,) = cases(str(tmp_path))
    assert case.name == "patient"
    series = case.load()
    torch.testing.assert_close(series["landmarks_mm"].double()[:, 0, 2], torch.tensor([3.0, 4.0]).double())
    stored = nibabel.load(folder / "scan1.nii.gz")
    at = np.linalg.inv(series["affine"].numpy()) @ affine @ [3, 4, 5, 1]
    i, j, k = at[:3].round().astype(int)
    assert series["image"][1, i, j, k] == pytest.approx(stored.get_fdata()[3, 4, 5], abs=1e-5)
    os.utime(folder / "scan1.nii.gz", ns=(1, 1))
    assert cases(str(tmp_path))[0].settings != case.settings


@pytest.mark.slow
@pytest.mark.parametrize(("data", "extent_mm"), [("breast", (370.9, 370.9, 180)), ("thorax", (266.2, 266.2, 250))])
def test_a_phantom_of_fewer_voxels_has_the_same_field_of_view(data, extent_mm):
    series = cases(data, [1], (32, 32, 20), 2)[0].load()
    assert series["image"].shape == (2, 32, 32, 20)
    spacing = series["affine"][:3, :3].norm(dim=0) * torch.tensor([32, 32, 20])
    torch.testing.assert_close(spacing.double(), torch.tensor(extent_mm).double(), rtol=1e-3, atol=0)
    inverse = torch.linalg.inv(series["affine"].double())
    voxels = series["landmarks_mm"].double() @ inverse[:3, :3].T + inverse[:3, 3]
    assert len(voxels[0]) and voxels.min() >= -0.5 and (voxels < torch.tensor([32, 32, 20])).all()
