"""Series with invalid or masked voxels, registered by the command line: landmark errors in mm."""

import nibabel
import numpy as np
import pytest

from groupmorph_monai.apps.command_line import main
from groupmorph_monai.data import make_phantom
from groupmorph_monai.data.writing.applying import apply_field_to_points

pytestmark = pytest.mark.usefixtures("no_pictures")


def _registered_error_mm(images, phantom, folder, *options, points=slice(None)):
    """Compute the mean distance of corresponding points from their mean over timepoints, after and before
    registration."""
    affine, files = phantom["affine"].numpy(), []
    for k, image in enumerate(images):
        files.append(str(folder / f"t{k}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), files[-1])
    assert main(["register", *files, "--output", str(folder / "out"), "--no-refine", *options]) == 0
    before = phantom["landmarks"][:, points].numpy() @ affine[:3, :3].T + affine[:3, 3]
    after = [apply_field_to_points(folder / "out" / f"inverse_ddf_{k:02d}.nii.gz", p) for k, p in enumerate(before)]
    return [np.linalg.norm(p - np.mean(p, axis=0), axis=2).mean() for p in (np.stack(after), before)]


@pytest.mark.parametrize(("filled", "fill"), [([1], -2048), ([0, 1, 2], -32768)])
def test_a_round_field_of_view_of_ct_does_not_disturb(tmp_path, filled, fill):
    phantom = make_phantom(3, size=(40, 36, 32), timepoints=3, max_motion_voxels=3, landmarks=200)
    images = phantom["image"].numpy() * 2 - 1000
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in images.shape[1:]], indexing="ij")
    images[np.ix_(filled)] = np.where(np.hypot(x, y) > 1, fill, images[np.ix_(filled)])
    after, before = _registered_error_mm(images, phantom, tmp_path)
    assert before > 0.5 and after < 0.25


def test_wedges_of_zeros_in_resliced_scans_do_not_disturb(tmp_path):
    phantom = make_phantom(3, size=(40, 36, 32), timepoints=3, max_motion_voxels=3, landmarks=400)
    images, points = phantom["image"].numpy().copy(), phantom["landmarks"].numpy()
    offsets = np.array([12.0, 11, 14])
    # The planes z = a + 0.2 x - 0.1 y and so on, which are fixed to the scanner, behind which nothing was measured.
    normals = np.array([[-0.2, 0.1, 1], [0.25, -0.1, 1], [-0.1, -0.2, 1]])
    starts = offsets + np.einsum("kd,d->k", np.minimum(normals, 0), np.array(images.shape[1:]))
    depth = np.einsum("kd,d...->k...", normals, np.indices(images.shape[1:])) - starts.reshape(3, 1, 1, 1)
    images[depth < 0] = 0
    seen = (np.einsum("kd,kpd->kp", normals, points) - starts[:, None] > 2).all(axis=0)
    assert 0.1 < (depth < 0).mean() < 0.4 and seen.sum() > 100
    after, before = _registered_error_mm(images, phantom, tmp_path, points=seen)
    assert before > 0.5 and after < 0.25


# In the second, both percentiles of all voxels are 0, and its 19 points are too few to ask for more than no harm.
@pytest.mark.parametrize(
    ("zeros", "size", "initial", "most_mm"), [(0.95, (44, 44, 40), "affine", 0.35), (0.992, (56, 52, 48), "none", 0.4)]
)
def test_a_masked_scan_is_aligned_by_what_it_shows(tmp_path, zeros, size, initial, most_mm):
    """Outside an ellipsoid that moves with the anatomy, the scan is 0."""
    phantom = make_phantom(3, size=size, timepoints=2, max_motion_voxels=3, landmarks=2000)
    extent = np.array(size).reshape(3, 1, 1, 1)
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    radii = ((1 - zeros) * 3 / (4 * np.pi)) ** (1 / 3) * extent
    within = [np.linalg.norm((voxels + u - extent / 2) / radii, axis=0) < 1 for u in phantom["motion"].numpy()]
    images = np.where(within, phantom["image"].numpy(), 0)
    assert abs((images == 0).mean() - zeros) < 0.01
    first = phantom["landmarks"][0].numpy()
    centre, radii = extent.ravel() / 2, radii.ravel()
    points = np.linalg.norm((first - centre) / radii, axis=1) < 0.8
    after, before = _registered_error_mm(images, phantom, tmp_path, "--initial", initial, points=points)
    assert after < min(before, most_mm)
