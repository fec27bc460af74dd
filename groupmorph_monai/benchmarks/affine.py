"""Affine motion that is known: what one look, or several, of an affine network find of it (AVSM, Section 2.1)."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.phantom import make_phantom, uniform
from ..data.readers import Frame
from ..space.alignment import apply_affine
from ..space.grid import sample, voxel_grid
from ..workflow.affine_alignment import GroupAffine
from ..workflow.affine_steps import affine_generators

__all__ = ["affine_cases", "align_by_steps"]


def _random_map(rng: torch.Generator, size: Sequence[int], degrees: float, shift: float, scale: float) -> Tensor:
    """``(4, 4)``, voxels: turned, scaled and shifted by so much at most along each axis, about the centre."""
    angles = uniform(rng, -1, 1, (3,)) * math.radians(degrees)
    generator = torch.einsum("a,ade->de", angles, affine_generators("rigid")[:3, :, :3].float())
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.linalg.matrix_exp(generator) @ torch.diag(1 + uniform(rng, -scale, scale, (3,)))
    centre = (torch.tensor(size, dtype=torch.float64) - 1) / 2
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre + uniform(rng, -shift, shift, (3,))
    return matrix


def affine_cases(
    seeds: Iterable[int],
    size: Sequence[int] = (36, 36, 36),
    timepoints: int = 3,
    degrees: float = 20.0,
    shift_voxels: float = 5.0,
    scale: float = 0.1,
    margin_voxels: int = 6,
) -> list[dict]:
    """Phantoms in air whose timepoints move by affine maps alone, with their landmarks: cases for `compare`."""
    cases = []
    for seed in seeds:
        phantom = make_phantom(
            seed, size, timepoints, max_motion_voxels=1e-3, landmarks=2000, margin_voxels=margin_voxels
        )
        rng, grid = torch.Generator().manual_seed(seed), voxel_grid(size, torch.empty(0)).double()
        images, places = [], []
        for volume, points in zip(phantom["image"], phantom["landmarks"]):
            matrix = _random_map(rng, size, degrees, shift_voxels, scale)
            moved = apply_affine(matrix, grid)
            images.append(sample(volume.double()[None, None], moved[None])[0, 0].float())
            places.append(((points.double() - matrix[:3, 3]) @ torch.linalg.inv(matrix[:3, :3]).T).float())
        landmarks = torch.stack(places)
        seen = ((landmarks > 0) & (landmarks < torch.tensor(size) - 1)).all(dim=2).all(dim=0)
        cases.append({"name": f"affine {seed}", "image": torch.stack(images), "landmarks": landmarks[:, seen]})
    return cases


def align_by_steps(images: Tensor) -> Tensor:
    """`GroupAffine` as a method, the optimisation twin of the network: ``(K, *S)`` to ``(K, 3, *S)``."""
    maps = GroupAffine("affine")([Frame(volume.numpy(), np.eye(4), "phantom") for volume in images]).maps
    grid = voxel_grid(images.shape[1:], images)
    moved = [apply_affine(m, grid) for m in maps.to(images)]
    return torch.stack(moved) - grid
