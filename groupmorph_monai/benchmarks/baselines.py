"""The peers of the benchmark: Elastix by itk-elastix, pair by pair and group-wise.

Both answer with fields of this package's kind: common grid to timepoint, voxels.
"""

from collections.abc import Mapping, Sequence

import itk
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["elastix_groupwise", "elastix_pairwise"]


def _image(volumes: Tensor) -> object:
    """``(*S)`` or ``(K, *S)`` as an ITK image with voxels of 1 mm, x fastest."""
    array = volumes.numpy().astype(np.float32)
    axes = range(array.ndim - 3, array.ndim)
    return itk.image_from_array(np.ascontiguousarray(array.transpose(*range(array.ndim - 3), *reversed(axes))))


def _register(fixed: Tensor, moving: Tensor, parameters: Mapping[str, Sequence[str]] | str) -> Mapping:
    if not hasattr(itk, "ParameterObject"):
        raise InputError("elastix: expected itk-elastix beside itk, found none; pip install 'groupmorph-monai[bench]'")
    chosen = itk.ParameterObject.New()
    chosen.AddParameterMap(chosen.GetDefaultParameterMap(parameters) if isinstance(parameters, str) else parameters)
    _, found = itk.elastix_registration_method(
        _image(fixed), _image(moving), parameter_object=chosen, log_to_console=False
    )
    return found.GetParameterMap(0)


def _basis(n: int, origin: float, spacing: float, points: int) -> np.ndarray:
    """Cubic B-splines on a grid of ``points``, at voxels 0 to n - 1: ``(n, points)``."""
    t = np.abs((np.arange(n)[:, None] - origin) / spacing - np.arange(points)[None])
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0))


def _fields(found: Mapping, size: Sequence[int]) -> Tensor:
    """Displacements of a (stack of) cubic B-spline transform(s): ``(K, 3, *S)``."""
    points = [int(v) for v in found["GridSize"][:3]]
    basis = [
        _basis(n, float(found["GridOrigin"][d]), float(found["GridSpacing"][d]), points[d]) for d, n in enumerate(size)
    ]
    parameters = np.array([float(v) for v in found["TransformParameters"]])
    coefficients = parameters.reshape(-1, 3, *reversed(points))
    return torch.from_numpy(np.einsum("xi,yj,zk,tdkji->tdxyz", *basis, coefficients, optimize=True)).float()


def elastix_pairwise(images: Tensor) -> Tensor:
    """Every timepoint onto the first by Elastix's default parameter map "bspline" (advanced Mattes mutual information,
    4 resolutions of 256 iterations, control points 8 voxels apart): ``(K, *S)`` to ``(K, 3, *S)``."""
    size = images.shape[1:]
    moved = [_fields(_register(images[0], volume, "bspline"), size) for volume in images[1:]]
    return torch.cat([torch.zeros(1, 3, *size), *moved])


def elastix_groupwise(images: Tensor, iterations: int = 1000) -> Tensor:
    """All timepoints to their mean by Elastix's PCAMetric2 and a stack of B-splines, as published in the Elastix model
    zoo's Par0039 for abdominal DCE-MRI (Huizinga et al. 2016), at half of its grid spacing, 16 voxels, as the motion
    here is finer: ``(K, *S)`` to ``(K, 3, *S)``."""
    levels = (4, 2, 1)
    parameters = {
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "FixedImageDimension": ["4"],
        "MovingImageDimension": ["4"],
        "UseDirectionCosines": ["true"],
        "Registration": ["MultiResolutionRegistration"],
        "Interpolator": ["ReducedDimensionBSplineInterpolator"],
        "ResampleInterpolator": ["FinalReducedDimensionBSplineInterpolator"],
        "Resampler": ["DefaultResampler"],
        "BSplineInterpolationOrder": ["1"],
        "FixedImagePyramid": ["FixedSmoothingImagePyramid"],
        "MovingImagePyramid": ["MovingSmoothingImagePyramid"],
        "ImagePyramidSchedule": [str(f) for level in levels for f in (level, level, level, 0)],
        "Optimizer": ["AdaptiveStochasticGradientDescent"],
        "AutomaticParameterEstimation": ["true"],
        "ASGDParameterEstimationMethod": ["Original"],
        "MaximumNumberOfIterations": [str(iterations)],
        "Transform": ["BSplineStackTransform"],
        "HowToCombineTransforms": ["Compose"],
        "FinalGridSpacingInPhysicalUnits": ["16"],
        "GridSpacingSchedule": [str(level) for level in levels],
        "NumberOfResolutions": [str(len(levels))],
        "Metric": ["PCAMetric2"],
        "SubtractMean": ["true"],
        "MovingImageDerivativeScales": ["1", "1", "1", "0"],
        "ImageSampler": ["RandomCoordinate"],
        "NumberOfSpatialSamples": ["2048"],
        "NewSamplesEveryIteration": ["true"],
        "MaximumNumberOfSamplingAttempts": ["10"],
        "DefaultPixelValue": ["0"],
        "WriteResultImage": ["false"],
        "ResultImagePixelType": ["float"],
    }
    return _fields(_register(images, images, parameters), images.shape[1:])
