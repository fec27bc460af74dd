"""A region from a file: its position before and after registration, and its curves in the report and the page."""

import nibabel as nib
import numpy as np
import pytest
import torch

from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.writing.products import Products
from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation.region import region_masks, region_report
from groupmorph_monai.space.transforms import AffineTransform

AFFINE = np.diag([2.0, 1.0, 1.0, 1.0])
BOX = np.zeros((8, 7, 6), np.uint8)
BOX[2:4, 3:5, 1:4] = 3


def series():
    frames = tuple(Frame(np.random.default_rng(k).random(BOX.shape, np.float32), AFFINE, f"t{k}") for k in range(3))
    return Series(frames)


@pytest.fixture
def file(tmp_path):
    """Write the box on a grid that begins one voxel before that of the scans."""
    grown, affine = np.pad(BOX, ((1, 0), (0, 0), (0, 0))), AFFINE.copy()
    affine[0, 3] = -2.0
    nib.save(nib.Nifti1Image(grown, affine), tmp_path / "lesion.nii.gz")
    return str(tmp_path / "lesion.nii.gz")


def shift_by(millimetres):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3] = millimetres
    return AffineTransform(matrix)


def test_the_region_moves_with_the_scan_it_was_drawn_on(file):
    # A point of the common space lies 4 mm, two voxels, further in the scan.
    before, after = region_masks(file, series(), 0, shift_by(4.0))
    np.testing.assert_array_equal(before, BOX > 0)
    np.testing.assert_array_equal(after, np.roll(BOX > 0, -2, axis=0))


def test_curves_are_means_over_what_each_scan_has_seen(file):
    scans = np.stack([frame.data for frame in series().frames])
    covered = np.ones(scans.shape, bool)
    covered[1, 2] = covered[2] = False
    written = {"native": scans, "native_covered": covered, "warped": 2 * scans, "warped_covered": np.ones_like(covered)}
    written["region"] = region_masks(file, series(), 0, shift_by(0.0))
    report = region_report(file, 0, written)
    assert report["file"] == "lesion.nii.gz" and report["voxels"] == {"before": 12, "after": 12}
    means = [scan[2:4, 3:5, 1:4].mean() for scan in scans]
    assert report["signal"]["after"] == pytest.approx([2 * mean for mean in means], rel=1e-6)
    assert report["signal"]["before"][:2] == pytest.approx([means[0], scans[1, 3, 3:5, 1:4].mean()], rel=1e-6)
    assert np.isnan(report["signal"]["before"][2])


def test_the_region_of_the_reference_is_used_if_there_is_one_per_scan(file, tmp_path):
    other = str(tmp_path / "other.nii")
    nib.save(nib.Nifti1Image(np.roll(BOX, 1, axis=1), AFFINE), other)
    masks = region_masks([other, file, other], series(), 1, shift_by(0.0))
    np.testing.assert_array_equal(masks[1], BOX > 0)
    assert region_report([other, file, other], 1, {"region": masks[:0]})["file"] == "lesion.nii.gz"


def test_a_region_that_cannot_be_shown_is_refused_before_the_registration(file, tmp_path):
    away = str(tmp_path / "away.nii")
    nib.save(nib.Nifti1Image(BOX, np.diag([2.0, 1.0, 1.0, 1.0]) + 900 * np.eye(4, k=3)), away)
    empty = str(tmp_path / "empty.nii")
    nib.save(nib.Nifti1Image(0 * BOX, AFFINE), empty)
    below = str(tmp_path / "below.nii")
    nib.save(nib.Nifti1Image(-BOX.astype(np.int16), AFFINE), below)
    for region, words in (
        (
            away,
            "away.nii: expected a mask or region above 0 somewhere in its scan, got one that does not overlap the scan",
        ),
        (below, "below.nii: expected a mask or region above 0 somewhere in its scan, got none"),
        (empty, "empty.nii: expected a mask or region above 0 somewhere in its scan, got none"),
        ([file, away, file], "away.nii: expected a mask or region that overlaps its scan"),
        ([file, file, file + ".gz"], "lesion.nii.gz.gz: expected a file or folder, got a path that does not exist"),
        ([file, file], "region: expected one file, or one for each of the 3 scans, got 2"),
        (str(tmp_path / "none.nii"), "none.nii: expected a file or folder, got a path that does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            Products(region=region).check(series(), 0)
