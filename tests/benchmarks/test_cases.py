import nibabel
import numpy as np
import pytest
import torch

from groupmorph_monai.apps.suites.suite import bundle_method
from groupmorph_monai.benchmarks.cases import warped_cases
from groupmorph_monai.benchmarks.compare import compare
from groupmorph_monai.data import make_phantom
from groupmorph_monai.errors import InputError

SIZE = (44, 40, 36)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """Return two volumes of a phantom with the same position and different contrast."""
    volume = make_phantom(8, SIZE, 2, max_motion_voxels=1e-3)["image"]
    folder, files = tmp_path_factory.mktemp("aligned"), []
    for k in range(2):
        files.append(str(folder / f"scan{k}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image(volume[k].numpy(), np.eye(4)), files[-1])
    return files


def test_known_fields_are_recovered(aligned, in_this_process):
    (case,) = warped_cases(aligned, [4], max_motion_voxels=3)
    unregistered, _, refined = compare(
        [case], {"refined": bundle_method(None, "effort/fast")}, progress=lambda line: None
    )
    apart = (case["landmarks"][0] - case["landmarks"][1]).norm(dim=1).mean()
    assert unregistered["mean error, voxels"] == pytest.approx(apart.item(), rel=1e-4)
    assert refined["mean error, voxels"] < 0.25 * unregistered["mean error, voxels"]


def test_errors_of_warped_scans_count_inside_the_mask(aligned, tmp_path):
    inside = np.zeros(SIZE, dtype=np.uint8)
    inside[16:26, 16:24, 14:20] = 1
    nibabel.save(nibabel.Nifti1Image(inside, np.eye(4)), tmp_path / "mask.nii.gz")
    (case,) = warped_cases(aligned, [4], max_motion_voxels=3, mask=str(tmp_path / "mask.nii.gz"))
    (whole,) = warped_cases(aligned, [4], max_motion_voxels=3)
    torch.testing.assert_close(case["image"], whole["image"])
    assert case["landmarks"].shape[1] == inside.sum()
    spread = case["landmarks"][0].amax(dim=0) - case["landmarks"][0].amin(dim=0)
    assert (spread < torch.tensor([10.0, 8, 6]) + 3).all()


def test_scans_too_thin_to_be_warped_are_refused_in_one_line(aligned, tmp_path):
    thin = str(tmp_path / "thin.nii.gz")
    nibabel.save(nibabel.load(aligned[0]).slicer[:, :, :14], thin)
    with pytest.raises(InputError, match=r"--series: expected bright voxels.*more than 7 voxels.*14\) voxels; use"):
        warped_cases([thin, thin], [4])
