import pytest
import torch
from scipy.ndimage import binary_erosion

from groupmorph_monai.data import MakePhantomd, make_thorax, phantom_items
from groupmorph_monai.data.phantoms.branching import FAR_MM, Tree, grow_tree, tube_depths_mm
from groupmorph_monai.data.phantoms.chest import Breath, Cavity
from groupmorph_monai.data.phantoms.phantom import follow
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.transforms import interpolate, jacobian_determinant

SIZE = (72, 72, 56)
OUTSIDE, CAVITY, LUNG = 0, 1, 2


@pytest.fixture(scope="module")
def thorax():
    """Make a thorax at the end of inspiration and of expiration, with voxels of 3.7 x 3.7 x 4.5 mm."""
    return make_thorax(4, SIZE, timepoints=2, noise_hu=0)


@pytest.fixture(scope="module")
def breaths():
    rng = torch.Generator().manual_seed(2)
    return Breath.draw_phases(rng, Cavity.draw(rng), 6, 25.0)


@pytest.fixture
def points():
    """Draw points in the whole field of view, ``(3, 500)`` mm."""
    rng = torch.Generator().manual_seed(3)
    half_mm = torch.tensor([[130.0], [130.0], [125.0]], dtype=torch.float64)
    return (2 * torch.rand(3, 500, generator=rng, dtype=torch.float64) - 1) * half_mm


def at(volume, points):
    """Sample ``(*S)`` or ``(C, *S)`` at voxel coordinates ``(P, 3)``: ``(P,)`` or ``(P, C)``."""
    values = interpolate(volume.float().view(-1, *volume.shape[-3:]), points)
    return values[:, 0] if volume.dim() == 3 else values


def deep_in(regions, region):
    """Mark voxels that are two voxels or more away from all other regions."""
    return torch.from_numpy(binary_erosion((regions == region).numpy(), iterations=2))


# Ribs, vessels and textures are finer than these voxels, and the wall moves little: there, interpolation errors
# dominate.
@pytest.mark.parametrize(("region", "most"), [(OUTSIDE, 0.65), (CAVITY, 0.15), (LUNG, 0.35)])
def test_the_same_tissue_lies_where_the_true_motion_says(thorax, region, most):
    first, last = thorax["image"] + 1000
    ratios = jacobian_determinant(thorax["motion"]) if region == LUNG else torch.ones_like(thorax["image"])
    places = (deep_in(thorax["regions"][0], region) & (first > 20)).nonzero().float()  # air has enough voxels
    template = places + at(thorax["motion"][0], places)
    mapped = follow(thorax["motion"][1], template)
    kept = (mapped > 1).all(dim=1) & (mapped < torch.tensor(SIZE) - 2).all(dim=1)
    kept &= at(deep_in(thorax["regions"][1], region), mapped) == 1
    assert kept.float().mean() > 0.5
    places, mapped = places[kept], mapped[kept]
    before, after = at(first / ratios[0], places), at(last / ratios[1], mapped)
    apart, unmoved = (before - after).abs(), (before - at(last / ratios[1], places)).abs()
    assert apart.mean() < most * unmoved.mean()


def test_landmarks_are_forks_that_follow_the_motion(thorax):
    landmarks = thorax["landmarks"]
    assert landmarks.shape == (2, 75, 3)
    first, last = [p + at(u, p) for p, u in zip(landmarks, thorax["motion"])]
    torch.testing.assert_close(first, last, atol=0.02, rtol=0)
    apart_mm = ((landmarks[1] - landmarks[0]) * thorax["affine"].diagonal()[:3]).norm(dim=1)
    assert 3 < apart_mm.mean() < 20
    for image, regions, points in zip(thorax["image"], thorax["regions"], landmarks):
        assert at(regions, points).mean() > 1.8
        assert at(image, points).mean() > image[regions == LUNG].mean() + 150


def test_the_lungs_mass_stays_and_their_volume_falls(thorax):
    masses = [(image + 1000)[regions == LUNG].sum() for image, regions in zip(thorax["image"], thorax["regions"])]
    volumes = [(regions == LUNG).sum() for regions in thorax["regions"]]
    assert volumes[1] < 0.93 * volumes[0]
    # The volume falls by 11 %; the tolerance is for partial voxels at the border.
    assert masses[1] / masses[0] == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_the_mass_is_kept_better_in_smaller_voxels():
    thorax = make_thorax(4, (128, 128, 96), timepoints=2, noise_hu=0)
    first, last = [(i + 1000)[r == LUNG].sum() for i, r in zip(thorax["image"], thorax["regions"])]
    assert last / first == pytest.approx(1, abs=0.006)


def test_motion_has_an_inverse_in_every_region_and_jumps_between_them(thorax):
    determinant = jacobian_determinant(thorax["motion"])
    for region in (OUTSIDE, CAVITY, LUNG):
        for k in range(2):
            inside = determinant[k][deep_in(thorax["regions"][k], region)]
            assert 0.7 < inside.min() and inside.max() < 1.5
    up_mm = thorax["motion"][1, 2] * thorax["affine"][2, 2]
    border = (thorax["regions"][1, 1:] == LUNG) & (thorax["regions"][1, :-1] == OUTSIDE)
    assert up_mm.diff(dim=0)[border].abs().max() > 8


def test_hounsfield_units_are_those_of_a_chest(thorax):
    image, regions = thorax["image"][0], thorax["regions"][0]
    assert image[:, 0].median() == pytest.approx(-1000, abs=5)
    assert -900 < image[regions == LUNG].median() < -700
    assert 0 < image[regions == CAVITY].median() < 80
    assert 400 < image[regions == OUTSIDE].max() < 1500
    assert at(image, torch.tensor([[35.5, 25.0, 27.0]])) > 80  # a vertebra
    assert thorax["lesion_mask"].flatten(1).any(dim=1).all()
    assert -200 < image[thorax["lesion_mask"][0] == 1].median() < 150


def test_a_seed_decides_everything():
    options = {"size": (24, 24, 20), "timepoints": 2}
    one, same, other = (make_thorax(seed, **options) for seed in (5, 5, 6))
    for key, value in one.items():
        assert torch.equal(value, same[key]), key
    assert (one["image"] - other["image"]).abs().mean() > 20
    assert (one["motion"] - other["motion"]).abs().mean() > 0.02


def test_noise_changes_the_image_alone():
    options = {"size": (24, 24, 20), "timepoints": 2}
    noisy, clean = (make_thorax(5, noise_hu=noise, **options) for noise in (20.0, 0.0))
    assert all(torch.equal(noisy[key], clean[key]) for key in clean if key != "image")
    tissue = clean["image"] > -900  # noise of air is clipped at -1024
    noise = noisy["image"] - clean["image"]
    assert noise[tissue].std() == pytest.approx(20, rel=0.05) and abs(noise[tissue].mean()) < 1
    beside, above = (noise.diff(dim=axis)[:, :20, :20, :16].std() for axis in (1, 3))
    assert beside < 0.95 * above  # neighbours in a slice are alike


def test_a_motion_that_would_crush_the_lungs_is_refused():
    with pytest.raises(InputError, match="max_motion_mm: expected 0 to 40, got 50"):
        make_thorax(1, (24, 24, 20), 2, max_motion_mm=50)


def test_contents_and_template_are_mapped_onto_each_other(breaths, points):
    for breath in breaths:
        torch.testing.assert_close(breath.contents(breath.from_template(points)), points, atol=1e-9, rtol=0)
        torch.testing.assert_close(breath.from_template(breath.contents(points)), points, atol=1e-9, rtol=0)


def test_contents_slide_along_the_wall_without_a_gap(breaths, points):
    cavity = breaths[0].cavity
    for breath in breaths:
        torch.testing.assert_close(cavity.radius(breath.contents(points)), cavity.radius(breath.wall(points)))


def test_the_volume_ratio_is_the_jacobian_s_determinant(breaths, points):
    expected = torch.func.vmap(torch.func.jacrev(breaths[-1].contents), in_dims=1)(points).det()
    torch.testing.assert_close(breaths[-1].volume_ratio(points), expected)
    assert expected.max() > 1.1
    assert torch.func.vmap(torch.func.jacrev(breaths[-1].wall), in_dims=1)(points).det().min() > 0.9


def test_no_two_phases_move_alike(breaths, points):
    displacements = [(breath.contents(points) - points)[2] for breath in breaths]
    alike = torch.corrcoef(torch.stack(displacements))
    assert alike.fill_diagonal_(0).max() < 1 - 1e-5
    assert all((-m).mean() > 0 for m in displacements)


def test_a_tree_supplies_every_part_and_keeps_murray_s_law():
    targets = torch.rand(400, 3, generator=torch.Generator().manual_seed(1)) * 100
    tree = grow_tree(torch.tensor([-10.0, 50, 50]), targets, 5.0, 10)
    leaves = ~(tree.ends[:, None] == tree.forks[None]).all(dim=2).any(dim=1)
    assert len(tree.forks) == leaves.sum() - 1 > 10
    assert tree.radii_mm[leaves].pow(3).sum() == pytest.approx(125, rel=1e-4)
    nearest = (targets[:, None] - tree.ends[leaves]).norm(dim=2).amin(dim=1)
    assert nearest.max() < 30


def test_depths_in_tubes_are_those_of_capsules():
    ends = torch.tensor([[8.0, 9, 10]]), torch.tensor([[20.0, 12, 10]])
    tree = Tree(*ends, torch.tensor([3.0]), torch.empty(0, 3), torch.empty(0))
    depths = tube_depths_mm(tree, (24, 20, 10), lambda p: p / 2, lambda v: v * 2, (2, 2, 2), 4.0)
    centres = torch.stack(torch.meshgrid(*[2.0 * torch.arange(n) for n in (24, 20, 10)], indexing="ij"), dim=-1)
    line = ends[0] + torch.linspace(0, 1, 2001)[:, None] * (ends[1] - ends[0])
    expected = 3 - torch.cdist(centres.view(-1, 3), line).amin(dim=1).view(24, 20, 10)
    far = depths == FAR_MM
    torch.testing.assert_close(depths[~far], expected[~far], atol=1e-3, rtol=1e-3)
    assert far.any() and expected[far].max() < -4


def test_items_are_loaded_with_landmarks_in_mm():
    options = {"size": (24, 24, 20), "timepoints": 2, "max_motion_mm": 12.0}
    (item,), made = phantom_items("thorax", [7], **options), make_thorax(7, **options)
    loaded = MakePhantomd()(item)
    assert torch.equal(loaded["image"].as_tensor(), made["image"]) and torch.equal(
        loaded["labels"], made["lesion_mask"]
    )
    torch.testing.assert_close(loaded["landmarks"], made["landmarks"] * made["affine"].diagonal()[:3].float())
