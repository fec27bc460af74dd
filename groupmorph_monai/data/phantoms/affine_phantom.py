"""Phantoms with known, purely affine motion."""

import math
from collections.abc import Sequence

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ...space.affine import apply_affine
from ...space.sampling import sample, voxel_grid
from .phantom import make_phantom, uniform


def _random_map(rng: torch.Generator, size: Sequence[int], degrees: float, shift: float, scale: float) -> Tensor:
    """Draw a rotation, scaling and shift about the centre, bounded along each axis: ``(4, 4)``, voxels."""
    angles = uniform(rng, -1, 1, (3,)).double() * math.radians(degrees)
    turn = torch.from_numpy(Rotation.from_rotvec(angles.numpy()).as_matrix())
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = turn @ torch.diag(1 + uniform(rng, -scale, scale, (3,))).double()
    centre = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + uniform(rng, -shift, shift, (3,))
    return matrix


def make_affine_phantom(
    seed: int,
    size: Sequence[int] = (36, 36, 36),
    timepoints: int = 3,
    degrees: float = 20.0,
    shift_voxels: float = 5.0,
    scale: float = 0.1,
    margin_voxels: int = 6,
) -> dict[str, Tensor]:
    """Generate a phantom surrounded by air, with one affine transform per timepoint.

    Args:
        seed, size, timepoints, margin_voxels: as in `make_phantom`.
        degrees, shift_voxels, scale: maximum rotation about each axis, and maximum shift and scaling along each axis.

    Returns:
        ``image`` ``(K, *S)``; ``landmarks`` ``(K, P, 3)``, voxels, of tissue inside all fields of view; ``affine``
        ``(4, 4)``.
    """
    phantom = make_phantom(seed, size, timepoints, max_motion_voxels=1e-3, landmarks=2000, margin_voxels=margin_voxels)
    rng, grid = torch.Generator().manual_seed(seed), voxel_grid(size, torch.empty(0)).double()
    images, positions = [], []
    for volume, points in zip(phantom["image"], phantom["landmarks"]):
        matrix = _random_map(rng, size, degrees, shift_voxels, scale)
        coordinates = apply_affine(matrix, grid)
        images.append(sample(volume.double()[None, None], coordinates[None])[0, 0].float())
        positions.append(((points.double() - matrix[:3, 3]) @ torch.linalg.inv(matrix[:3, :3]).T).float())
    landmarks = torch.stack(positions)
    in_view = ((landmarks > 0) & (landmarks < torch.tensor(size) - 1)).all(dim=2).all(dim=0)
    return {"image": torch.stack(images), "landmarks": landmarks[:, in_view], "affine": phantom["affine"]}
