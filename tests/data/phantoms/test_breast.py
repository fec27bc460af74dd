import math

import pytest
import torch

from groupmorph_monai.data import MakePhantomd, make_breast, phantom_items
from groupmorph_monai.data.phantoms.breast_anatomy import BREAST_TISSUES
from groupmorph_monai.data.phantoms.breast_motion import BreastMotion
from groupmorph_monai.data.phantoms.phantom import LESION_KINETICS
from groupmorph_monai.space import DisplacementField, invert, warp
from groupmorph_monai.space.transforms import interpolate, jacobian_determinant

COARSE = {"size": (80, 68, 44), "spacing_mm": (4.0, 4.0, 4.0)}
# A block between the nipples with voxels as fine as its details.
BLOCK = {"size": (120, 176, 14), "spacing_mm": (1.5, 1.5, 1.5)}
TWO = (0.0, 90.0)
BEFORE_CONTRAST_S = (0.0, 10.0)


def tissue(series, *names):
    return torch.isin(series["tissue"], torch.tensor([BREAST_TISSUES.index(name) for name in names]).byte())


def fewer(inside):
    """Erode masks ``(K, *S)`` by one voxel."""
    outside = (~inside).float()[None]
    return torch.nn.functional.max_pool3d(outside, 3, stride=1, padding=1)[0] == 0


@pytest.fixture(scope="module")
def moving_breast():
    return make_breast(3, **COARSE, times_s=TWO, landmarks=200)


@pytest.fixture(scope="module")
def static_breast():
    return make_breast(4, **COARSE, max_motion_mm=1e-6, noise=0.0)


def test_a_seed_decides_everything(moving_breast):
    again, other = (make_breast(seed, **COARSE, times_s=TWO, landmarks=200) for seed in (3, 4))
    for key, value in moving_breast.items():
        assert torch.equal(value, again[key]), key
    assert (moving_breast["image"] - other["image"]).abs().mean() > 10
    assert (moving_breast["motion"] - other["motion"]).abs().mean() > 0.05


def test_landmarks_lie_at_one_place_of_the_template(moving_breast):
    places = [p + interpolate(u, p) for p, u in zip(moving_breast["landmarks"], moving_breast["motion"])]
    for place in places[1:]:
        torch.testing.assert_close(place, places[0], atol=1e-3, rtol=0)
    assert (4 * (moving_breast["landmarks"][1] - moving_breast["landmarks"][0])).norm(dim=1).mean() > 0.5
    assert len(moving_breast["landmarks"][0]) > 190


def test_another_grid_shows_the_same_patient():
    coarse = make_breast(3, **COARSE, times_s=TWO, landmarks=200)
    finer = make_breast(3, size=(110, 92, 58), spacing_mm=(2.9, 3.0, 3.1), times_s=TWO, landmarks=200)
    places = []
    for series in (coarse, finer):
        affine = series["affine"].float()
        places.append(series["landmarks"] @ affine[:3, :3].T + affine[:3, 3])
    assert places[0].shape == places[1].shape
    # Between voxels the field is interpolated.
    torch.testing.assert_close(*places, atol=0.05, rtol=0)
    assert (places[0][0] - places[0][1]).norm(dim=1).mean() > 0.5
    torch.testing.assert_close(coarse["lesion_volumes_mm3"], finer["lesion_volumes_mm3"])


def test_images_moved_back_by_the_truth_agree_but_for_the_heart():
    series = make_breast(5, **BLOCK, times_s=BEFORE_CONTRAST_S, max_motion_mm=4.0, noise=0.0)
    image, ddf = series["image"], invert(DisplacementField.on_voxels(series["motion"][None]), iterations=40)
    back = warp(image[None], ddf)[0]
    heart = warp(tissue(series, "heart").float()[None], ddf)[0].amax(dim=0) > 0
    breasts = warp(tissue(series, "gland", "vessel", "lesion", "fat").float()[None], ddf)[0].amin(dim=0) > 0.5
    middle = slice(4, -4)  # tissue that moves in from other slices cannot agree

    def apart(volumes, inside):
        return float((volumes[1:] - volumes[0]).abs()[..., middle][:, inside[..., middle]].mean())

    assert apart(back, breasts & ~heart) < 0.25 * apart(image, breasts & ~heart)
    assert apart(back, heart) > 0.5 * apart(image, heart)


def test_landmarks_lie_where_tissues_meet_in_every_scan():
    series = make_breast(6, size=(110, 96, 58), spacing_mm=(2.9, 2.9, 3.1), times_s=TWO, noise=0.0, landmarks=200)
    generator = torch.Generator().manual_seed(0)
    for volume, inside, points in zip(series["image"], tissue(series, "gland", "fat"), series["landmarks"]):
        steepness = torch.stack(torch.gradient(volume)).norm(dim=0)[None]
        voxels = inside[:, 60:].nonzero() + torch.tensor([0, 60, 0])
        anywhere = voxels[torch.randperm(len(voxels), generator=generator)[:2000]].float()
        assert interpolate(steepness, points).median() > 1.5 * interpolate(steepness, anywhere).median()


def test_a_lesion_has_its_volume_in_every_scan():
    series = make_breast(7, size=(130, 112, 60), spacing_mm=(2.4, 2.4, 2.5), times_s=(0, 90), noise=0.0)
    determinant = jacobian_determinant(series["motion"])
    for number, true in enumerate(series["lesion_volumes_mm3"], start=1):
        inside = series["lesion_mask"] == number
        volumes = (inside * determinant).flatten(1).sum(dim=1) * 2.4 * 2.4 * 2.5
        torch.testing.assert_close(volumes, true.expand(2), rtol=0.05, atol=0)
        assert 150 < true < 12000


@pytest.mark.parametrize("seed", [1, *[pytest.param(n, marks=pytest.mark.slow) for n in (2, 8)]])
def test_the_late_slope_of_each_curve_is_that_of_its_kind(seed):
    series = make_breast(seed, **COARSE, max_motion_mm=1e-6, noise=0.0)
    late = {}
    for number, kind in enumerate(LESION_KINETICS, start=1):
        inside = (series["lesion_mask"] == number).all(dim=0)
        curve = series["image"][:, inside].mean(dim=1)
        assert curve[2] > 1.5 * curve[0]
        late[kind] = float(curve[-1] / curve[2] - 1)
    # Kuhl et al. 1999: a change of a tenth after the early phase distinguishes the kinds of curves.
    assert late["persistent"] > 0.1 > abs(late["plateau"]) and late["washout"] < -0.1


def test_gland_takes_up_the_agent_and_fat_does_not(static_breast):
    first, last = static_breast["image"][0], static_breast["image"][-1]
    fat = fewer(tissue(static_breast, "fat"))[0]
    gland = fewer(tissue(static_breast, "gland"))[0]
    assert fat.sum() > 500 and gland.sum() > 200
    assert ((last / first - 1)[fat].abs() < 1e-3).float().mean() > 0.75  # the others hold a ligament
    rise = (last / first - 1)[gland]
    assert rise.min() > 0.03 and rise.std() > 0.02  # more in some regions than in others
    assert (static_breast["image"][1] / first)[
        fewer(tissue(static_breast, "heart"))[:2].all(dim=0)
    ].max() > 2.5  # blood


@pytest.mark.parametrize("seed", range(4))
def test_the_motion_is_invertible_and_within_its_bound(seed):
    rng = torch.Generator().manual_seed(seed)
    centres, radii = torch.tensor([[-78.0, 38, 5], [78, 38, 5]]), torch.tensor([[64.0, 82, 72]]).expand(2, 3)
    motion = BreastMotion(rng, (0, 90, 150, 210), centres, radii, 25.0)
    axes = torch.meshgrid(*[torch.arange(-150.0, 151, 4)] * 3, indexing="ij")
    points = torch.stack(axes)
    within = (((points[:, None] - centres.T[:, :, None, None, None]) / radii[0].view(3, 1, 1, 1, 1)) ** 2).sum(0) < 1
    longest = 0.0
    for k in range(4):
        field = motion(points, k)
        assert jacobian_determinant(field[None] / 4).min() > 0.1
        longest = max(longest, float(field.norm(dim=0)[within.any(dim=0)].max()))
    assert 8 < longest < 26


def test_the_course_is_that_of_a_patient():
    """Scans hardly move before and after the sudden motion, and far between the two."""
    centres, radii = torch.tensor([[-78.0, 38, 5], [78, 38, 5]]), torch.tensor([[64.0, 82, 72]]).expand(2, 3)
    ratios = []
    for seed in range(5):
        motion = BreastMotion(torch.Generator().manual_seed(seed), range(0, 300, 30), centres, radii, 8.0)
        steps = motion.shift.diff(dim=0).norm(dim=1).sort().values
        ratios.append(float(steps[-1] / steps.median()))
    assert sorted(ratios)[2] > 2


def test_the_heart_beats_while_the_patient_lies_still(static_breast):
    heart = tissue(static_breast, "heart")
    changed = heart[1:] ^ heart[:1]
    assert changed.flatten(1).sum(dim=1).min() > 0.05 * heart[0].sum()
    unaffected = ~tissue(static_breast, "heart", "lung", "organ").any(dim=0)
    assert torch.equal(static_breast["tissue"][:, unaffected], static_breast["tissue"][:1, unaffected].expand(6, -1))


def test_noise_is_rician_and_the_coil_sees_the_breasts_best(moving_breast, static_breast):
    air = moving_breast["image"][:, :4, :4]
    assert float(air.mean() / air.std()) == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.05)  # Rayleigh
    muscle = fewer(tissue(static_breast, "muscle"))[0]
    front, back = (
        static_breast["image"][0][:, rows][muscle[:, rows]].mean() for rows in (slice(38, None), slice(0, 16))
    )
    assert front > 2 * back


def test_more_lesions_than_there_is_room_for_are_refused():
    with pytest.raises(ValueError, match="lesions: expected a number that fits into the breasts, got 500"):
        make_breast(1, **COARSE, times_s=TWO, lesions=500)


def test_items_are_loaded_with_landmarks_in_mm_and_lesions(moving_breast):
    (item,) = phantom_items("breast", [3], **COARSE, times_s=TWO, landmarks=200)
    loaded, series = MakePhantomd()(item), moving_breast
    assert torch.equal(loaded["image"].as_tensor(), series["image"])
    assert torch.equal(loaded["labels"], series["lesion_mask"])
    middle = (torch.tensor(COARSE["size"]) - 1) / 2
    torch.testing.assert_close(loaded["landmarks"], 4 * (series["landmarks"] - middle), atol=1e-3, rtol=0)
