"""Where things are: grids, fields, transformations and what a series is aligned to."""

from .alignment import MeanAlignment, ReferenceAlignment
from .grid import compose, displace, sample, upsample_field, voxel_grid, warp, warp_coarse
from .integrate import Displacement, ScalingAndSquaring

__all__ = [
    "Displacement",
    "MeanAlignment",
    "ReferenceAlignment",
    "ScalingAndSquaring",
    "compose",
    "displace",
    "sample",
    "upsample_field",
    "voxel_grid",
    "warp",
    "warp_coarse",
]
