"""Grids, fields and points for the tests of transforms."""

import numpy as np
from scipy.spatial.transform import Rotation

from groupmorph_monai.space.grid import Grid

SIZE, SPACING = (9, 12, 7), (1.5, 2.0, 3.1)

OBLIQUE = Rotation.from_euler("xyz", [12, -9, 17], degrees=True).as_matrix()


def affine_of(linear=OBLIQUE, spacing=SPACING, origin=(-20.0, 35.0, 110.0)):
    affine = np.eye(4)
    affine[:3, :3] = linear * np.array(spacing)
    affine[:3, 3] = origin
    return affine


GRID = Grid(SIZE, affine_of())
