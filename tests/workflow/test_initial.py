import nibabel
import numpy as np
import pytest
import torch
from scipy.linalg import logm
from scipy.ndimage import gaussian_filter

from groupmorph_monai.data import Series, make_phantom
from groupmorph_monai.data.preprocessing.resampling import resample
from groupmorph_monai.data.series import Frame
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform
from groupmorph_monai.workflow import AlignInitiald, affine_alignment, affine_scan
from groupmorph_monai.workflow.affine_alignment import (
    CLEAR_CONFIDENCE,
    LEAST_CONFIDENCE,
    AffineAlignment,
    AffineSchedule,
    GroupAffine,
    _Group,
)
from groupmorph_monai.workflow.affine_scan import CoarseScan
from groupmorph_monai.workflow.affine_steps import affine_steps, regress


def rotation(degrees, axis=(0, 0, 1)):
    x, y, z = np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)).numpy()


def about(matrix, centre, shift):
    full = np.eye(4)
    full[:3, :3], full[:3, 3] = matrix, centre - matrix @ centre + shift
    return full


def shown(body, grid, motion):
    """Render a body on the grid of a scanner after its points x have moved to ``motion x``."""
    return resample(body, grid, AffineTransform(np.linalg.inv(motion)))[0]


@pytest.fixture(scope="module")
def displaced():
    """Make three frames of one body: unchanged, rotated and shifted by 12 mm, and with a header that shifts it by 40
    mm."""
    volume = make_phantom(5, size=(48, 44, 40), timepoints=2)["image"][0].numpy()
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    affine[:3, 3] = (-20, 10, 5)
    body = Frame(volume, affine, "t0")
    centre = body.grid.centre.numpy()
    turned = about(rotation(8), centre, [12, -6, 4])
    shifted = affine.copy()
    shifted[:3, 3] += (0, 40, 0)
    frames = (body, Frame(shown(body, body.grid, turned), affine, "t1"), Frame(volume, shifted, "t2"))
    return frames, np.stack([np.eye(4), turned, about(np.eye(3), centre, [0, 40, 0])]), centre


@pytest.fixture(scope="module")
def aligned(displaced):
    return {kind: GroupAffine(kind)(displaced[0]) for kind in ("rigid", "affine")}


def errors_mm(maps, truth, centre, first=0, half_mm=20):
    """Compute the mean errors of maps relative to that of the ``first`` scan, over points around a position in its
    space."""
    points = np.concatenate([(centre + np.random.default_rng(0).uniform(-1, 1, (50, 3)) * half_mm).T, np.ones((1, 50))])
    maps = np.asarray(maps) @ np.linalg.inv(np.asarray(maps)[first])
    return np.array([np.linalg.norm((m @ points - t @ points)[:3], axis=0).mean() for m, t in zip(maps, truth)])


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_known_maps_are_found(displaced, aligned, kind):
    _, truth, centre = displaced
    maps, confidence, polarity = aligned[kind]
    assert errors_mm(maps, truth, centre).max() < 0.5
    assert confidence.min() > LEAST_CONFIDENCE and polarity.tolist() == [1, 1, 1]
    mean = sum(logm(m.numpy()) for m in maps)
    np.testing.assert_allclose(mean, 0, atol=1e-8)
    if kind == "rigid":
        torch.testing.assert_close(maps[:, :3, :3] @ maps[:, :3, :3].mT, torch.eye(3).double().expand(3, 3, 3))


def stored(frame, axes, flips):
    """Store the same scan with its voxels in another order."""
    indices = np.eye(4)[:, [*axes, 3]]
    data = frame.data.transpose(axes)
    for axis in flips:
        data = np.flip(data, axis)
        turn = np.eye(4)
        turn[axis, axis], turn[axis, 3] = -1, data.shape[axis] - 1
        indices = indices @ turn
    return Frame(np.ascontiguousarray(data), frame.affine @ indices, frame.path)


def test_neither_storage_nor_order_changes_the_maps(displaced, aligned):
    frames, _, centre = displaced
    maps = aligned["affine"].maps
    turned = [stored(f, *how) for f, how in zip(frames, [((1, 2, 0), (0,)), ((0, 1, 2), (0, 1)), ((2, 0, 1), (1, 2))])]
    for frames_too, order in ((turned, [0, 1, 2]), (frames, [2, 0, 1])):
        other = GroupAffine("affine")([frames_too[k] for k in order]).maps
        points = torch.cat([torch.from_numpy(centre)[:, None] + 20 * torch.eye(3).double(), torch.ones(1, 3)])
        torch.testing.assert_close(other @ points, maps[order] @ points, atol=0.01, rtol=0)


def scattered(seed, timepoints=2, inverted=False):
    """Make scans of parts of a body that moves by up to 60 mm and 20 degrees, some of whose headers follow it."""
    rng = np.random.default_rng(seed)
    volumes = make_phantom(seed, (64, 60, 48), max(timepoints, 2), max_motion_voxels=0.2)["image"].numpy()
    affine = np.diag([6.0, 6.0, 7.5, 1.0])
    affine[:3, 3] = rng.uniform(-200, 0, 3)
    bodies = [Frame(volume, affine, "body") for volume in volumes]
    inner = affine.copy()
    inner[:3, 3] += affine[:3, :3] @ (10, 10, 8)
    grid = Grid((44, 40, 32), inner)
    centre, frames, truth = grid.centre.numpy(), [], []
    for k, body in enumerate(bodies[:timepoints]):
        way = rng.normal(size=3)
        shift = rng.uniform(20, 60) * way / np.linalg.norm(way)
        motion = about(rotation(rng.uniform(5, 20), rng.normal(size=3)), centre, shift) if k else np.eye(4)
        values = shown(body, grid, motion)
        if inverted and k == timepoints - 1:
            values = values.max() - values
        follows = bool(k) and rng.random() < 0.3
        truth.append(np.eye(4) if follows else motion)
        frames.append(Frame(values, np.linalg.inv(motion) @ inner if follows else inner, f"t{k}"))
    return frames, np.stack(truth), centre


CASES = [(0, 2, False), (3, 2, True), (5, 4, True)]
MORE = [pytest.param(seed, 2 + seed % 3, seed % 2 > 0, marks=pytest.mark.slow) for seed in range(10, 30)]


@pytest.mark.parametrize(("seed", "timepoints", "inverted"), [*CASES, *MORE])
def test_scans_far_apart_are_found(seed, timepoints, inverted):
    frames, truth, centre = scattered(seed, timepoints, inverted)
    maps, confidence, polarity = GroupAffine("affine")(frames)
    assert errors_mm(maps, truth, centre, half_mm=80).max() < 2
    assert confidence.min() > LEAST_CONFIDENCE
    if inverted:
        assert (polarity[:-1] == -polarity[-1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("inverted", [False, True])
def test_some_of_many_scans_are_aligned_jointly_and_the_others_with_these(inverted, monkeypatch):
    monkeypatch.setattr(affine_alignment, "_MOST_TOGETHER", 3)
    frames, truth, centre = scattered(5, 6, inverted)  # 0, 2 and 4 together
    maps, confidence, polarity = GroupAffine("affine")(frames)
    assert errors_mm(maps, truth, centre, half_mm=80).max() < 2
    assert confidence.min() > LEAST_CONFIDENCE
    assert (polarity[:-1] == (-1 if inverted else 1) * polarity[-1]).all()
    np.testing.assert_allclose(sum(logm(m.numpy()) for m in maps), 0, atol=1e-8)
    repeated = [Frame(frames[0].data + 0.01 * k, frames[0].affine, f"t{k}") for k in range(7)]
    maps, confidence, _ = GroupAffine("affine")(repeated)
    torch.testing.assert_close(maps, torch.eye(4).double().expand(7, 4, 4), atol=0, rtol=0)
    stranger = Frame(scattered(4)[0][0].data, frames[0].affine, "stranger")
    maps, confidence, _ = GroupAffine("affine")([*repeated[:1], stranger, *repeated[1:]])
    torch.testing.assert_close(maps, torch.eye(4).double().expand(8, 4, 4), atol=0, rtol=0)
    assert confidence[1] < LEAST_CONFIDENCE < confidence[[0, 2, 3]].min()


def test_scans_whose_alignment_fails_stay_in_place_and_are_flagged():
    frames, truth, centre = scattered(3, 2)
    stranger = scattered(4)[0][0]
    away = frames[0].affine.copy()
    away[:3, 3] += 30
    frames.append(Frame(stranger.data, away, "stranger"))
    maps, confidence, _ = GroupAffine("affine")(frames)
    assert errors_mm(maps[:2], truth, centre, half_mm=80).max() < 2
    assert confidence[:2].min() > LEAST_CONFIDENCE > confidence[2]
    maps, confidence, _ = GroupAffine("affine")(frames[1:])
    torch.testing.assert_close(maps, torch.eye(4).double().expand(2, 4, 4), atol=0, rtol=0)
    assert confidence.max() < LEAST_CONFIDENCE


def test_a_scan_that_the_steps_lose_keeps_its_header(displaced, monkeypatch):
    (body, turned, _), _, centre = displaced
    optimise = _Group.optimise

    def astray(group, maps, level, *arguments, **options):
        maps = optimise(group, maps, level, *arguments, **options)
        if level == 1:
            maps[1, :3, 3] += torch.tensor([30.0, -20.0, 40.0])
        return maps

    monkeypatch.setattr(_Group, "optimise", astray)
    maps, confidence, _ = GroupAffine("affine")([body, turned, body])
    assert errors_mm(maps, np.stack([np.eye(4)] * 3), centre).max() < 0.5
    assert confidence[1] < LEAST_CONFIDENCE < confidence[[0, 2]].min()


def test_a_block_of_voxels_lies_in_their_middle():
    """The mean of a ramp over a block is its value at the block's centre."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation(20, (1, 2, 3)) * (1.5, 2.0, 4.0), (-7, 30, 12)
    grid, slope = Grid((12, 9, 4), affine), torch.tensor([0.7, -1.1, 0.4]).double()
    fine = CoarseScan(torch.stack([grid.points() @ slope, torch.ones(12, 9, 4).double()]), grid)
    coarse = fine.coarsened(6.0)
    assert coarse.grid.shape == (3, 3, 4)
    torch.testing.assert_close(coarse.grid.spacing_mm, torch.tensor([6.0, 6.0, 4.0]).double())
    torch.testing.assert_close(coarse.content[0], coarse.grid.points() @ slope)


def test_only_the_nearby_part_of_a_much_larger_scan_is_searched():
    frames = [Frame(np.zeros((20,) * 3, np.float32), np.diag([mm] * 3 + [1.0]), "scan") for mm in (1.0, 1.0, 20.0)]
    group = affine_alignment._Group(GroupAffine(), frames, [None] * 3)
    maps = torch.eye(4, dtype=torch.float64).expand(3, 4, 4)
    grid = group.grid(maps, 0, [0, 1])
    own_grid, first = group.bounding_grid(2, maps[2], grid)
    assert np.prod(own_grid.shape) <= 96**3
    np.testing.assert_allclose(
        own_grid.affine[:3, 3], (grid.affine @ torch.tensor([*first.tolist(), 1.0]).double())[:3]
    )
    assert (first <= 0).all() and (first + torch.tensor(own_grid.shape) >= torch.tensor(grid.shape)).all()


def test_unmeasured_voxels_predict_nothing():
    volumes = torch.rand(3, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    volumes[1] = 1 - volumes[0]
    measured = torch.ones_like(volumes)
    measured[1, 6:] = 0
    changed = volumes.clone()
    changed[1, 6:] = 7.0
    for one, other in zip(regress(volumes, measured, [0, 1, 2]), regress(changed, measured, [0, 1, 2])):
        torch.testing.assert_close(one, other)
    value = regress(volumes, measured, [0, 1, 2]).value
    assert value[0, :4].min() > 1 and value[0, 9:].mean() < 0.2 and not value[1, 6:].any()
    assert regress(volumes, measured, [0, 1]).correlation[0, 1] < -0.9


@pytest.mark.parametrize("kind", ["rigid", "affine"])
def test_a_step_in_millimetres_turns_with_the_grid(kind):
    image = 5 * gaussian_filter(np.random.default_rng(0).random((12, 11, 10), np.float32), 2)
    volumes = torch.from_numpy(np.stack([image, np.roll(image, 1, axis=0)]))
    affine, turn = np.diag([1.5, 1.5, 1.5, 1]), torch.from_numpy(about(rotation(30, (1, 2, 3)), np.ones(3), [5, 6, 7]))
    upright, turned = (
        affine_steps(volumes, torch.ones_like(volumes), Grid(image.shape, a), kind, [1])[0]
        for a in (affine, turn.numpy() @ affine)
    )
    assert upright.abs().max() > 0.1
    torch.testing.assert_close(turned, turn @ upright @ turn.inverse())


def test_a_step_is_applied_before_the_map_of_a_turned_scan(displaced):
    """The scan's header is rotated by 90 degrees, and its map is off by 2 mm."""
    (body, *_), _, centre = displaced
    turn = about(rotation(90), centre, [0, 0, 0])
    frames = [body, Frame(body.data, turn @ body.affine, "turned")]
    start = torch.from_numpy(np.stack([np.eye(4), turn @ about(np.eye(3), centre, [2, 0, 0])]))
    group = _Group(GroupAffine("rigid", AffineSchedule(iterations=1)), frames, [None] * 2)
    maps = group.optimise(start, 1, "rigid", [0, 1], only=1)
    assert errors_mm(maps, [np.eye(4), turn], centre)[1] < 1


@pytest.mark.parametrize("number", [1, 2])
def test_voxels_outside_the_mask_do_not_count(displaced, number, tmp_path):
    """A bright table is static while the body above it moves."""
    frames, _, centre = displaced
    affine = frames[0].affine
    body = Frame(np.pad(frames[0].data, ((0, 0), (0, 24), (0, 0))), affine, "body")
    truth = about(np.eye(3), centre, [0, 0, 6])
    table = 3 * make_phantom(6, size=body.data.shape, timepoints=2)["image"][0].numpy()
    table_mask = np.indices(body.data.shape)[1] >= frames[0].data.shape[1]
    pair = tuple(Frame(np.where(table_mask, table, x), affine, "t") for x in (body.data, shown(body, body.grid, truth)))
    files = []
    for k in range(number):
        files.append(str(tmp_path / f"mask{k}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image((~table_mask).astype(np.uint8), affine), files[-1])
    item = {"image": Series(pair)}
    truths = [np.eye(4), truth]
    align = AlignInitiald(kind="rigid", reference=0)
    assert errors_mm(align({**item, "mask": files})["initial"], truths, centre)[1] < 0.1
    assert errors_mm(align(item)["initial"], truths, centre)[1] > 2


@pytest.mark.parametrize(("radius_mm", "used"), [(6, False), (15, False), (25, True)])
def test_a_mask_too_small_to_be_aligned_is_left_aside(displaced, radius_mm, used):
    frames, truth, centre = displaced
    body = frames[0]
    distance = np.linalg.norm(body.grid.points().numpy() - centre, axis=-1)
    masks = [Frame((distance < radius_mm).astype(np.float32), body.affine, "mask"), None, None]
    aligner = GroupAffine("rigid")
    assert (_Group(aligner, frames, masks).masked == 0) == used
    maps, confidence, _ = aligner(frames, masks)
    assert confidence.min() > CLEAR_CONFIDENCE and errors_mm(maps, truth, centre).max() < 0.5


@pytest.mark.parametrize(("reference", "masked"), [(None, 0), (0, 0), (2, 2)])
def test_one_mask_is_drawn_on_the_reference(displaced, reference, masked, monkeypatch, tmp_path):
    frames, drawn_masks = displaced[0], []

    def align(frames, masks):
        drawn_masks.extend(masks)
        return AffineAlignment(torch.eye(4).double().repeat(3, 1, 1), torch.ones(3), torch.ones(3))

    monkeypatch.setattr("groupmorph_monai.workflow.initial.GroupAffine", lambda *settings, **options: align)
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    AlignInitiald(reference=reference)({"image": Series(frames), "mask": str(tmp_path / "mask.nii.gz")})
    assert [k for k, mask in enumerate(drawn_masks) if mask is not None] == [masked]


def test_another_reference_stays(displaced):
    frames, truth, centre = displaced
    item = AlignInitiald(kind="rigid", reference=1)({"image": Series(frames)})
    assert torch.equal(item["initial"][1], torch.eye(4).double())
    mapped = truth[1][:3, :3] @ centre + truth[1][:3, 3]
    assert errors_mm(item["initial"], truth @ np.linalg.inv(truth[1]), mapped, first=1).max() < 0.5
    assert item["initial_confidence"].shape == item["polarity"].shape == (3,)


@pytest.mark.parametrize("reference", [None, 1])
def test_an_aligned_series_stays_where_its_headers_put_it(displaced, reference):
    body = displaced[0][0]
    rng = np.random.default_rng(0)
    noisy = [
        Frame((body.data + rng.normal(0, 20, body.data.shape)).astype(np.float32), body.affine, "t") for _ in range(3)
    ]
    maps = AlignInitiald(reference=reference)({"image": Series(tuple(noisy))})["initial"]
    assert torch.equal(maps, torch.eye(4).double().expand(3, 4, 4))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_the_common_space_lies_where_the_first_of_different_grids_does(displaced, aligned, order):
    frames = [displaced[0][k] for k in order]
    maps = AlignInitiald()({"image": Series(tuple(frames))})["initial"]
    centre = torch.cat([frames[0].grid.centre, torch.ones(1)])
    torch.testing.assert_close(maps[0] @ centre, centre)
    common = torch.linalg.inv(aligned["affine"].maps[list(order)]) @ maps  # one translation
    expected = torch.eye(4).double().repeat(3, 1, 1)
    expected[:, :3, 3] = common[0, :3, 3]
    torch.testing.assert_close(common, expected, atol=0.02, rtol=0)
    assert common[0, :3, 3].norm() > 5


def test_timepoints_whose_headers_agree_keep_one_map(displaced):
    frames, truth, centre = displaced
    maps = AlignInitiald(reference=0)({"image": Series((frames[0], frames[0], frames[1]))})["initial"]
    assert torch.equal(maps[1], torch.eye(4).double())
    assert errors_mm(maps, truth[[0, 0, 1]], centre)[2] < 0.5


def test_none_adds_nothing_and_another_kind_is_refused(displaced):
    series = Series(displaced[0])
    assert AlignInitiald(kind="none")({"image": series}) == {"image": series}
    with pytest.raises(InputError, match="initial_alignment: expected one of affine, rigid or none, got 'elastic'"):
        AlignInitiald(kind="elastic")


def test_grids_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(affine_scan, "available_memory_gb", lambda: 0.5)
    frames = [Frame(np.random.default_rng(k).random((8, 8, 4), np.float32), np.eye(4), f"{k}") for k in range(2)]
    with pytest.raises(
        InputError, match=r"initial_alignment_voxels: .* 0.5 GB of memory, got \[24, 128\], .* 0.7\d* GB"
    ):
        GroupAffine(schedule=AffineSchedule((24, 128)))(frames)
