"""Where things are: grids, fields, transformations and what a series is aligned to."""

from .alignment import MeanAlignment, ReferenceAlignment, compose_affine
from .grid import compose, displace, sample, upsample_field, voxel_grid, warp, warp_coarse
from .integrate import Displacement, ScalingAndSquaring

__all__ = [
    "Displacement",
    "MeanAlignment",
    "ReferenceAlignment",
    "ScalingAndSquaring",
    "compose",
    "compose_affine",
    "displace",
    "sample",
    "upsample_field",
    "voxel_grid",
    "warp",
    "warp_coarse",
]
