"""Grids, fields, transforms, integrators and alignments."""

from .affine import affine_in_voxels, affine_velocity
from .alignment import Alignment, GeodesicMeanAlignment, MeanAlignment, OneWayAlignment, ReferenceAlignment
from .field import DisplacementField, Field, VelocityField
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
from .lattice import Lattice
from .sampling import displace, sample, voxel_grid
from .smoothing import MultiGaussian
from .spread import standard_deviation
from .transforms import AffineTransform, ComposedTransform, DenseTransform
from .warping import compose, invert, pull_back, warp

__all__ = [
    "AdaptiveSolver",
    "AffineFlow",
    "AffineTransform",
    "Alignment",
    "ComposedTransform",
    "DenseTransform",
    "Displacement",
    "DisplacementField",
    "Euler",
    "Field",
    "FlowSequence",
    "GeodesicMeanAlignment",
    "Grid",
    "Lattice",
    "MeanAlignment",
    "MidpointSquaring",
    "MultiGaussian",
    "OneWayAlignment",
    "ReferenceAlignment",
    "RungeKutta4",
    "ScalingAndSquaring",
    "StepSequence",
    "Transformation",
    "VelocityField",
    "affine_in_voxels",
    "affine_velocity",
    "compose",
    "displace",
    "invert",
    "pull_back",
    "sample",
    "standard_deviation",
    "voxel_grid",
    "warp",
]
