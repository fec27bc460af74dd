from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentiles

from groupmorph_monai.data import (
    LoadSeriesd,
    RandContrastd,
    RandMotiond,
    RandTimepointsd,
    ScalePercentilesd,
    make_phantom,
    read_series,
)
from groupmorph_monai.errors import InputError


def test_the_working_spacing_is_met_and_landmarks_follow(phantom, series):
    folder = Path(series[0]).parent
    item = LoadSeriesd(spacing_mm=2.0)(
        {"image": series, "landmarks": [str(folder / f"landmarks_{k:02d}.csv") for k in range(6)]}
    )
    np.testing.assert_allclose(np.linalg.norm(item["affine"][:3, :3], axis=0), 2.0)
    native = nibabel.load(series[0]).affine
    for k in range(6):
        there = item["landmarks"][k].numpy() @ item["affine"].numpy()[:3, :3].T + item["affine"].numpy()[:3, 3]
        expected = phantom["landmarks"][k].numpy() @ native[:3, :3].T + native[:3, 3]
        np.testing.assert_allclose(there, expected, atol=1e-4)


def test_a_path_and_a_series_that_is_read_give_the_same(series):
    by_path, read = LoadSeriesd()({"image": series}), LoadSeriesd()({"image": read_series(series)})
    torch.testing.assert_close(by_path["image"], read["image"])
    expected = np.stack([nibabel.load(file).get_fdata() for file in series])
    np.testing.assert_allclose(by_path["image"], expected, rtol=1e-6)


def test_a_phantom_has_the_keys_of_a_real_series():
    item = LoadSeriesd()({"phantom": {"seed": 2, "size": (16, 16, 16), "timepoints": 3, "landmarks": 5}})
    expected = make_phantom(2, (16, 16, 16), 3, landmarks=5)
    assert {"image", "affine", "landmarks"} <= set(item)
    torch.testing.assert_close(item["image"].as_tensor(), expected["image"])
    torch.testing.assert_close(item["landmarks"], expected["landmarks"])


def test_another_number_of_timepoints_is_refused(series):
    with pytest.raises(InputError, match="K = 6.*got 4"):
        LoadSeriesd(timepoints=6)({"image": series[:4]})


def test_random_timepoints_are_the_series_own_each_once():
    series = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 2, 2, 2)
    draw = RandTimepointsd(least=2, most=5).set_random_state(0)
    numbers = set()
    for _ in range(60):
        chosen = draw({"image": series})["image"][:, 0, 0, 0].tolist()
        assert len(set(chosen)) == len(chosen) and set(chosen) <= set(range(8))
        numbers.add(len(chosen))
    assert numbers == {2, 3, 4, 5}


def test_timepoints_in_order_are_neighbours_in_time():
    series = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 2, 2, 2)
    draw, firsts = RandTimepointsd(least=2, most=5, in_order=True).set_random_state(0), set()
    for _ in range(60):
        chosen = draw({"image": series})["image"][:, 0, 0, 0].tolist()
        assert np.diff(chosen).tolist() == [1] * (len(chosen) - 1) and 2 <= len(chosen) <= 5
        firsts.add(chosen[0])
    assert {0, 6} <= firsts


def test_random_contrast_changes_each_timepoint_by_itself_and_keeps_places():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 4, 4, 4, generator=generator)
    volume = torch.nn.functional.interpolate(coarse, size=(20, 20, 20), mode="trilinear")[0]
    contrast = RandContrastd(prob=1.0, noise=0.0).set_random_state(1)
    varied = contrast({"image": volume.expand(3, -1, -1, -1)})["image"]
    assert (varied[0] - varied[1]).abs().mean() > 0.02
    assert varied.min() >= 0 and varied.max() <= 1
    again = RandContrastd(prob=1.0, noise=0.0).set_random_state(1)({"image": volume.expand(3, -1, -1, -1)})["image"]
    torch.testing.assert_close(again, varied, atol=0, rtol=0)
    # Where the old image is constant along an axis the curve keeps it so: only the smooth bias field varies there.
    flat = torch.full((1, 20, 20, 20), 0.3)
    bias = RandContrastd(prob=1.0, noise=0.0).set_random_state(2)({"image": flat})["image"]
    assert bias.diff(dim=1).abs().max() < 0.1


def test_random_motion_moves_each_timepoint_by_itself_smoothly_and_not_too_far():
    # Images of their own coordinates show where every voxel was taken from.
    size = (40, 36, 32)
    for axis, n in enumerate(size):
        line = torch.arange(float(n)).view([-1 if a == axis else 1 for a in range(3)]).expand(size)
        draw = RandMotiond(prob=1.0, motion_voxels=3.0, zoom=1.0).set_random_state(axis)
        moved = draw({"image": line.expand(4, *size)})["image"]
        motion = moved - line
        inside = motion[:, 4:-4, 4:-4, 4:-4]
        assert 0.3 < inside.abs().max() <= 3.0
        assert (inside[0] - inside[1]).abs().max() > 0.1
        assert all(inside.diff(dim=d).abs().max() <= 0.41 for d in (1, 2, 3))
        resized = RandMotiond(prob=1.0, motion_voxels=1e-6, zoom=2.0).set_random_state(axis)
        scales = resized({"image": line.expand(2, *size)})["image"].narrow(axis + 1, n // 2 - 2, 5).diff(dim=axis + 1)
        assert scales.std() < 1e-4 and 0.5 <= scales.mean() <= 2 and abs(scales.mean() - 1) > 0.05
    still = RandMotiond(prob=0.0)({"image": line.expand(2, *size)})["image"]
    assert torch.equal(still[0], line)


def test_masks_come_to_the_working_grid_of_their_scans(series, tmp_path):
    native = nibabel.load(series[0])
    drawn = np.zeros(native.shape, np.int16)
    drawn[5:9, 6:20, 3:15] = 7
    file = str(tmp_path / "mask.nii.gz")
    nibabel.save(nibabel.Nifti1Image(drawn, native.affine), file)
    mask = LoadSeriesd()({"image": series, "mask": file})["mask"]
    np.testing.assert_array_equal(mask, (drawn > 0)[None])
    moved = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    moved[2, :3, 3] = 2 * torch.as_tensor(native.affine[:3, 0])  # scan 2 shows there what lies two voxels further on
    masks = LoadSeriesd()({"image": series, "mask": [file] * 6, "initial": moved})["mask"]
    np.testing.assert_array_equal(masks[0], drawn > 0)
    np.testing.assert_array_equal(masks[2], np.roll(drawn > 0, -2, axis=0))
    assert "mask" not in LoadSeriesd()({"image": series, "mask": None})
    with pytest.raises(InputError, match="mask: expected one file, or one for each of the 6 scans, got 2"):
        LoadSeriesd()({"image": series, "mask": [file] * 2})
    nibabel.save(nibabel.Nifti1Image(0 * drawn, native.affine), file)
    with pytest.raises(InputError, match="mask.nii.gz.*above 0"):
        LoadSeriesd()({"image": series, "mask": file})


@pytest.mark.parametrize("per_timepoint", [True, False])
def test_percentiles_are_scaled_as_monai_does(per_timepoint):
    series = MetaTensor(torch.randn(3, 9, 8, 7) * torch.tensor([1.0, 5, 30]).view(3, 1, 1, 1), affine=2 * torch.eye(4))
    monais = ScaleIntensityRangePercentiles(2, 90, 0, 1, clip=True, channel_wise=per_timepoint)(series)
    ours = ScalePercentilesd("image", 2, 90, per_timepoint)({"image": series, "other": 1})
    torch.testing.assert_close(torch.as_tensor(ours["image"]), torch.as_tensor(monais), atol=1e-6, rtol=1e-6)
    assert ours["other"] == 1 and torch.equal(ours["image"].affine, series.affine)
