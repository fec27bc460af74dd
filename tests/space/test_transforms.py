"""Transforms against nibabel, ITK and closed forms."""

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from contracts import random
from geometries import GRID, OBLIQUE, SIZE, SPACING, affine_of
from scipy.ndimage import map_coordinates

from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import (
    AffineTransform,
    ComposedTransform,
    DenseTransform,
    Transform,
    interpolate,
    jacobian_determinant,
)


def smooth_field(size, amplitude=1.2, phase=0.0):
    """Make a smooth field ``(3, *size)`` in voxels that is representable in single precision, as in ITK's files."""
    i, j, k = torch.meshgrid(*(torch.linspace(0, 2, n, dtype=torch.float64) for n in size), indexing="ij")
    waves = [torch.sin(i + 2 * j + d + phase) * torch.cos((d + 1) * k - phase) for d in range(3)]
    return amplitude * torch.stack(waves)


def points_inside(grid, number=200, margin=0.0, seed=0):
    """Draw points at least ``margin`` voxels inside the outermost voxel centres."""
    size = torch.tensor(grid.shape, dtype=torch.float64)
    voxels = margin + random(number, 3, seed=seed) * (size - 1 - 2 * margin)
    return voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def affine_map(seed=3, strength=0.1, shift=(4.0, -3.0, 2.0)):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] += strength * (random(3, 3, seed=seed) - 0.5)
    matrix[:3, 3] = torch.tensor(shift)
    return AffineTransform(matrix)


class Bend(Transform):
    """A map that is neither affine nor sampled."""

    def __call__(self, points):
        return points + 0.5 * torch.sin(points.roll(1, dims=-1) / 5)

    @property
    def inverse(self):
        raise NotImplementedError


def test_interpolation_is_scipys_and_holds_the_border():
    volume = random(2, *SIZE)
    voxels = random(4, 5, 3, seed=1) * (torch.tensor(SIZE) + 3) - 2
    places = voxels.reshape(-1, 3).T.numpy()
    for mode, order in (("bilinear", 1), ("nearest", 0)):
        expected = np.stack([map_coordinates(v, places, order=order, mode="nearest") for v in volume.numpy()], axis=-1)
        actual = interpolate(volume, voxels, mode)
        assert actual.shape == (4, 5, 2)
        np.testing.assert_allclose(actual.reshape(-1, 2), expected, atol=1e-12)


def test_the_identity_is_exact_and_known_as_such():
    points, zero = GRID.points(), torch.zeros(3, *SIZE)
    identity = AffineTransform(torch.eye(4))
    dense = DenseTransform(zero, zero, GRID)
    for transform in (identity, dense, ComposedTransform(), ComposedTransform(identity, dense, identity)):
        assert transform.is_identity and transform.inverse.is_identity
        assert torch.equal(transform(points), points)
        assert transform.displacement(GRID).abs().max() == 0


def test_one_voxel_that_moves_there_or_back_makes_a_field_no_identity():
    zero = torch.zeros(3, *SIZE)
    for component, voxel in ((0, (0, 0, 0)), (2, (8, 11, 6))):
        shifted = zero.clone()
        shifted[(component, *voxel)] = 1e-6
        for fields in ((shifted, zero), (zero, shifted)):
            transform = DenseTransform(*fields, GRID)
            assert not transform.is_identity and not ComposedTransform(transform).is_identity
            assert not transform.inverse.is_identity
    assert not AffineTransform(torch.eye(4) + 1e-7 * torch.eye(4)[:, :1]).is_identity


def test_a_nested_composition_has_the_lattice_of_a_flat_one():
    first, second, dense = affine_map(3), affine_map(4), DenseTransform(smooth_field(SIZE), None, GRID)
    flat = ComposedTransform(first, second, dense)
    nested = ComposedTransform(ComposedTransform(first, second), dense)
    torch.testing.assert_close(nested.lattice.affine, flat.lattice.affine)
    # A node of the lattice is a voxel of the field.
    points = points_inside(flat.lattice)
    torch.testing.assert_close(GRID.voxels(second(first(points))), flat.lattice.voxels(points))


def test_a_field_alone_has_no_inverse_and_one_with_it_has_it_once():
    field = smooth_field(SIZE)
    alone, both = DenseTransform(field, None, GRID), DenseTransform(field, -field, GRID)
    # The distance over which the field fades depends on the longest vector, which the negative field shares.
    points = points_inside(GRID, margin=-3)
    assert torch.equal(alone(points), both(points)) and not alone.is_identity
    assert DenseTransform(torch.zeros_like(field), None, GRID).is_identity
    with pytest.raises(ValueError, match="inverse: expected .* that of the inverse map, got a single field"):
        _ = alone.inverse
    assert both.inverse is both.inverse


def test_an_affine_map_is_its_matrix_and_its_inverse_undoes_it():
    transform, points = affine_map(), 300 * (random(50, 3) - 0.5)
    expected = nib.affines.apply_affine(transform.matrix.numpy(), points.numpy())
    np.testing.assert_allclose(transform(points), expected, atol=1e-11)
    torch.testing.assert_close(transform.inverse(transform(points)), points, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        transform.displacement(GRID).movedim(0, -1), transform(GRID.points()) - GRID.points(), atol=1e-5
    )


def test_a_field_of_another_shape_is_refused_by_name():
    field = torch.zeros(3, *SIZE)
    with pytest.raises(ValueError, match=r"inverse_displacement: expected shape \(3, 9, 12, 7\), got \(3, 9, 12, 6\)"):
        DenseTransform(field, field[..., :-1], GRID)
    with pytest.raises(ValueError, match="^displacement"):
        DenseTransform(field[:2], field, GRID)


def test_a_linear_field_is_the_affine_map_that_it_samples():
    transform = affine_map(shift=(0.4, -0.3, 0.2))
    linear = torch.linalg.inv(GRID.affine[:3, :3])
    forth, back = (
        ((t(GRID.points()) - GRID.points()) @ linear.T).movedim(-1, 0) for t in (transform, transform.inverse)
    )
    dense, points = DenseTransform(forth, back, GRID), points_inside(GRID)
    torch.testing.assert_close(dense(points), transform(points), rtol=0, atol=1e-9)
    torch.testing.assert_close(dense.inverse(points), transform.inverse(points), rtol=0, atol=1e-9)


def itk_point_map(transform, points):
    """Map RAS points by an LPS transform."""
    lps = points.numpy() * [-1, -1, 1]
    return np.array([transform.TransformPoint(p.tolist()) for p in lps]) * [-1, -1, 1]


def itk_affine(transform):
    flip = np.diag([-1.0, -1, 1, 1])
    matrix = flip @ transform.matrix.numpy() @ flip
    result = itk.AffineTransform[itk.D, 3].New()
    result.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    result.SetTranslation(matrix[:3, 3].tolist())
    return result


def itk_dense(field, grid):
    """Make ITK's transform of a displacement field ``(3, *S)`` in voxels."""
    mm = np.einsum("de,eijk->dijk", grid.affine[:3, :3].numpy(), field.numpy())
    lps = np.moveaxis(mm, 0, -1) * [-1, -1, 1]  # (i, j, k, 3)
    flip = np.diag([-1.0, -1, 1, 1])
    affine = flip @ grid.affine.numpy()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    result = itk.DisplacementFieldTransform[itk.D, 3].New()
    direction = (affine[:3, :3] / spacing).ravel()
    result.SetFixedParameters(
        itk.OptimizerParameters[itk.D]([*map(float, grid.shape), *affine[:3, 3], *spacing, *direction])
    )
    values = lps.transpose(2, 1, 0, 3).ravel()
    result.SetParameters(itk.OptimizerParameters[itk.D](values.tolist()))
    return result


@pytest.mark.parametrize("linear", [np.eye(3), OBLIQUE, OBLIQUE[:, [2, 0, 1]] * [-1, 1, -1]])
def test_a_dense_field_is_itks_displacement_field_transform(linear):
    grid = Grid((13, 11, 9), affine_of(linear))
    forth, back = smooth_field(grid.shape), smooth_field(grid.shape, phase=1.0)
    points = points_inside(grid)
    for actual, field in (
        (DenseTransform(forth, back, grid), forth),
        (DenseTransform(forth, back, grid).inverse, back),
    ):
        assert (actual(points) - points).norm(dim=1).mean() > 0.5
        np.testing.assert_allclose(actual(points), itk_point_map(itk_dense(field, grid), points), atol=1e-5)


def test_composition_is_itks_with_the_first_transform_first():
    grid = Grid((13, 11, 9), affine_of())
    forth, back = smooth_field(grid.shape), smooth_field(grid.shape, phase=1.0)
    dense, affine, second = DenseTransform(forth, back, grid), affine_map(), affine_map(seed=7, strength=0.3)
    theirs = itk.CompositeTransform[itk.D, 3].New()
    # ITK applies the last one added first.
    for part in (itk_affine(second), itk_affine(affine), itk_dense(forth, grid)):
        theirs.AddTransform(part)
    ours, points = ComposedTransform(dense, affine, second), points_inside(grid)
    np.testing.assert_allclose(ours(points), itk_point_map(theirs, points), atol=1e-5)
    for wrong in ((affine, dense, second), (second, affine, dense), (dense, second, affine)):
        assert (ComposedTransform(*wrong)(points) - ours(points)).norm(dim=1).mean() > 0.1
    inverse = itk.CompositeTransform[itk.D, 3].New()
    for part in (itk_dense(back, grid), itk_affine(affine.inverse), itk_affine(second.inverse)):
        inverse.AddTransform(part)
    mapped = second(affine(points_inside(grid, margin=1.5, seed=1)))
    np.testing.assert_allclose(ours.inverse(mapped), itk_point_map(inverse, mapped), atol=1e-5)


def test_the_inverse_of_a_composition_undoes_it():
    shift = torch.tensor([0.7, -0.4, 0.9], dtype=torch.float64).view(3, 1, 1, 1).expand(3, *SIZE)
    chain = ComposedTransform(
        affine_map(strength=0.01, shift=(0.5, 0.2, -0.3)), DenseTransform(shift, -shift, GRID), affine_map(seed=9)
    )
    points = points_inside(GRID, margin=2.5)
    assert (chain(points) - points).norm(dim=1).min() > 1
    torch.testing.assert_close(chain.inverse(chain(points)), points, rtol=0, atol=1e-9)


@pytest.mark.parametrize("fade", [4.0, float("inf")])
@pytest.mark.parametrize("axes, flips", [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (1, -1, 1)), ((1, 0, 2), (-1, 1, -1))])
def test_at_the_voxels_of_a_parallel_grid_a_map_is_itself(monkeypatch, axes, flips, fade):
    """This holds for any order and direction of the axes, inside the field's grid and beyond it."""
    monkeypatch.setattr("groupmorph_monai.space.grid.SLAB_VOXELS", 300)
    dense = DenseTransform(smooth_field(SIZE), smooth_field(SIZE), GRID, fade)
    relative, shape = torch.zeros(4, 4, dtype=torch.float64), [0, 0, 0]
    relative[3, 3] = 1
    for axis, (parallel, flip, spacing) in enumerate(zip(axes, flips, (0.61, 1.3, 0.47))):
        relative[parallel, axis] = flip * spacing
        relative[parallel, 3] = -2.4 if flip > 0 else SIZE[parallel] + 1.7
        shape[axis] = int((SIZE[parallel] + 4) / spacing)
    target = Grid(shape, GRID.affine @ relative)
    points = target.points()
    assert GRID.coordinates_along_axes(target) is not None and (~GRID.contains(points)).any()
    for transform in (dense, ComposedTransform(dense, affine_map()), ComposedTransform(affine_map(), dense)):
        expected = transform(points)
        torch.testing.assert_close(transform.at_voxels(target), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(transform.at_voxels(target, slice(2, 4)), expected[2:4], rtol=0, atol=1e-5)
        displacement = transform.displacement(target).movedim(0, -1).double()
        torch.testing.assert_close(displacement, expected - points, rtol=0, atol=1e-5)


def test_displacements_on_a_parallel_grid_are_not_rounded_under_autocast():
    field, target = smooth_field(SIZE).float(), GRID.at_spacing(0.7 * GRID.spacing_mm)
    expected = DenseTransform(field, field, GRID).displacement(target)
    with torch.autocast("cpu", torch.bfloat16):
        actual = DenseTransform(field, field, GRID).displacement(target)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_oblique_grids_are_not_parallel():
    sheared = Grid(SIZE, GRID.affine @ (torch.eye(4, dtype=torch.float64) + torch.diag(torch.tensor([1e-6] * 3), 1)))
    rotated = affine_map(strength=0.2, shift=(0.0, 0.0, 0.0)).matrix
    assert GRID.coordinates_along_axes(Grid(SIZE, rotated @ GRID.affine)) is None
    assert GRID.coordinates_along_axes(sheared) is None


@pytest.mark.parametrize("amplitude", [0.3, 1.2, 6.0])
def test_beyond_its_grid_a_field_fades_to_nothing_without_folding(amplitude):
    """Along straight lines outwards the map is monotonic; beyond 4 times the greatest displacement it is the
    identity."""
    field = smooth_field(SIZE, amplitude)
    dense = DenseTransform(field, 0.5 * field, GRID)
    linear = GRID.affine[:3, :3]
    greatest = (field.movedim(0, -1) @ linear.T).norm(dim=-1).max()
    middle = [(n - 1) / 2 for n in SIZE]
    for axis, n in enumerate(SIZE):
        for border, outwards in ((0, -1), (n - 1, 1)):
            steps = torch.linspace(0, 1.5 * 4 * float(greatest) / SPACING[axis], 400, dtype=torch.float64)
            voxels = torch.tensor(middle, dtype=torch.float64).repeat(400, 1)
            voxels[:, axis] = border + outwards * steps
            points = AffineTransform(GRID.affine)(voxels)
            moves, distance = dense(points) - points, steps * SPACING[axis]
            share = (1 - distance / (4 * greatest)).clamp_min(0)
            torch.testing.assert_close(moves, share[:, None] * moves[0], rtol=0, atol=1e-8)
            assert moves[0].norm() > 1e-3 and (moves[distance > 4 * greatest + 1e-6] == 0).all()
            # The slope of the fade is at most a quarter, where 1 would fold.
            outward = outwards * (dense(points) @ torch.linalg.inv(linear).T)[:, axis]
            assert (outward.diff() > 0.7 * steps.diff()).all()


def test_an_infinite_fade_holds_the_borders_displacement():
    field = smooth_field(SIZE)
    dense = DenseTransform(field, field, GRID, fade=float("inf"))
    voxels = random(100, 3) * 60 - 25
    border = voxels.clamp_min(0).minimum(torch.tensor(SIZE, dtype=torch.float64) - 1)
    points, nearest = (AffineTransform(GRID.affine)(v) for v in (voxels, border))
    torch.testing.assert_close(dense(points) - points, dense(nearest) - nearest, rtol=0, atol=1e-9)
    torch.testing.assert_close(dense.inverse(points), dense(points))  # it keeps its fade


@pytest.mark.parametrize("voxels", [1, 300])
def test_displacements_slab_by_slab_are_those_of_the_whole(monkeypatch, voxels):
    field = smooth_field(SIZE)
    target = Grid((11, 6, 8), affine_of(OBLIQUE[:, [1, 2, 0]], (2.0, 2.4, 1.9), (-25.0, 30.0, 100.0)))

    def chains():  # new ones, as they cache computed values
        return (
            DenseTransform(field, -field, GRID),
            ComposedTransform(DenseTransform(field, -field, GRID), affine_map()),
            Bend(),
        )

    whole = [chain.displacement(target) for chain in chains()]
    for chain, actual in zip(chains(), whole):
        assert actual.shape == (3, *target.shape) and actual.dtype == torch.float32
        np.testing.assert_allclose(actual.movedim(0, -1), chain(target.points()) - target.points(), atol=1e-5)
    monkeypatch.setattr("groupmorph_monai.space.grid.SLAB_VOXELS", voxels)
    for chain, expected in zip(chains(), whole):
        torch.testing.assert_close(chain.displacement(target), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slab_voxels", [1, 400, 2**20])
def test_determinants_of_any_field_are_numpys_slab_by_slab_too(monkeypatch, slab_voxels, dtype):
    ddf = 2 * random(2, 3, *SIZE) - 1
    monkeypatch.setattr("groupmorph_monai.space.grid.SLAB_VOXELS", slab_voxels)
    for affine in (None, GRID.affine, torch.from_numpy(affine_of(np.diag([-1.0, 1, 1]) @ OBLIQUE))):
        axes = np.eye(3) if affine is None else affine[:3, :3].numpy()
        actual = jacobian_determinant(ddf.to(dtype), affine)
        assert actual.dtype == dtype
        for u, determinant in zip(ddf.numpy(), actual.numpy()):
            by_voxel = np.stack([np.stack(np.gradient(c), axis=-1) for c in u], axis=-2)  # (*S, component, direction)
            expected = np.linalg.det(by_voxel @ np.linalg.inv(axes) + np.eye(3))
            np.testing.assert_allclose(determinant, expected, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_determinant_of_a_linear_map_is_exact_up_to_the_border_in_voxels_and_in_mm(dtype):
    slope = 0.3 * (2 * random(3, 3) - 1)
    places = GRID.points() - GRID.centre
    mm = (places @ slope.T).movedim(-1, 0)[None]
    voxels = torch.einsum("de,teijk->tdijk", torch.linalg.inv(GRID.affine[:3, :3]), mm)
    expected = torch.linalg.det(torch.eye(3, dtype=torch.float64) + slope).expand(1, *SIZE)
    for actual in (jacobian_determinant(mm.to(dtype), GRID.affine), jacobian_determinant(voxels.to(dtype))):
        tolerance = 2e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("points", [None, "abc", [1, 2], 5.0, [[1, 2], [3]], np.zeros((3, 2)), np.zeros(3, complex)])
def test_a_point_has_three_real_coordinates(points):
    with pytest.raises(InputError, match="points: expected real numbers"):
        AffineTransform(torch.eye(4, dtype=torch.float64))(points)


@pytest.mark.parametrize("points", [np.zeros((0, 3)), torch.zeros(2, 0, 3), []])
def test_no_points_are_mapped_to_no_points(points):
    field = smooth_field(SIZE)
    transform = ComposedTransform(affine_map(), DenseTransform(field, -field, GRID))
    shape = np.shape(points) if len(points) else (0, 3)
    assert tuple(transform(points).shape) == tuple(transform.inverse(points).shape) == shape
