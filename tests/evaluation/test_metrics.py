import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from groupmorph_monai.data.phantoms.phantom import make_phantom
from groupmorph_monai.evaluation import metrics
from groupmorph_monai.space.field import DisplacementField, VelocityField
from groupmorph_monai.space.integrate import ScalingAndSquaring
from groupmorph_monai.space.lattice import Lattice
from groupmorph_monai.space.sampling import voxel_grid
from groupmorph_monai.space.transforms import ComposedTransform, jacobian_determinant
from groupmorph_monai.space.warping import invert, warp
from groupmorph_monai.workflow.registration import timepoint_transforms

SIZE = (9, 8, 7)
# Oblique, anisotropic, left-handed: 0.9 x 1.4 x 3 mm.
AFFINE = torch.tensor(
    [[-0.9 * 0.8, 1.4 * 0.6, 0, 12], [0.9 * 0.6, 1.4 * 0.8, 0, -5], [0, 0, 3, 40], [0, 0, 0, 1]], dtype=torch.float64
)


def linear_ddf(matrix: torch.Tensor, size=SIZE) -> torch.Tensor:
    """Compute the displacement ``(3, *size)`` of the map x -> c + matrix (x - c)."""
    grid = voxel_grid(size, matrix)
    centred = grid - (torch.tensor(size, dtype=matrix.dtype).view(3, 1, 1, 1) - 1) / 2
    return torch.einsum("ij,j...->i...", matrix - torch.eye(3, dtype=matrix.dtype), centred)


def in_mm(voxels: torch.Tensor) -> torch.Tensor:
    """Convert voxel coordinates ``(..., P, 3)`` to RAS mm."""
    return voxels.double() @ AFFINE[:3, :3].T + AFFINE[:3, 3]


def random_matrices(number: int, strength: float) -> torch.Tensor:
    noise = torch.randn(number, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.eye(3, dtype=torch.float64) + strength * noise


def on_voxels(ddf):
    """Make the field of displacements ``(K, 3, *S)`` on every voxel."""
    return DisplacementField.on_voxels(ddf[None])


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_rmse_equals_the_loop_over_pairs():
    images, mask = random_images(5, 4, 3, 6) * 40 + 1000, random_images(4, 3, 6) > 0.4
    for inside, m in ((images.flatten(1), None), (images[:, mask], mask)):
        pairs = [(inside[i] - inside[j]).square() for i, j in combinations(range(5), 2)]
        assert metrics.rmse(images, m) == pytest.approx(torch.stack(pairs).mean().sqrt().item(), rel=1e-12)
    assert metrics.rmse(images.float()) == pytest.approx(metrics.rmse(images), rel=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_nmi_equals_numpy_histogram2d(masked):
    images = random_images(3, 10, 9, 8)
    images[1:] = images[0] + 0.3 * images[1:] ** 2
    mask = random_images(10, 9, 8) > 0.5 if masked else None
    values = (images[:, mask] if masked else images.flatten(1)).numpy()
    limits = np.percentile(values, (0.1, 99.9), axis=1).T
    expected, values = [], np.clip(values, *limits.T[..., None])
    for i, j in combinations(range(3), 2):
        joint = np.histogram2d(values[i], values[j], bins=16, range=limits[[i, j]])[0]
        p = joint / joint.sum()
        h = [-(q[q > 0] * np.log(q[q > 0])).sum() for q in (p, p.sum(0), p.sum(1))]
        expected.append(2 * (h[1] + h[2] - h[0]) / (h[1] + h[2]))
    assert metrics.nmi(images, bins=16, mask=mask) == pytest.approx(np.mean(expected), abs=1e-12)


def test_nmi_is_one_for_relabelled_and_zero_for_independent_intensities():
    labels = torch.arange(64).view(4, 4, 4) % 8
    relabelled = (labels * 5 + 3) % 8
    assert metrics.nmi(torch.stack([labels, relabelled]), bins=8) == pytest.approx(1)
    independent = torch.arange(64).view(4, 4, 4) // 8
    assert metrics.nmi(torch.stack([labels, independent]), bins=8) == pytest.approx(0, abs=1e-12)
    assert metrics.nmi(torch.ones(2, 4, 4, 4)) == 0


def test_nmi_does_not_depend_on_the_scale_of_a_scan():
    images = random_images(1, 9, 9, 9) + 0.2 * random_images(3, 9, 9, 9)
    expected = metrics.nmi(images)
    images[1] *= 1000
    images[2] += 1e9
    assert metrics.nmi(images) == pytest.approx(expected, rel=1e-3) and expected > 0.1


def test_nan_in_images_is_refused_by_name():
    images = random_images(2, 4, 4, 4)
    images[1, 2, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        metrics.nmi(images)


def test_a_reflection_folds_everything_and_a_shear_nothing():
    reflection = linear_ddf(torch.diag(torch.tensor([1.0, -1.0, 1.0])))
    shear = linear_ddf(torch.tensor([[1.0, 0.9, 0.4], [0.0, 1.0, -2.0], [0.0, 0.0, 1.0]]))
    for measure in (metrics.folding_percent, metrics.non_diffeomorphic_volume_percent):
        assert measure(on_voxels(reflection[None])) == pytest.approx(100, rel=1e-6)
        assert measure(on_voxels(shear[None])) == 0
        assert measure(on_voxels(torch.stack([reflection, shear]))) == pytest.approx(50, rel=1e-6)


def test_steps_of_a_third_of_a_voxel_fold_where_all_components_take_them_together():
    """``det(I - a 1 1^T) = 1 - 3 a`` is 0 at a = 1/3, although no single difference is large."""
    for slope, expected in ((0.34, 100), (0.32, 0)):
        ddf = on_voxels(linear_ddf(torch.eye(3, dtype=torch.float64) - slope)[None])
        assert metrics.folding_percent(ddf) == pytest.approx(expected)
        # The inverted volume is 3 a - 1 times the original one.
        volume = metrics.non_diffeomorphic_volume_percent(ddf)
        assert volume == pytest.approx(expected * (3 * slope - 1), rel=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_voxel_pushed_past_its_neighbour_escapes_central_differences_only(axis, direction):
    ddf = torch.zeros(1, 3, *SIZE)
    ddf[0, axis, 4, 4, 3] = 1.5 * direction
    # Central differences give 1 - 0.75 at the neighbour. Of the ten tetrahedra in each of the four cells around the
    # edge
    # between them, two have that edge as a leg and become 1 - 1.5; the middle one becomes 2 - 1.5.
    assert metrics.folding_percent(on_voxels(ddf)) == 0
    folded = 0.5 * (4 * 2 * 0.5) / 6
    assert metrics.non_diffeomorphic_volume_percent(on_voxels(ddf)) == pytest.approx(
        100 * folded / (8 * 7 * 6), rel=1e-6
    )


def test_non_diffeomorphic_volume_equals_a_loop_over_cells_and_tetrahedra(monkeypatch):
    size = (4, 3, 5)
    ddf = 2 * random_images(2, 3, *size) - 1
    points = (voxel_grid(size, ddf) + ddf).numpy()
    corners = np.array(list(product((0, 1), repeat=3)))
    parity = corners.sum(axis=1) % 2
    middle = [corners[parity == p] for p in (0, 1)]
    tetrahedra = middle + [np.array([c, *[c ^ e for e in np.eye(3, dtype=int)]]) for c in corners]
    folded = 0.0
    for k, *cell in product(range(2), *[range(n - 1) for n in size]):
        for tetrahedron in tetrahedra:
            where = tetrahedron + cell
            at = points[k][:, where[:, 0], where[:, 1], where[:, 2]].T
            upright = np.sign(np.linalg.det((where[1:] - where[0]).astype(float)))
            folded += max(0.0, -upright * np.linalg.det(at[1:] - at[0]) / 6)
    expected = 100 * (folded / 2) / (2 * 3 * 2 * 4)
    assert expected > 1
    for slab_voxels in (1, 30, 2**18):
        monkeypatch.setattr(metrics, "_MOST_CELLS", slab_voxels)
        assert metrics.non_diffeomorphic_volume_percent(on_voxels(ddf)) == pytest.approx(expected, rel=1e-10)


def test_landmarks_of_linear_motion_meet_exactly_in_oblique_anisotropic_millimetres():
    matrices = random_matrices(4, 0.08)
    ddf = on_voxels(torch.stack([linear_ddf(m) for m in matrices]))
    inverse_ddf = on_voxels(torch.stack([linear_ddf(torch.linalg.inv(m)) for m in matrices]))
    centre = (torch.tensor(SIZE, dtype=torch.float64) - 1) / 2
    common = 3 * random_images(20, 3) - 1.5
    landmarks = in_mm(centre + torch.einsum("kij,pj->kpi", matrices, common))

    errors = metrics.landmark_errors_mm(landmarks, timepoint_transforms(ddf, inverse_ddf, AFFINE))
    world = landmarks.numpy()
    before = np.stack([np.linalg.norm(world[i] - world[j], axis=1) for i in range(4) for j in range(4) if i != j])
    assert errors["landmark_after_mm_mean"] == pytest.approx(0, abs=1e-9)
    assert errors["landmark_before_mm_mean"] == pytest.approx(before.mean(), rel=1e-9)
    assert errors["landmark_before_mm_sd"] == pytest.approx(before.std(), rel=1e-9)
    assert errors["landmark_before_mm_95"] == pytest.approx(np.percentile(before, 95), rel=1e-9)
    assert errors["landmark_before_mm_median"] == pytest.approx(np.median(before), rel=1e-9)
    assert before.mean() > 0.2


def test_landmarks_beyond_the_working_grid_follow_the_affine_map_exactly():
    """The landmarks are far outside, where a sampled affine map would have to be extrapolated."""
    initial = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    initial[:, :3, :3] = random_matrices(3, 0.1)
    initial[:, :3, 3] = torch.tensor([[0.0, 0, 0], [30, -10, 5], [-20, 15, 40]])
    zero = on_voxels(torch.zeros(3, 3, *SIZE, dtype=torch.float64))
    common = 200 * (random_images(10, 3) - 0.5)
    landmarks = torch.einsum("kij,pj->kpi", initial[:, :3, :3], common) + initial[:, None, :3, 3]
    distances = metrics.landmark_distances_mm(landmarks, timepoint_transforms(zero, zero, AFFINE, initial))
    assert (
        distances.max() < 1e-9
        and metrics.landmark_errors_mm(landmarks, [ComposedTransform()] * 3)["landmark_after_mm_mean"] > 20
    )


def test_a_missed_translation_is_its_length_and_the_pairs_are_ordered():
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    landmarks = torch.stack([random_images(5, 3) * 2 + 3] * 3)
    landmarks[1] += shift
    landmarks = in_mm(landmarks)
    ddf = torch.zeros(3, 3, *SIZE, dtype=torch.float64)
    ddf[2] += shift.view(3, 1, 1, 1)  # the correct motion, but of the wrong timepoint
    distances = metrics.landmark_distances_mm(landmarks, timepoint_transforms(on_voxels(ddf), on_voxels(-ddf), AFFINE))
    length = (AFFINE[:3, :3] @ shift).norm()
    # Pairs 01, 02, 10, 12, 20, 21.
    expected = length * torch.tensor([1, 1, 1, 2, 1, 2], dtype=torch.float64)
    torch.testing.assert_close(distances, expected[:, None].expand(6, 5))


def test_contracting_the_common_space_improves_no_landmark():
    landmarks = in_mm(4 + random_images(3, 6, 3) * 0.5)
    scaled = (linear_ddf(f * torch.eye(3, dtype=torch.float64)).expand(3, 3, *SIZE) for f in (4.0, 0.25))
    large, small = map(on_voxels, scaled)
    contracted = metrics.landmark_distances_mm(landmarks, timepoint_transforms(large, small, AFFINE))
    unregistered = metrics.landmark_distances_mm(landmarks, [ComposedTransform()] * 3)
    torch.testing.assert_close(contracted, unregistered)


def test_the_phantoms_own_motion_brings_its_landmarks_together():
    phantom = make_phantom(3, (32, 28, 24), timepoints=3, spacing_mm=(1, 1.5, 2), max_motion_voxels=3, landmarks=60)
    inverse_ddf = on_voxels(phantom["motion"])
    ddf = invert(inverse_ddf, iterations=40)
    image = phantom["image"]
    measured = metrics.similarity(image, warp(image[None], ddf)[0])
    landmarks = phantom["landmarks"] @ phantom["affine"][:3, :3].T.to(phantom["landmarks"])
    transforms = timepoint_transforms(ddf, inverse_ddf, phantom["affine"])
    measured |= metrics.accuracy(ddf, inverse_ddf, phantom["affine"], transforms, landmarks)
    assert measured["landmark_before_mm_mean"] > 1
    assert measured["landmark_after_mm_95"] < 0.05
    assert measured["inverse_consistency_mm"] < 0.05
    assert measured["non_diffeomorphic_volume_percent"] == measured["folding_percent"] == 0
    assert measured["rmse_after"] < measured["rmse_before"] and measured["nmi_after"] > measured["nmi_before"]
    lengths = (ddf.values[0] * torch.tensor([1, 1.5, 2]).view(3, 1, 1, 1)).norm(dim=1)
    assert measured["displacement_mean_mm"] == pytest.approx(lengths.mean().item(), rel=1e-5)
    assert measured["displacement_max_mm"] == pytest.approx(lengths.max().item(), rel=1e-5)
    assert all(type(value) is float for value in measured.values())


def test_monais_tensors_give_the_same_numbers():
    before, after, ddf = random_images(2, *SIZE), random_images(2, *SIZE) ** 2, random_images(2, 3, *SIZE)
    landmarks, covered = in_mm(random_images(2, 5, 3) * 5), random_images(*SIZE) > 0.3
    wrapped = [MetaTensor(x) for x in (before, after, ddf, -ddf)]
    assert metrics.similarity(*wrapped[:2], MetaTensor(covered)) == metrics.similarity(before, after, covered)
    theirs, ours = ([on_voxels(u) for u in pair] for pair in (wrapped[2:], (ddf, -ddf)))
    measured = metrics.accuracy(*theirs, AFFINE, timepoint_transforms(*theirs, AFFINE), MetaTensor(landmarks))
    assert measured == metrics.accuracy(*ours, AFFINE, timepoint_transforms(*ours, AFFINE), landmarks)


def test_only_what_every_scan_has_seen_is_compared():
    before, after = 50 * random_images(3, *SIZE), 50 * random_images(3, *SIZE) ** 2
    covered = random_images(*SIZE) > 0.4
    expected = metrics.similarity(before, after, covered)
    assert expected["rmse_before"] == metrics.rmse(before, covered) and expected["nmi_after"] == metrics.nmi(
        after, mask=covered
    )
    before[1, ~covered], after[2, ~covered] = 1e4, -1e4  # values outside the fields of view
    assert metrics.similarity(before, after, covered) == expected
    assert metrics.similarity(before, after) != expected
    nothing = metrics.similarity(before, after, torch.zeros(SIZE, dtype=torch.bool))
    assert nothing.keys() == expected.keys() and all(math.isnan(value) for value in nothing.values())


def test_large_volumes_are_compared_at_every_second_voxel(monkeypatch):
    before, after = 50 * random_images(3, *SIZE), 50 * random_images(3, *SIZE) ** 2
    covered = random_images(*SIZE) > 0.4
    thinned = [x[..., ::2, ::2, ::2] for x in (before, after, covered)]
    expected = metrics.similarity(*thinned)
    monkeypatch.setattr(metrics, "_MEAN_VOXELS", before[0].numel() // 8)
    assert metrics.similarity(before, after, covered) == expected


@pytest.mark.parametrize("every", [1, 2])
def test_the_displacement_is_that_of_the_whole_map_and_folds_are_those_of_the_deformation(monkeypatch, every):
    """An affine map that enlarges everything neither folds nor makes an inverse inconsistent."""
    monkeypatch.setattr(metrics, "_MEAN_VOXELS", math.prod(SIZE) / every**3)
    initial = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    initial[1, :3, :3] *= 1.5
    initial[1, :3, 3] = torch.tensor([3.0, -4.0, 12.0])
    ddf = torch.zeros(2, 3, *SIZE, dtype=torch.float64)
    field = on_voxels(ddf)
    measured = metrics.accuracy(field, field, AFFINE, timepoint_transforms(field, field, AFFINE, initial))
    places = in_mm(voxel_grid(SIZE, ddf)[:, ::every, ::every, ::every].flatten(1).T)
    lengths = (0.5 * places + initial[1, :3, 3]).norm(dim=1)
    assert measured["displacement_max_mm"] == pytest.approx(lengths.max().item())
    assert measured["displacement_mean_mm"] == pytest.approx(lengths.mean().item() / 2)
    assert (
        measured["folding_percent"]
        == measured["non_diffeomorphic_volume_percent"]
        == measured["inverse_consistency_mm"]
        == 0
    )


def test_exponentials_of_opposite_velocities_undo_one_another():
    grid = voxel_grid((24, 24, 24), torch.empty(0, dtype=torch.float64))
    v = VelocityField.on_voxels(
        torch.stack([torch.sin(grid[(d + 1) % 3] / 23 * math.pi) for d in range(3)])[None, None]
    )
    exp = ScalingAndSquaring(7)
    ddf, inverse_ddf = exp(v), exp(-v)
    eye = torch.eye(4)
    assert metrics.inverse_consistency_mm(ddf, inverse_ddf, eye) < 5e-3
    assert metrics.inverse_consistency_mm(ddf, -ddf, eye) > 0.05


def test_inverse_consistency_of_translations_counts_only_what_stays_inside():
    shift = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)
    ddf = on_voxels(shift.view(1, 3, 1, 1, 1).expand(1, 3, *SIZE))
    length = (AFFINE[:3, :3] @ shift).norm().item()
    assert metrics.inverse_consistency_mm(ddf, ddf - ddf, AFFINE) == pytest.approx(length)
    assert metrics.inverse_consistency_mm(ddf, -ddf, AFFINE) == pytest.approx(0, abs=1e-12)
    broken = -ddf
    broken.values[..., 3:6, :, 2:4] = 0  # 3 x 8 x 2 of the 7 x 8 x 6 places where voxels arrive
    assert metrics.inverse_consistency_mm(ddf, broken, AFFINE) == pytest.approx(length * 6 / 42)
    assert math.isnan(metrics.inverse_consistency_mm(ddf.with_values(100 + ddf.values), -ddf, AFFINE))


def test_inverses_lie_on_the_grid_of_their_fields():
    """Lattices of equal shape may belong to different grids, and lattices of one grid may differ in shape."""
    nodes = 0.2 * random_images(1, 2, 3, 3, 3, 3)
    field = DisplacementField(nodes, Lattice((12, 11, 10), 4))
    inverse = -field
    for other in (DisplacementField(-nodes, Lattice((12, 11, 9), 4)), inverse.timepoints(slice(0, 1))):
        with pytest.raises(ValueError, match="inverse_ddf"):
            metrics.inverse_consistency_mm(field, other, AFFINE)
    error = metrics.inverse_consistency_mm(field, inverse, AFFINE)
    assert metrics.inverse_consistency_mm(field, inverse.at(1), AFFINE) == pytest.approx(error, rel=1e-9)


def test_a_thinned_grid_holds_the_voxels_that_it_stands_for(monkeypatch):
    """A linear map and its inverse cancel at every voxel, but only at corresponding points."""
    matrix = 0.8 * torch.linalg.matrix_exp(torch.tensor([[0, 0.1, 0], [-0.1, 0, 0.05], [0, -0.05, 0]]).double())
    fields = [on_voxels(linear_ddf(m)[None]) for m in (matrix, torch.linalg.inv(matrix))]
    for most in (2**20, 60, 20):
        monkeypatch.setattr(metrics, "_MEAN_VOXELS", most)
        assert metrics.inverse_consistency_mm(*fields, AFFINE) < 1e-9


def test_the_distance_of_two_labels_is_that_of_their_places_in_mm():
    """Each label is one voxel, on a grid whose first axis is parallel to the second world axis."""
    affine = torch.tensor([[0, 3, 0, 9], [-1.5, 0, 0, 4], [0, 0, 5, 2], [0, 0, 0, 1]], dtype=torch.float64)
    for grid in (affine, AFFINE):
        for step in ((3, 0, 0), (0, 2, 0), (0, 0, 4), (2, -1, 3)):
            labels = torch.zeros(2, *SIZE, dtype=torch.int32)
            labels[0, 3, 4, 2] = labels[(1, *[a + b for a, b in zip((3, 4, 2), step)])] = 1
            measured = metrics.overlap(labels, grid)
            length = (grid[:3, :3] @ torch.tensor(step).double()).norm().item()
            assert measured["surface_distance_mm"] == pytest.approx(length, rel=1e-6) and measured["dice"] == 0


@pytest.mark.parametrize("shape", [(1, 2, 2, 8, 8), (2, 2, 3, 5, 5, 5), (1, 2, 3, 5, 5, 1)])
def test_fields_that_are_not_those_of_one_3d_series_are_refused_by_name(shape):
    with pytest.raises(ValueError, match="ddf"):
        metrics.non_diffeomorphic_volume_percent(DisplacementField.on_voxels(torch.zeros(shape)))


def test_passing_over_smooth_cells_misses_no_fold(monkeypatch):
    ddf = 0.09 * (2 * random_images(2, 3, 12, 11, 10) - 1)
    for voxel in product((0, 5, 11), (0, 5, 10), (0, 4, 9)):  # one fold per axis, sign and border
        ddf[(0, sum(voxel) % 3, *voxel)] += 2.5 * (-1) ** sum(voxel)
    field = on_voxels(ddf)
    steep = [metrics._steep_cells(on_voxels(u[None])) for u in ddf]
    assert 0.05 < float(steep[0].double().mean()) < 0.3 and not steep[1].any()
    folds, volume = metrics.folding_percent(field), metrics.non_diffeomorphic_volume_percent(field)
    assert folds == pytest.approx(100 * float((jacobian_determinant(ddf) <= 0).double().mean()), rel=1e-12)
    assert folds > 0.5
    every_cell = torch.ones([n - 1 for n in ddf.shape[2:]], dtype=torch.bool)
    monkeypatch.setattr(metrics, "_steep_cells", lambda u: every_cell)
    assert metrics.non_diffeomorphic_volume_percent(field) == pytest.approx(volume, rel=1e-12)
    assert volume > 0.1


@pytest.mark.parametrize("size", [(12, 11, 10), (13, 9, 3)])  # with 0 to 3 voxels beyond the last node
def test_folds_and_inverses_of_fields_on_a_lattice_are_those_of_their_voxels(size):
    lattice = Lattice(size, 4)
    nodes = 6 * random_images(1, 2, 3, *lattice.shape)
    field = DisplacementField(nodes, lattice)
    for measure in (metrics.folding_percent, metrics.non_diffeomorphic_volume_percent):
        assert measure(field) == pytest.approx(measure(field.at(1)), rel=1e-12) and measure(field) > 1
    pair = [DisplacementField(values, lattice) for values in (nodes / 20, nodes.flip(1) / -40)]
    of_lattice = metrics.inverse_consistency_mm(*pair, AFFINE)
    of_voxels = metrics.inverse_consistency_mm(*(u.at(1) for u in pair), AFFINE)
    assert of_lattice == pytest.approx(of_voxels, rel=1e-9) and of_voxels > 0.1
    nodes[..., 1, :, :], nodes[..., 2:, :, :] = 0, 0  # most of the volume is smooth
    field = DisplacementField(nodes[:, :1], lattice)
    steep, finer = metrics._steep_cells(field), metrics._steep_cells(field.at(1))
    assert (steep >= finer).all() and 0 < steep.sum() < steep.numel()
