"""Sheared grids are made orthogonal in the same way however they are stored."""

from itertools import permutations

import numpy as np
import pytest

from groupmorph_monai.data.preprocessing.right_angles import at_right_angles
from groupmorph_monai.space.grid import Grid

SHEARED = np.array([[3.0, 0.45, 0, -20], [0.1, 3, 0.6, 7], [0, -0.2, 3, 4], [0, 0, 0, 1]])
SHEARED[:3, :3] *= 3 / np.linalg.norm(SHEARED[:3, :3], axis=0)  # cubic voxels


@pytest.mark.parametrize("axes", list(permutations(range(3))), ids=str)
def test_the_orthogonal_grid_does_not_depend_on_how_a_scan_is_stored(axes):
    data = np.random.default_rng(0).random((9, 10, 11), dtype=np.float32)
    expected, affine, _ = at_right_angles(data, SHEARED, None, "scan")
    found, other, _ = at_right_angles(data.transpose(axes), SHEARED[:, [*axes, 3]], None, "scan")
    assert Grid(found.shape, other).canonical().matches(Grid(expected.shape, affine).canonical())
    np.testing.assert_allclose(found, expected.transpose(axes), atol=1e-4)
