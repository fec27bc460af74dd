import numpy as np
import pytest
import torch

from groupmorph_monai.data import RandAffineMotiond, RandContrastd, RandIntervald, RandMotiond, RandTimepointsd


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
    draw, firsts = RandIntervald(("image", "times"), 2, 5).set_random_state(0), set()
    for _ in range(60):
        item = draw({"image": series, "times": 60 * torch.arange(8)})
        chosen = item["image"][:, 0, 0, 0].tolist()
        assert item["times"].tolist() == [60 * number for number in chosen]
        assert np.diff(chosen).tolist() == [1] * (len(chosen) - 1) and 2 <= len(chosen) <= 5
        firsts.add(chosen[0])
    assert {0, 6} <= firsts


def test_random_contrast_changes_timepoints_independently_without_motion():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 1, 4, 4, 4, generator=generator)
    volume = torch.nn.functional.interpolate(coarse, size=(20, 20, 20), mode="trilinear")[0]
    contrast = RandContrastd(prob=1.0, noise=0.0).set_random_state(1)
    varied = contrast({"image": volume.expand(3, -1, -1, -1)})["image"]
    assert (varied[0] - varied[1]).abs().mean() > 0.02
    assert varied.min() >= 0 and varied.max() <= 1
    again = RandContrastd(prob=1.0, noise=0.0).set_random_state(1)({"image": volume.expand(3, -1, -1, -1)})["image"]
    torch.testing.assert_close(again, varied, atol=0, rtol=0)
    # A constant image remains constant under the curve, so that only the smooth bias field varies.
    flat = torch.full((1, 20, 20, 20), 0.3)
    bias = RandContrastd(prob=1.0, noise=0.0).set_random_state(2)({"image": flat})["image"]
    assert bias.diff(dim=1).abs().max() < 0.1


def test_a_contrast_that_is_switched_off_leaves_every_bit():
    series = torch.rand(3, 6, 5, 4, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1
    off = RandContrastd(prob=0.0).set_random_state(0)
    assert all(torch.equal(off({"image": series})["image"], series) for _ in range(20))
    some, changed = RandContrastd(prob=0.3, curve_prob=0.0, bias=0.1, noise=0.01).set_random_state(0), 0
    for _ in range(100):
        changed += (some({"image": series})["image"] != series).flatten(1).any(dim=1).sum().item()
    assert changed / 300 == pytest.approx(0.3, abs=0.08)


def test_each_part_of_a_contrast_has_its_own_strength():
    series = torch.linspace(0.1, 0.6, 24).view(1, 1, 1, 24).expand(2, 20, 22, 24)

    def vary(**parts):
        parts = {"curve_prob": 0.0, "bias": 0.0, "noise": 0.0, **parts}
        return RandContrastd(prob=1.0, **parts).set_random_state(3)({"image": series})["image"]

    assert torch.equal(vary(), series)
    curve, bias, noise = vary(curve_prob=1.0), vary(bias=0.3), vary(noise=0.05)
    # The curve depends on the intensity alone, not on the position.
    assert curve.std(dim=(1, 2)).max() < 1e-6 and (curve - series).abs().mean() > 0.02
    ratio = (bias / series).log()
    second = ratio.diff(n=2, dim=1)
    assert (second - second.mean(dim=1, keepdim=True)).abs().max() < 1e-5  # quadratic along an axis
    assert 0.05 < ratio.abs().max() <= 6 * 0.3
    assert (noise - series).std(dim=(1, 2, 3)).max() <= 0.051 and (noise - series).mean().abs() < 1e-3


def test_random_motion_moves_timepoints_independently_smoothly_and_within_limits():
    # Images of their own coordinates show from where every voxel was sampled.
    size = (40, 36, 32)
    for axis, n in enumerate(size):
        line = torch.arange(float(n)).view([-1 if a == axis else 1 for a in range(3)]).expand(size)
        draw = RandMotiond(prob=1.0, motion_voxels=3.0, zoom=1.0).set_random_state(axis)
        warped = draw({"image": line.expand(4, *size)})["image"]
        motion = warped - line
        inside = motion[:, 4:-4, 4:-4, 4:-4]
        assert 0.3 < inside.abs().max() <= 3.0
        assert (inside[0] - inside[1]).abs().max() > 0.1
        assert all(inside.diff(dim=d).abs().max() <= 0.41 for d in (1, 2, 3))
        resized = RandMotiond(prob=1.0, motion_voxels=1e-6, zoom=2.0).set_random_state(axis)
        scales = resized({"image": line.expand(2, *size)})["image"].narrow(axis + 1, n // 2 - 2, 5).diff(dim=axis + 1)
        assert scales.std() < 1e-4 and 0.5 <= scales.mean() <= 2 and abs(scales.mean() - 1) > 0.05
    unchanged = RandMotiond(prob=0.0)({"image": line.expand(2, *size)})["image"]
    assert torch.equal(unchanged[0], line)


def test_affine_motion_is_independent_per_timepoint_and_reproducible():
    axis = torch.arange(32.0) - 15.5
    blob = torch.exp(-(axis.view(-1, 1, 1) ** 2 + axis.view(-1, 1) ** 2 + axis**2) / 18)
    series = blob.expand(3, -1, -1, -1)
    move = RandAffineMotiond(prob=1, rotation_radians=0.0, shift_voxels=4.0, scale=0.0)
    first = move.set_random_state(3)({"image": series})["image"]
    assert first.shape == series.shape and torch.equal(first, move.set_random_state(3)({"image": series})["image"])
    places = torch.stack([(first.sum(dim=[d for d in (1, 2, 3) if d != a]) * axis).sum(dim=1) for a in (1, 2, 3)])
    places = places / blob.sum()
    assert 0.5 < places.abs().max() < 4 and (places[:, 0] - places[:, 1]).abs().max() > 0.5
    assert torch.equal(RandAffineMotiond(prob=0)({"image": series})["image"], series)
