"""Grids: canonical axes, voxels and points, and other spacings."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from geometries import GRID, OBLIQUE, SIZE, SPACING, affine_of
from scipy.spatial.transform import Rotation

from groupmorph_monai.space.grid import Grid, transform_points
from groupmorph_monai.space.transforms import AffineTransform

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize("linear", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("order, signs", ORIENTATIONS)
def test_canonical_axes_are_nibabels(order, signs, linear):
    turned = linear[:, list(order)] * signs
    grid = Grid(SIZE, affine_of(turned, [SPACING[axis] for axis in order]))
    image = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SIZE, np.uint8), grid.affine.numpy()))
    canonical = grid.canonical()
    assert canonical.shape == image.shape
    np.testing.assert_allclose(canonical.affine, image.affine, atol=1e-12)
    assert torch.equal(canonical.canonical().affine, canonical.affine)


@pytest.mark.parametrize("seed", range(20))
def test_the_canonical_axes_of_a_steeply_rotated_grid_are_jointly_closest(seed):
    """The sum of the three cosines is maximal, whereas nibabel chooses axis by axis."""
    rotation = Rotation.random(random_state=seed).as_matrix()
    actual = Grid(SIZE, affine_of(rotation)).canonical()
    cosines = (actual.affine[:3, :3] / actual.spacing_mm).diagonal().sum()
    every = [np.abs(rotation[range(3), order]).sum() for order in permutations(range(3))]
    assert float(cosines) == pytest.approx(max(every), rel=1e-9)
    corners = {
        tuple(np.round(p, 6)) for p in Grid(SIZE, affine_of(rotation)).points()[::8, ::11, ::6].reshape(-1, 3).numpy()
    }
    shape = actual.shape
    theirs = actual.points()[:: shape[0] - 1, :: shape[1] - 1, :: shape[2] - 1].reshape(-1, 3).numpy()
    assert {tuple(np.round(p, 6)) for p in theirs} == corners


TIES = {
    "45 degrees about x": Rotation.from_euler("x", 45, degrees=True),
    "45 degrees about y": Rotation.from_euler("y", -45, degrees=True),
    "45 degrees about z": Rotation.from_euler("z", 45, degrees=True),
    "45 degrees about two axes": Rotation.from_euler("zx", [45, 45], degrees=True),
    "60 degrees about the diagonal": Rotation.from_rotvec(np.full(3, np.pi / 3 / np.sqrt(3))),
}


@pytest.mark.parametrize("rounding", [0, 1e-6])
@pytest.mark.parametrize("rotation", TIES.values(), ids=TIES)
def test_canonical_axes_do_not_depend_on_the_stored_order_where_several_are_equally_close(rotation, rounding):
    affine, generator = affine_of(rotation.as_matrix()), np.random.default_rng(0)
    expected = Grid(SIZE, affine).canonical()
    for order, signs in ORIENTATIONS:
        stored = affine.copy()
        stored[:3, :3] = affine[:3, list(order)] * signs
        stored[:3, 3] += sum((SIZE[axis] - 1) * affine[:3, axis] for axis, sign in zip(order, signs) if sign < 0)
        stored[:3] += rounding * generator.uniform(-1, 1, (3, 4))
        actual = Grid([SIZE[axis] for axis in order], stored).canonical()
        assert actual.shape == expected.shape, (order, signs)
        np.testing.assert_allclose(
            actual.affine, expected.affine, atol=1e-11 + 50 * rounding, err_msg=f"{order, signs}"
        )


def test_points_and_voxels_are_each_others_inverse_and_the_affines():
    points = GRID.points()
    assert points.shape == (*SIZE, 3) and points.dtype == torch.float64
    indices = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), axis=-1)
    np.testing.assert_allclose(points, nib.affines.apply_affine(GRID.affine.numpy(), indices), atol=1e-12)
    np.testing.assert_allclose(GRID.voxels(points), indices, atol=1e-10)
    torch.testing.assert_close(GRID.points(slice(2, 5)), points[2:5], rtol=0, atol=0)
    torch.testing.assert_close(GRID.points(every=3), points[::3, ::3, ::3], rtol=0, atol=0)


def test_centre_extent_and_spacing():
    np.testing.assert_allclose(GRID.spacing_mm, SPACING, rtol=1e-12)
    np.testing.assert_allclose(GRID.extent_mm, np.array(SPACING) * SIZE, rtol=1e-12)
    np.testing.assert_allclose(GRID.centre, GRID.points().reshape(-1, 3).mean(dim=0), atol=1e-9)


def test_a_grid_contains_up_to_the_outer_faces_of_its_voxels():
    def contained(voxel):
        return bool(GRID.contains(AffineTransform(GRID.affine)(torch.tensor(voxel, dtype=torch.float64))))

    middle = [(n - 1) / 2 for n in SIZE]
    for axis, n in enumerate(SIZE):
        for face, outwards in ((-0.5, -1), (n - 0.5, 1)):
            for step, expected in ((0.0, True), (-1e-3, True), (1e-3, False), (5.0, False)):
                assert contained([face + outwards * step if a == axis else m for a, m in enumerate(middle)]) is expected
    assert GRID.contains(GRID.points()).all()


@pytest.mark.parametrize("spacing", [0.7, 1.0, 2.0, 3.0, (3.0, 2.5, 2.0), (1.5, 2.0, 3.1), (0.3, 4.4, 6.2), 500.0])
def test_another_spacing_keeps_axes_and_first_voxel_and_just_covers_the_last(spacing):
    grid = GRID.at_spacing(torch.tensor(spacing, dtype=torch.float64).expand(3))
    np.testing.assert_allclose(grid.spacing_mm, np.broadcast_to(spacing, 3), rtol=1e-12)
    np.testing.assert_allclose(grid.affine[:3, 3], GRID.affine[:3, 3], atol=1e-12)
    np.testing.assert_allclose(grid.affine[:3, :3] / grid.spacing_mm, GRID.affine[:3, :3] / GRID.spacing_mm, atol=1e-12)
    last = (np.array(SIZE) - 1) * np.array(SPACING)
    covered = (np.array(grid.shape) - 1) * np.broadcast_to(spacing, 3)
    assert (covered > last - 1e-3).all() and (covered < last + np.broadcast_to(spacing, 3)).all()


def test_grids_match_where_every_corner_does():
    shifted = GRID.affine.clone()
    shifted[0, 3] += 1e-3
    assert GRID.matches(Grid(SIZE, shifted), 2e-3) and not GRID.matches(Grid(SIZE, shifted), 5e-4)
    turned = GRID.affine.clone()
    turned[1, 2] += 1e-3  # 6 of these at the last slice
    assert GRID.matches(Grid(SIZE, turned), 7e-3) and not GRID.matches(Grid(SIZE, turned), 5e-3)
    assert GRID.matches(GRID, 0.0) and not GRID.matches(Grid((9, 12, 8), GRID.affine))


@pytest.mark.parametrize("voxels", [1, 100, 12 * 7 * 2, 12 * 7 * 4, 2**20])
def test_slabs_cover_each_row_once(monkeypatch, voxels):
    monkeypatch.setattr("groupmorph_monai.space.grid.SLAB_VOXELS", voxels)
    slabs = list(GRID.slabs())
    assert [row for rows in slabs for row in range(SIZE[0])[rows]] == list(range(SIZE[0]))
    assert max(rows.stop - rows.start for rows in slabs) == max(1, min(9, voxels // 84))
    torch.testing.assert_close(torch.cat([GRID.points(rows) for rows in slabs]), GRID.points(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_are_transformed_in_their_own_precision(dtype):
    points = torch.rand(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = nib.affines.apply_affine(GRID.affine.numpy(), points.numpy())
    torch.testing.assert_close(transform_points(GRID.affine, points), torch.from_numpy(expected).to(dtype))
