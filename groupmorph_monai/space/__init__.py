"""Where things are: grids, fields, transformations and what a series is aligned to."""

from .alignment import (
    MeanAlignment,
    OneWayAlignment,
    ReferenceAlignment,
    affine_in_voxels,
    affine_velocity,
    compose_affine,
)
from .grid import compose, displace, sample, upsample_field, voxel_grid, warp, warp_coarse
from .integrate import AdaptiveSolver, AffineFlow, Displacement, Euler, FlowSequence, RungeKutta4, ScalingAndSquaring
from .smoothing import MultiGaussian
from .spread import affine_std, standard_deviation

__all__ = [
    "AdaptiveSolver",
    "AffineFlow",
    "Displacement",
    "Euler",
    "FlowSequence",
    "MeanAlignment",
    "MultiGaussian",
    "OneWayAlignment",
    "ReferenceAlignment",
    "RungeKutta4",
    "ScalingAndSquaring",
    "affine_in_voxels",
    "affine_std",
    "affine_velocity",
    "compose",
    "compose_affine",
    "displace",
    "sample",
    "standard_deviation",
    "upsample_field",
    "voxel_grid",
    "warp",
    "warp_coarse",
]
