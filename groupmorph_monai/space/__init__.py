"""Grids, fields, transforms, integrators and alignments."""

from .affine import affine_in_voxels, affine_velocity
from .alignment import Alignment, GeodesicMeanAlignment, MeanAlignment, OneWayAlignment, ReferenceAlignment
from .field import Field
from .grid import Grid
from .integrate import (
    AdaptiveSolver,
    AffineFlow,
    Displacement,
    Euler,
    FlowSequence,
    MidpointSquaring,
    RungeKutta4,
    ScalingAndSquaring,
    StepSequence,
    Transformation,
)
from .smoothing import MultiGaussian
from .spread import standard_deviation
from .transforms import AffineTransform, ComposedTransform, DenseTransform
from .warping import compose, displace, sample, upsample_field, voxel_grid, warp

__all__ = [
    "AdaptiveSolver",
    "AffineFlow",
    "AffineTransform",
    "Alignment",
    "ComposedTransform",
    "DenseTransform",
    "Displacement",
    "Euler",
    "Field",
    "FlowSequence",
    "GeodesicMeanAlignment",
    "Grid",
    "MeanAlignment",
    "MidpointSquaring",
    "MultiGaussian",
    "OneWayAlignment",
    "ReferenceAlignment",
    "RungeKutta4",
    "ScalingAndSquaring",
    "StepSequence",
    "Transformation",
    "affine_in_voxels",
    "affine_velocity",
    "compose",
    "displace",
    "sample",
    "standard_deviation",
    "upsample_field",
    "voxel_grid",
    "warp",
]
