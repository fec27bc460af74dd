from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentiles

from groupmorph_monai.data import (
    ClipSeriesd,
    LoadSeriesd,
    MakePhantomd,
    MatchPolarityd,
    ScalePercentilesd,
    ScaleSeriesd,
    make_phantom,
    read_series,
)
from groupmorph_monai.errors import InputError


def test_the_working_spacing_is_met_and_landmarks_stay_where_they_are_in_the_patient(phantom, series):
    folder = Path(series[0]).parent
    files = [str(folder / f"landmarks_{k:02d}.csv") for k in range(6)]
    native = nibabel.load(series[0]).affine
    expected = phantom["landmarks"].numpy() @ native[:3, :3].T + native[:3, 3]
    for spacing_mm in (None, 2.0):
        item = LoadSeriesd(spacing_mm=spacing_mm)({"image": series, "landmarks": files})
        np.testing.assert_allclose(item["landmarks"], expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(item["affine"][:3, :3], axis=0), 2.0)


def test_a_path_and_a_series_that_is_read_give_the_same(series):
    by_path, read = LoadSeriesd()({"image": series}), LoadSeriesd()({"image": read_series(series)})
    torch.testing.assert_close(by_path["image"], read["image"])
    stored = [nibabel.as_closest_canonical(nibabel.load(file)) for file in series]
    np.testing.assert_allclose(by_path["image"], np.stack([image.get_fdata() for image in stored]), rtol=1e-6)
    np.testing.assert_allclose(by_path["affine"], stored[0].affine, atol=1e-5)
    assert by_path["coverage"].shape == by_path["image"].shape and (by_path["coverage"] == 1).all()
    assert by_path["one_header"] is True and by_path["times"].tolist() == list(range(len(series)))
    timed = replace(read_series(series), times_s=(0.0, 90, 150, 210, 270, 330))
    assert LoadSeriesd()({"image": timed})["times"].tolist() == list(timed.times_s)


def test_lower_values_are_clipped(series):
    native = read_series(series)
    least = float(np.median(native.frames[2].data))
    for image in (series, native):
        clipped = ClipSeriesd(least=least)({"image": image})["image"]
        for frame, before in zip(clipped.frames, native.frames):
            np.testing.assert_array_equal(frame.data, np.clip(before.data, least, None))
    assert native.frames[2].data.min() < least
    assert ClipSeriesd()({"image": series}) == {"image": series}
    assert ClipSeriesd(least=1.0)({"phantom": {}}) == {"phantom": {}}


def test_a_phantom_has_the_keys_of_a_real_series():
    arguments = {"phantom": {"seed": 2, "size": (16, 16, 16), "timepoints": 3, "landmarks": 5}}
    item, expected = MakePhantomd()(arguments), make_phantom(2, (16, 16, 16), 3, landmarks=5)
    assert LoadSeriesd()(arguments) == arguments
    assert {"image", "coverage", "affine", "landmarks"} <= set(item)
    torch.testing.assert_close(item["times"], expected["times_s"])
    torch.testing.assert_close(item["image"].as_tensor(), expected["image"])
    affine = expected["affine"].float()
    torch.testing.assert_close(item["landmarks"], expected["landmarks"] @ affine[:3, :3].T + affine[:3, 3])
    assert item["coverage"].shape == item["image"].shape and (item["coverage"] == 1).all()


def test_another_number_of_timepoints_is_refused(series):
    with pytest.raises(InputError, match="expected 6 timepoints.*got 4"):
        LoadSeriesd(timepoints=6)({"image": series[:4]})


def test_a_spacing_that_leaves_next_to_nothing_is_refused(series):
    wanted = "spacing_mm: expected one that leaves 4 voxels along every axis, got 200.*; choose less than "
    with pytest.raises(InputError, match=wanted) as error:
        LoadSeriesd(spacing_mm=200.0)({"image": series})
    most_mm = float(str(error.value).removesuffix(" mm").split()[-1])
    assert min(LoadSeriesd(spacing_mm=0.99 * most_mm)({"image": series})["image"].shape[1:]) == 4


def _turned(image):
    """Reorder and flip the axes of an image, as another scanner may store them."""
    return image.as_reoriented(nibabel.orientations.axcodes2ornt("PIR"))


@pytest.mark.parametrize("reference", [None, 0, 3])
def test_the_same_series_stored_another_way_loads_as_the_same_item(series, tmp_path, reference):
    images = [nibabel.load(file) for file in series]
    expected = LoadSeriesd(spacing_mm=1.5, reference=reference)({"image": series})
    turned = [str(tmp_path / f"{k}.nii") for k in range(6)]
    for mixed in (False, True):  # all of them, or every second scan
        for k, (image, file) in enumerate(zip(images, turned)):
            nibabel.save(image if mixed and k % 2 else _turned(image), file)
        item = LoadSeriesd(spacing_mm=1.5, reference=reference)({"image": turned})
        torch.testing.assert_close(item["affine"], expected["affine"], atol=1e-5, rtol=0)
        torch.testing.assert_close(item["image"].as_tensor(), expected["image"].as_tensor(), atol=1e-4, rtol=1e-4)
        assert item["one_header"] is expected["one_header"] is True


def test_the_reference_gives_the_grid_and_one_that_the_series_lacks_is_named(series, tmp_path):
    image = nibabel.load(series[2])
    shifted = image.affine.copy()
    shifted[:3, 3] += [3.5, -2, 1]
    files = [*series[:2], str(tmp_path / "moved.nii")]
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), shifted), files[2])
    item = LoadSeriesd(reference=2)({"image": files})
    stored = nibabel.as_closest_canonical(nibabel.load(files[2]))
    np.testing.assert_allclose(item["affine"], stored.affine, atol=1e-5)
    np.testing.assert_array_equal(item["image"][2], stored.get_fdata(dtype=np.float32))
    assert item["one_header"] is False
    assert item["coverage"][2].min() == 1 and 0 < item["coverage"][0].mean() < 1
    # 28 x 24 x 20 voxels of 1 x 1 x 1.2 mm, of which the other scans cover this number, too.
    assert item["coverage"][0].sum() == (28 - 4 + 1) * (24 - 2) * (20 - 1)
    with pytest.raises(InputError, match="reference: expected one of the series' 3 timepoints, 0 to 2, got 3"):
        LoadSeriesd(reference=3)({"image": files})


def test_masks_come_to_the_working_grid_of_their_scans(series, tmp_path):
    native = nibabel.load(series[0])
    drawn = np.zeros(native.shape, np.int16)
    drawn[5:9, 6:20, 3:15] = 7
    file = str(tmp_path / "mask.nii.gz")

    def canonical(data):
        return nibabel.as_closest_canonical(nibabel.Nifti1Image(data.astype(np.int16), native.affine)).get_fdata()

    nibabel.save(nibabel.Nifti1Image(drawn, native.affine), file)
    mask = LoadSeriesd()({"image": series, "mask": file})["mask"]
    np.testing.assert_array_equal(mask, canonical(drawn > 0)[None])
    shifted = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    shifted[2, :3, 3] = 2 * torch.as_tensor(native.affine[:3, 0])  # scan 2 is shifted by two voxels
    # Compare on the grid of the first scan, as the grid of the series is an average over its scans.
    load = LoadSeriesd(reference=0)
    masks = load({"image": series, "mask": [file] * 6, "initial": shifted})["mask"]
    np.testing.assert_array_equal(masks[0], canonical(drawn > 0))
    np.testing.assert_array_equal(masks[2], canonical(np.roll(drawn > 0, -2, axis=0)))
    # A single mask is drawn on the reference and moves with it.
    unshifted = shifted[[0, 1, 0, 3, 4, 5]]
    for reference, initial, expected in (
        (0, shifted, drawn > 0),
        (2, shifted, np.roll(drawn > 0, -2, axis=0)),
        (2, unshifted, drawn > 0),
    ):
        item = LoadSeriesd(reference=reference)({"image": series, "mask": file, "initial": initial})
        np.testing.assert_array_equal(item["mask"][0], canonical(expected))
    assert "mask" not in LoadSeriesd()({"image": series, "mask": None})
    with pytest.raises(InputError, match="mask: expected one file, or one for each of the 6 scans, got 2"):
        LoadSeriesd()({"image": series, "mask": [file] * 2})
    away = native.affine.copy()
    away[:3, 3] += 2 * native.affine[:3, 0]
    nibabel.save(nibabel.Nifti1Image(np.ones_like(drawn), away), file)
    beside = LoadSeriesd()({"image": series, "mask": file})["mask"][0]
    expected = np.ones_like(drawn)
    expected[:2] = 0  # nothing is beyond the file's border
    np.testing.assert_array_equal(beside, canonical(expected))
    away[:3, 3] += 900
    for outside in (nibabel.Nifti1Image(np.ones_like(drawn), away), nibabel.Nifti1Image(0 * drawn, native.affine)):
        nibabel.save(outside, file)
        with pytest.raises(InputError, match="mask.nii.gz.*above 0"):
            LoadSeriesd()({"image": series, "mask": file})


def test_a_mask_tells_its_share_and_a_small_one_is_a_warning(series, tmp_path, caplog):
    native = nibabel.load(series[0])
    for voxels, warns in ((14, True), (20, False)):
        drawn = np.zeros(native.shape, np.int16)
        drawn[:voxels, :voxels, :voxels] = 1
        nibabel.save(nibabel.Nifti1Image(drawn, native.affine), tmp_path / "mask.nii.gz")
        caplog.clear()
        with caplog.at_level("INFO"):
            LoadSeriesd()({"image": series, "mask": str(tmp_path / "mask.nii.gz")})
        assert f"mask.nii.gz: {100 * drawn.mean():.3g} % of scan 0 is inside the mask." in caplog.text
        assert warns == ("expected 4096 or more" in caplog.text)


def test_landmarks_of_too_few_scans_or_of_other_points_are_refused(series, tmp_path):
    files = [tmp_path / f"landmarks_{k:02d}.csv" for k in range(6)]
    for k, file in enumerate(files):
        file.write_text("x,y,z\n" + "1,2,3\n" * (4 if k == 5 else 5), encoding="utf-8")
    with pytest.raises(InputError, match="landmarks_00.csv: expected one landmark file for each of the 6 scans, got 5"):
        LoadSeriesd()({"image": series, "landmarks": list(map(str, files[:5]))})
    with pytest.raises(InputError, match="landmarks_05.csv: expected the 5 points of .*landmarks_00.csv, got 4"):
        LoadSeriesd()({"image": series, "landmarks": list(map(str, files))})


@pytest.mark.parametrize(("scale", "per_timepoint"), [(ScalePercentilesd, True), (ScaleSeriesd, False)])
def test_percentiles_are_scaled_as_monai_does(scale, per_timepoint):
    series = MetaTensor(torch.randn(3, 9, 8, 7) * torch.tensor([1.0, 5, 30]).view(3, 1, 1, 1), affine=2 * torch.eye(4))
    monais = ScaleIntensityRangePercentiles(2, 90, 0, 1, clip=True, channel_wise=per_timepoint)(series)
    ours = scale(2, 90)({"image": series, "other": 1})
    torch.testing.assert_close(torch.as_tensor(ours["image"]), torch.as_tensor(monais), atol=1e-6, rtol=1e-6)
    assert ours["other"] == 1 and torch.equal(ours["image"].affine, series.affine)


@pytest.mark.parametrize(("scale", "per_timepoint"), [(ScalePercentilesd, True), (ScaleSeriesd, False)])
@pytest.mark.parametrize(("shown", "background"), [(0.004, 0.0), (0.05, 0.0), (0.5, -7.0)])
def test_percentiles_are_those_of_what_a_masked_scan_shows(shown, background, scale, per_timepoint):
    rng = np.random.default_rng(0)
    series = np.full((2, 40, 40, 40), background)
    number = int(shown * 40**3)
    for volume in series:
        volume.reshape(-1)[rng.permutation(40**3)[:number]] = rng.uniform(300, 700, number)
    parts = series[:, None] if per_timepoint else [series] * 2
    expected = []
    for volume, part in zip(series, parts):
        low, high = np.percentile(part[part != background], (1, 99))
        expected.append(np.clip((volume - low) / (high - low), 0, 1))
    image = MetaTensor(torch.tensor(series, dtype=torch.float32))
    scaled = scale()({"image": image})["image"]
    np.testing.assert_allclose(scaled, expected, atol=1e-5)


def test_voxels_that_no_scan_has_seen_do_not_move_the_percentiles():
    series, coverage = torch.randn(2, 20, 20, 20), torch.ones(2, 20, 20, 20)
    expected = ScalePercentilesd()({"image": series[:, :15]})["image"]
    coverage[:, 15:], series[0, 15:], series[1, 15:] = 0, 1e4, -1e4
    scaled = ScalePercentilesd()({"image": series, "coverage": coverage})["image"]
    torch.testing.assert_close(scaled[:, :15], expected)
    assert (scaled[0, 15:] == 1).all() and (scaled[1, 15:] == 0).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0, 0, 1], [0, 0, 0, 1]), ([5, 5, 5, 5], [0, 0, 0, 0]), ([0, 2, 2, 2], [0, 1, 1, 1])],
)
def test_few_values_stay_between_0_and_1(values, expected):
    series = torch.tensor(values, dtype=torch.float32).repeat(1, 6, 5, 4)
    torch.testing.assert_close(
        ScalePercentilesd()({"image": series})["image"],
        torch.tensor(expected, dtype=torch.float32).repeat(1, 6, 5, 4),
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
def test_values_outside_the_range_of_float32_are_refused_in_one_line(bad):
    series = torch.randn(2, 6, 6, 6)
    series[1, :2] *= bad
    if bad == 1e38:
        series[1] = torch.linspace(-3e38, 3e38, 216).view(6, 6, 6)
    with pytest.raises(InputError, match="image: expected finite intensities"):
        ScalePercentilesd()({"image": series})


def test_dark_timepoints_are_inverted_where_the_alignment_says_so():
    image = torch.rand(3, 4, 5, 6)
    item = MatchPolarityd()({"image": image, "polarity": torch.tensor([1.0, -1.0, 1.0])})
    torch.testing.assert_close(item["image"], torch.stack([image[0], 1 - image[1], image[2]]))
    assert torch.equal(MatchPolarityd()({"image": image})["image"], image)
