"""Affine motion that is known: what one look, or several, of an affine network find of it (AVSM, Section 2.1)."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..data.affine_phantom import make_affine_phantom
from ..data.series import Frame
from ..space.alignment import apply_affine
from ..space.grid import voxel_grid
from ..workflow.affine_alignment import GroupAffine

__all__ = ["affine_cases", "align_by_steps"]


def affine_cases(seeds: Iterable[int], **options: object) -> list[dict]:
    """Cases for `compare`, a phantom of `make_affine_phantom` with these ``options`` for each seed."""
    return [{"name": f"affine {seed}", **make_affine_phantom(seed, **options)} for seed in seeds]


def align_by_steps(images: Tensor) -> Tensor:
    """`GroupAffine` as a method, the optimisation twin of the network: ``(K, *S)`` to ``(K, 3, *S)``."""
    maps = GroupAffine("affine")([Frame(volume.numpy(), np.eye(4), "phantom") for volume in images]).maps
    grid = voxel_grid(images.shape[1:], images)
    moved = [apply_affine(m, grid) for m in maps.to(images)]
    return torch.stack(moved) - grid
