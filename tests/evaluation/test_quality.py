"""Every measure is correct in cases with known values."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.evaluation import quality
from groupmorph_monai.evaluation.quality import measure_quality
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform, DenseTransform

SIZE = (28, 24, 20)
AFFINE = np.array([[0.0, -1.5, 0, 4], [1.5, 0, 0, -9], [0, 0, 2, 30], [0, 0, 0, 1]])  # axes turned by 90 degrees
GRID = Grid(SIZE, AFFINE)


def texture(seed):
    return gaussian_filter(np.random.default_rng(seed).standard_normal(SIZE), 1.5).astype(np.float32)


def series(*volumes):
    return Series(tuple(Frame(v.astype(np.float32), AFFINE, f"t{k}") for k, v in enumerate(volumes)))


def identities(number):
    return [AffineTransform(torch.eye(4))] * number


def shift(x_mm):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[0, 3] = x_mm
    return AffineTransform(matrix)


def test_scans_that_differ_in_contrast_alone_agree():
    image = texture(0)
    measured = measure_quality(series(image, 3 - 2 * image, 5 * image), identities(3))
    assert min(measured["agreement_percent"]) > 85  # the rest is the allowance for noise
    assert measured["relative_agreement"] == pytest.approx([1, 1, 1], abs=0.02)
    assert measured["agreement_gain_percent"] == pytest.approx([0, 0, 0])
    assert measured["overlap_percent"] == [100] * 3 and measured["bending_mm"] == pytest.approx([0] * 3, abs=1e-9)
    assert measured["implausible_volume_percent"] == [0] * 3


def test_a_scan_of_something_else_stands_out():
    image = texture(0)
    measured = measure_quality(series(image, 2 * image, 1 - image, texture(1)), identities(4))
    assert measured["relative_agreement"][3] < 0.3
    assert min(measured["relative_agreement"][:3]) > 0.95
    measured = measure_quality(series(image, 2 * image, texture(1)), identities(3))
    agreement = measured["agreement_percent"]
    others = [np.median(np.delete(agreement, k)) for k in range(3)]
    assert measured["relative_agreement"] == pytest.approx(agreement / np.array(others))


def acquire(image, factors):
    """Average blocks of ``factors`` voxels of 1.5 mm."""
    blocks = [(n // f, f) for n, f in zip(image.shape, factors)]
    volume = image.reshape([size for block in blocks for size in block]).mean(axis=(1, 3, 5))
    affine = np.diag([*(1.5 * f for f in factors), 1.0])
    affine[:3, 3] = [1.5 * (f - 1) / 2 for f in factors]
    return Frame(volume, affine, "scan")


@pytest.mark.parametrize(
    "sizes",
    [
        [(1, 1, 1), (4, 4, 4)],
        [(1, 1, 1), (1, 1, 4)],
        [(4, 1, 1), (1, 1, 4)],
        [(1, 1, 1), (1, 1, 1), (4, 4, 4)],
        [(1, 1, 1), (4, 4, 4), (1, 4, 1)],
    ],
)
@pytest.mark.parametrize("home", [0, -1])
def test_scans_are_compared_at_the_resolution_that_they_share(sizes, home):
    def scene(seed):  # large and small structures, as in anatomy
        noise = np.random.default_rng(seed).standard_normal((48, 44, 40))
        coarse, fine = (gaussian_filter(noise, sigma) for sigma in (4, 1))
        return (coarse / coarse.std() + fine / fine.std()).astype(np.float32)

    good = [acquire(scene(0) * (1 + k), factors) for k, factors in enumerate(sizes)]
    wrong = [*good[:-1], acquire(scene(1), sizes[-1])]
    good, wrong = (measure_quality(Series(tuple(frames)), identities(len(frames)), home) for frames in (good, wrong))
    assert min(good["agreement_percent"]) > 60 and wrong["agreement_percent"][-1] < 30


def test_an_oblique_voxel_counts_by_its_extent_along_each_axis():
    turn = np.array([[1, 0, 0], [0, np.sqrt(0.75), -0.5], [0, 0.5, np.sqrt(0.75)]])  # by 30 degrees
    affine = np.eye(4)
    affine[:3, :3] = turn * [1, 2, 6]
    thick, cube = Frame(texture(0), affine, "thick"), Frame(texture(0), np.eye(4), "cube")
    grid, resolution = quality._coarse_grids([thick, cube], 1)
    middle, largest = np.hypot(2 * np.sqrt(0.75), 6 / 2), np.hypot(2 / 2, 6 * np.sqrt(0.75))
    assert grid.spacing_mm.tolist() == pytest.approx([middle] * 3)
    assert resolution.spacing_mm.tolist() == pytest.approx([middle, middle, largest])
    alone = quality._coarse_grids([thick, thick], 0)[1]
    assert alone.spacing_mm.tolist() == pytest.approx([2, 2, 6])


def test_noise_is_estimated_by_its_standard_deviation():
    noise = 0.1 * torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    assert quality._noise(noise) == pytest.approx(0.1, rel=0.05)


def test_each_of_many_scans_is_measured_once_beside_others_of_the_whole_series(monkeypatch):
    image = texture(0)
    scans = series(*[(1 + 0.1 * k) * image for k in range(6)], texture(1))
    transforms = [*identities(3), shift(9.0), *identities(3)]
    whole = measure_quality(scans, transforms)
    monkeypatch.setattr(quality, "QUALITY_SCANS", 4)  # 0, 2, 4 and 6, and 1, 3 and 5
    groups = measure_quality(scans, transforms)
    assert whole.keys() >= groups.keys() >= {"nmi_gain", "agreement_percent", "overlap_percent", "bending_mm"}
    for name in ("overlap_percent", "bending_mm", "implausible_volume_percent"):
        assert groups[name] == pytest.approx(whole[name], abs=1e-6)
    assert np.argmin(groups["relative_agreement"]) == 6 and min(groups["relative_agreement"][:3]) > 0.9
    parts = [measure_quality(Series(scans.frames[n::2]), transforms[n::2])["nmi_gain"] for n in (0, 1)]
    assert groups["nmi_gain"] == pytest.approx(sum(parts) / 2)
    gains = iter((0.25, np.nan, np.nan, np.nan))  # without a common field of view there is none
    monkeypatch.setattr(quality, "_measured", lambda *_: {"nmi_gain": next(gains)})
    assert measure_quality(scans, transforms)["nmi_gain"] == 0.25
    assert np.isnan(measure_quality(scans, transforms)["nmi_gain"])


def test_a_registration_is_compared_with_none():
    image = texture(0)
    shifted = np.roll(image, 3, axis=1)  # the second axis runs to the left: by -4.5 mm
    assert min(measure_quality(series(image, shifted), [*identities(1), shift(-4.5)])["agreement_gain_percent"]) > 40
    assert max(measure_quality(series(image, image), [*identities(1), shift(-4.5)])["agreement_gain_percent"]) < -40


def test_voxels_outside_the_field_of_view_do_not_overlap():
    measured = measure_quality(series(texture(0), texture(0)), [*identities(1), shift(9.0)])
    assert measured["overlap_percent"] == pytest.approx([100, 75])  # 9 of 36 mm
    apart = measure_quality(series(texture(0), texture(0)), [*identities(1), shift(40.0)])
    assert np.isnan(apart["nmi_gain"]) and apart["compared_percent"][0] == 0


def test_structure_is_compared_where_two_scans_were_measured_and_are_not_constant():
    image = texture(0)
    left, right = np.zeros(SIZE, dtype=bool), np.zeros(SIZE, dtype=bool)
    left[:7], right[14:] = True, True

    def measured(*valid):
        scans = [replace(frame, valid=mask) for frame, mask in zip(series(*[image] * len(valid)).frames, valid)]
        values = measure_quality(Series(tuple(scans)), identities(len(valid)))
        return values["compared_percent"], values["overlap_percent"]

    assert measured(None, left) == (pytest.approx([25, 25], abs=5), [100, 25])  # 7 of 28 slices
    assert measured(None, None, left, None) == (pytest.approx([100, 100, 25, 100], abs=5), [100, 100, 25, 100])
    assert measured(left, right) == ([0, 0], pytest.approx([100 / 3, 200 / 3]))
    assert measured(right, right, left)[0] == pytest.approx([200 / 3, 200 / 3, 0], abs=5)

    masked = np.where(left, image - image.min(), 0)
    values = measure_quality(series(image, image, masked), identities(3))
    assert (
        values["compared_percent"] == pytest.approx([100, 100, 30], abs=10) and values["overlap_percent"] == [100] * 3
    )
    noise = np.random.default_rng(1).standard_normal(SIZE)
    assert np.isnan(measure_quality(series(noise, 2 * noise), identities(2))["compared_percent"]).all()
    assert measure_quality(series(image, image), [shift(90.0)] * 2)["overlap_percent"] == [0, 0]


def test_an_affine_map_bends_nothing_and_a_wave_does():
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += 0.3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    wave = torch.zeros(3, *SIZE)
    wave[0] = 2 * torch.cos(torch.arange(SIZE[1]) * 2 * np.pi / 11)[None, :, None]  # voxels of 1.5 mm
    transforms = [AffineTransform(matrix), DenseTransform(wave, -wave, GRID)]
    flat, bent = measure_quality(series(texture(0), texture(0)), transforms)["bending_mm"]
    assert flat == pytest.approx(0, abs=1e-9)
    assert bent == pytest.approx(3, rel=0.15)  # an affine map fits a share of the wave


def test_volumes_beyond_half_and_twice_are_implausible():
    maps = [torch.diag(torch.tensor([factor, 1.0, 1.0, 1.0])) for factor in (1.9, 2.1, 0.55, 0.45)]
    measured = measure_quality(series(*[texture(0)] * 4), [AffineTransform(m) for m in maps])
    assert measured["implausible_volume_percent"] == [0, 100, 0, 100]


def test_curves_that_registration_makes_rougher():
    def ramp(k):
        return 1 + k * 0.1 + texture(0)

    image = series(*map(ramp, range(4)))
    assert "curve_roughness_ratio" not in measure_quality(series(ramp(0), ramp(1), ramp(2)), identities(3))
    jumping = [*identities(1), shift(3.0), *identities(1), shift(3.0)]
    assert measure_quality(image, jumping)["curve_roughness_ratio"] > 5
    shaken = series(*(np.roll(ramp(k), k % 2 * 2, axis=1) for k in range(4)))
    assert (
        measure_quality(shaken, [*identities(1), shift(-3.0), *identities(1), shift(-3.0)])["curve_roughness_ratio"]
        < 0.5
    )


def test_a_lesion_that_shrinks_as_it_enhances():
    grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij")).astype(np.float32)
    away = torch.from_numpy(grid) - torch.tensor([14.0, 12.0, 10.0]).view(3, 1, 1, 1)
    radius = away.norm(dim=0)
    image = 0.2 + 0.02 * texture(0) / texture(0).std()
    lesion = (radius < 4.5).numpy()
    # Inside, lengths shrink to 0.9 and volumes to 0.73; around it they shrink less, and farther out there is no change.
    squeeze = -0.1 * away * torch.exp(-((radius / 7) ** 8))
    scans, transforms = series(image, image + lesion), [*identities(1), DenseTransform(squeeze, -squeeze, GRID)]
    measured = measure_quality(scans, transforms)["region_volume_change_percent"]
    assert measured[0] == 0 and 10 < measured[1] < 27
    assert measure_quality(scans, identities(2))["region_volume_change_percent"] == [0, 0]
    shared = measure_quality(scans, transforms[1:] * 2)["region_volume_change_percent"]
    assert shared == pytest.approx([0, 0], abs=1e-4)
    assert "region_volume_change_percent" not in measure_quality(series(image, image), identities(2))


def test_intensities_of_any_unit_give_the_same_numbers():
    volumes = [texture(0), 2 * texture(0) + 0.3 * texture(1), 1 - texture(0), texture(2)]
    moved = [shift(1.5), *identities(3)]
    expected = measure_quality(series(*volumes), moved)
    for unit in (1e-12, 1e9):
        measured = measure_quality(series(*(unit * v for v in volumes)), moved)
        assert measured.keys() == expected.keys()
        for name, value in expected.items():
            assert measured[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_the_inside_of_a_small_masked_organ_counts():
    def organ(seed):  # 1 % of the voxels
        return np.pad(1 + 2 * texture(seed)[:20, :20, :20], 36)

    same, other = (measure_quality(series(organ(0), organ(seed)), identities(2)) for seed in (0, 1))
    assert min(same["agreement_percent"]) > 75 and max(other["agreement_percent"]) < 65


def test_structure_beside_an_implant_is_hidden():
    plain, bright = texture(0), texture(0)
    bright[12:17, 10:15, 8:13] = 30 * bright.max()  # 0.9 % of the voxels
    bright[12:17, 10:15, 13:18] = 30 * bright.max()
    hidden = measure_quality(series(plain, bright), identities(2))["hidden_structure_percent"]
    assert hidden[0] < 25 and hidden[1] > 80


def test_structure_is_not_hidden_by_where_a_header_puts_the_scan():
    """By its header, only an edge of the bright third of the second scan lies in the field of view of the first."""
    bright = np.where(np.arange(SIZE[0])[:, None, None] < 20, 1, 30) * (1 + texture(0))
    offset_mm = AFFINE[:3, :3] @ (7, 0, 0)
    elsewhere, there = AFFINE.copy(), torch.eye(4, dtype=torch.float64)
    elsewhere[:3, 3] += offset_mm
    there[:3, 3] = torch.from_numpy(offset_mm)
    frames = Frame(bright.astype(np.float32), AFFINE, "t0"), Frame(bright.astype(np.float32), elsewhere, "t1")
    hidden = measure_quality(Series(frames), [*identities(1), AffineTransform(there)])["hidden_structure_percent"]
    assert hidden[0] < 25 and hidden[1] == pytest.approx(hidden[0], abs=5)  # 86 if the headers are followed
