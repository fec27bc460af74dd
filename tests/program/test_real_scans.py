"""Real scans, cropped small; see `tests/real_scans/README.md` for their sources."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scanners import LPS, Motion, Registered, Scan, affine, apply, register, save
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from groupmorph_monai.apps.command_line import main

SCANS = Path(__file__).parents[1] / "real_scans"


def load(name):
    image = nibabel.load(SCANS / name)
    return Scan(np.asarray(image.dataobj).astype(np.float32), image.affine)


def points_within(scan, number=300, margin_voxels=6.0):
    """Select random bright voxels away from the border, ``(P, 3)``."""
    inside = np.argwhere(scan.data > 0.3 * np.percentile(scan.data, 99))
    points = apply(scan.affine, inside[np.random.default_rng(0).permutation(len(inside))])
    return points[scan.sees(points, margin_voxels)][:number]


def test_other_contrasts_are_warped_back(tmp_path):
    """Tubes of gel at three flip angles, two of which are warped by known fields."""
    rng = np.random.default_rng(3)
    motions = [Motion(np.eye(4)), *(Motion.random(rng, 4, 5, 0, 2) for _ in range(2))]
    scans = [load(f"gel_fa{angle}.nii.gz") for angle in (2, 5, 12)]
    to_voxel, size = np.linalg.inv(scans[0].affine), scans[0].data.shape
    grid = apply(scans[0].affine, np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1))
    warped = []
    for scan, motion in zip(scans, motions):
        voxels = np.moveaxis(apply(to_voxel, motion.inverse(grid)), -1, 0)
        warped.append(Scan(map_coordinates(scan.data, voxels, order=3, mode="nearest").astype(np.float32), scan.affine))
    points = np.stack([motion(points_within(scans[0])) for motion in motions])
    before = np.linalg.norm(points[1:] - points[0], axis=-1).mean()
    errors = Registered(register(save(warped, tmp_path), tmp_path / "out")).errors_mm(points)
    print(f"mean {before:.2f} mm before, {errors.mean():.3f} after, 95 % {np.percentile(errors, 95):.3f}")
    assert before > 2
    assert errors.mean() < 0.5 and np.percentile(errors, 95) < 1.5


def lung_points(name):
    return np.loadtxt(SCANS / f"lung_{name}.txt", skiprows=2) * LPS


@pytest.mark.parametrize("reference", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_the_lungs_are_brought_together(reference, tmp_path):
    """Thoracic CT and its follow-up, whose origins differ by 35 mm; 51 pairs of points, one of them 14 mm off."""
    files = [str(SCANS / f"lung_{name}.nrrd") for name in ("baseline", "followup")]
    options = ["--overlay", "data/lung_ct", "--reference", reference]
    registered = Registered(register(files, tmp_path, *options))
    baseline, followup = lung_points("baseline"), lung_points("followup")
    errors = np.linalg.norm(registered.transport(baseline, 0, 1) - followup, axis=-1)
    print(f"mean {errors.mean():.3f} mm, median {np.median(errors):.3f} mm")
    assert errors.mean() < 2 and np.median(errors) < 1.5


def test_a_rigid_motion_of_the_head_is_found(tmp_path):
    """Perfusion frames of 3 x 3 x 6 mm, two of which have another position in their header."""
    image = nibabel.load(SCANS / "asl.nii.gz")
    frames = np.moveaxis(np.asarray(image.dataobj).astype(np.float32), -1, 0)
    turns = Rotation.from_euler("zxy", [[0, 0, 0], [9, -4, 2], [-7, 3, -5]], degrees=True).as_matrix()
    moves = [affine(turn, shift) for turn, shift in zip(turns, ((0, 0, 0), (12, -8, 5), (-6, 10, -9)))]
    first = Scan(frames[0], image.affine)
    points = np.stack([apply(move, points_within(first, margin_voxels=2)) for move in moves])
    files = save([Scan(frame, move @ image.affine) for frame, move in zip(frames, moves)], tmp_path)
    errors = Registered(register(files, tmp_path / "out", "--initial", "rigid")).errors_mm(points)
    print(f"mean {errors.mean():.3f} mm, 95 % {np.percentile(errors, 95):.3f} mm")
    assert errors.mean() < 0.5 and np.percentile(errors, 95) < 1.5


def test_few_iterations_leave_no_tissue_of_a_turned_head_behind(tmp_path):
    """In noisy scans of a turned head, some tissue fits by chance as if it had not moved."""
    perfusion, rng = load("asl.nii.gz"), np.random.default_rng(3)
    head = Scan(perfusion.data[..., 0], perfusion.affine)
    grid = apply(head.affine, np.stack(np.meshgrid(*map(np.arange, head.data.shape), indexing="ij"), axis=-1))
    turns = Rotation.from_rotvec([[0, 0, 0], *rng.uniform(-6, 6, (2, 3))], degrees=True).as_matrix()
    moves = [affine(turn, shift) for turn, shift in zip(turns, [[0, 0, 0], *rng.uniform(-6, 6, (2, 3))])]
    scans = []
    for move in moves:
        voxels = np.moveaxis(apply(np.linalg.inv(move @ head.affine), grid), -1, 0)
        data = map_coordinates(head.data, voxels, order=1)
        noise = rng.normal(scale=0.01 * data.max(), size=data.shape)
        scans.append(Scan((data + noise * (data > 0)).astype(np.float32), head.affine))
    points = np.stack([apply(move, points_within(head, margin_voxels=2)) for move in moves])
    files = save(scans, tmp_path)
    errors = Registered(register(files, tmp_path / "out", "--effort", "fast", "--reference", "0")).errors_mm(points)
    print(f"mean {errors.mean():.3f} mm, at most {errors.max():.3f} mm")
    assert errors.mean() < 0.6 and errors.max() < 4


def test_labels_of_another_patient_come_to_lie_on_each_other(tmp_path):
    files = [str(SCANS / f"hippocampus_{subject}.nii.gz") for subject in ("001", "003")]
    register(files, tmp_path, "--reference", "0")
    labels = SCANS / "hippocampus_003_labels.nii.gz"
    assert main(["apply", str(tmp_path / "ddf_01.nii.gz"), str(labels), "--label", "--output", str(tmp_path)]) == 0
    fixed = load("hippocampus_001_labels.nii.gz").data
    resampled = np.asarray(nibabel.load(tmp_path / labels.name).dataobj)
    dice = [2 * ((fixed == n) & (resampled == n)).sum() / ((fixed == n).sum() + (resampled == n).sum()) for n in (1, 2)]
    print(f"Dice {dice[0]:.3f}, {dice[1]:.3f}")
    assert np.mean(dice) > 0.73
