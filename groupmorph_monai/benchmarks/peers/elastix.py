"""Elastix in the package itk-elastix, pairwise and group-wise, with several published settings.

Parameter names and values are Elastix' own; the settings come from its model zoo (elastix.lumc.nl/modelzoo) and are
cited by their numbers.
"""

import tempfile
from collections.abc import Mapping, Sequence

import itk
import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from .images import as_array, each_onto_first, in_voxels, spacing_of

_UNIT = torch.eye(4)

# Parameters shared by all settings.
_COMMON = {
    "FixedInternalImagePixelType": ["float"],  # Par0032 uses short, but elastix 5 supports only float
    "MovingInternalImagePixelType": ["float"],
    "UseDirectionCosines": ["true"],
    "Registration": ["MultiResolutionRegistration"],
    "Resampler": ["DefaultResampler"],
    "Optimizer": ["AdaptiveStochasticGradientDescent"],
    "HowToCombineTransforms": ["Compose"],
    "NewSamplesEveryIteration": ["true"],
    "BSplineInterpolationOrder": ["1"],
    "DefaultPixelValue": ["0"],
    "WriteResultImage": ["false"],
}
# Par0032, for breast DCE-MRI: parameters shared by its rigid and B-spline stages.
_BREAST = {
    **_COMMON,
    "FixedImageDimension": ["3"],
    "MovingImageDimension": ["3"],
    "Interpolator": ["BSplineInterpolator"],
    "ResampleInterpolator": ["FinalBSplineInterpolator"],
    "FixedImagePyramid": ["FixedRecursiveImagePyramid"],
    "MovingImagePyramid": ["MovingRecursiveImagePyramid"],
    "Metric": ["AdvancedMattesMutualInformation"],
    "NumberOfHistogramBins": ["32"],
    "ErodeMask": ["false"],
    "NumberOfResolutions": ["3"],
    "ImagePyramidSchedule": [str(f) for level in (4, 2, 1) for f in (level,) * 3],
    "ImageSampler": ["Random"],
    "FinalBSplineInterpolationOrder": ["1"],
}
_BREAST_RIGID = {
    **_BREAST,
    "Transform": ["EulerTransform"],
    "AutomaticScalesEstimation": ["true"],
    "AutomaticTransformInitialization": ["true"],
    "MaximumNumberOfIterations": ["250"],
    "NumberOfSpatialSamples": ["10000"],
}
_BREAST_SPLINE = {
    **_BREAST,
    "Transform": ["BSplineTransform"],
    "FinalGridSpacingInPhysicalUnits": ["40"],
    "MaximumNumberOfIterations": ["500"],
    "NumberOfSpatialSamples": ["5000"],
}


def _groupwise(levels: Sequence[int], iterations: int, **parameters: Sequence[str]) -> dict[str, Sequence[str]]:
    """Return the parameters shared by Par0039 and Par0047: PCAMetric2, a stack of B-splines, grid spacing 16 mm."""
    return {
        **_COMMON,
        "FixedImageDimension": ["4"],
        "MovingImageDimension": ["4"],
        "Interpolator": ["ReducedDimensionBSplineInterpolator"],
        "ResampleInterpolator": ["FinalReducedDimensionBSplineInterpolator"],
        "FixedImagePyramid": ["FixedSmoothingImagePyramid"],
        "MovingImagePyramid": ["MovingSmoothingImagePyramid"],
        "ImagePyramidSchedule": [str(f) for level in levels for f in (level, level, level, 0)],
        "MaximumNumberOfIterations": [str(iterations)],
        "Transform": ["BSplineStackTransform"],
        "FinalGridSpacingInPhysicalUnits": ["16"],
        "NumberOfResolutions": [str(len(levels))],
        "Metric": ["PCAMetric2"],
        "SubtractMean": ["true"],
        "MovingImageDerivativeScales": ["1", "1", "1", "0"],
        "ImageSampler": ["RandomCoordinate"],
        "NumberOfSpatialSamples": ["2048"],
        "MaximumNumberOfSamplingAttempts": ["10"],
        "ResultImagePixelType": ["float"],
        **parameters,
    }


def _image(volumes: Tensor, spacing: Sequence[float]) -> "itk.Image":
    """Convert ``(*S)`` or ``(K, *S)`` to an ITK image, x fastest, time last with a spacing of 1."""
    array = as_array(volumes) if volumes.dim() == 3 else np.stack([as_array(volume) for volume in volumes])
    image = itk.image_from_array(array)
    image.SetSpacing([*spacing, *[1.0] * (array.ndim - 3)])
    return image


def check_elastix() -> None:
    """Raise an InputError if itk-elastix is not installed."""
    if not hasattr(itk, "ParameterObject"):
        raise InputError("elastix: expected itk-elastix, found none; pip install 'groupmorph-monai[bench]'")


def _register(
    fixed: "itk.Image", moving: "itk.Image", stages: Sequence[Mapping[str, Sequence[str]] | str]
) -> "itk.ParameterObject":
    """Run stages, given as parameter maps or as names of Elastix's default maps, and return the transforms."""
    check_elastix()
    chosen = itk.ParameterObject.New()
    for stage in stages:
        chosen.AddParameterMap(chosen.GetDefaultParameterMap(stage) if isinstance(stage, str) else stage)
    _, transforms = itk.elastix_registration_method(fixed, moving, parameter_object=chosen, log_to_console=False)
    return transforms


def spline_basis(n: int, origin: float, spacing: float, points: int) -> np.ndarray:
    """Evaluate cubic B-splines on a grid of ``points`` at voxels 0 to n - 1: ``(n, points)``."""
    t = np.abs((np.arange(n)[:, None] - origin) / spacing - np.arange(points)[None])
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t) ** 3 / 6, 0))


def spline_fields(
    parameter_map: Mapping[str, Sequence[str]], size: Sequence[int], spacing: Sequence[float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """Evaluate a stack of cubic B-spline transforms as displacements in voxels of ``spacing``: ``(K, 3, *S)``."""
    points = [int(v) for v in parameter_map["GridSize"][:3]]
    origin, step = (
        [float(v) / s for v, s in zip(parameter_map[f"Grid{name}"], spacing)] for name in ("Origin", "Spacing")
    )
    basis = [spline_basis(n, origin[d], step[d], points[d]) for d, n in enumerate(size)]
    parameters = np.array([float(v) for v in parameter_map["TransformParameters"]])
    coefficients = parameters.reshape(-1, 3, *reversed(points)) / np.reshape(spacing, (3, 1, 1, 1))
    return torch.from_numpy(np.einsum("xi,yj,zk,tdkji->tdxyz", *basis, coefficients, optimize=True)).float()


def _pairs(images: Tensor, affine: Tensor, stages: Sequence[Mapping[str, Sequence[str]] | str]) -> Tensor:
    spacing = spacing_of(affine)

    def pair(fixed: Tensor, moving: Tensor) -> Tensor:
        target, source = (_image(volume, spacing) for volume in (fixed, moving))
        with tempfile.TemporaryDirectory() as folder:  # elastix also writes the field to a file
            transforms = _register(target, source, stages)
            field = itk.transformix_deformation_field(source, transforms, output_directory=folder)
        return in_voxels(itk.array_from_image(field), spacing)

    return each_onto_first(images, pair)


def _group(images: Tensor, affine: Tensor, parameters: Mapping[str, Sequence[str]]) -> Tensor:
    spacing = spacing_of(affine)
    series = _image(images, spacing)
    parameter_map = _register(series, series, [parameters]).GetParameterMap(0)
    return spline_fields(parameter_map, images.shape[1:], spacing)


def elastix_pairwise(images: Tensor, affine: Tensor = _UNIT) -> Tensor:
    """Register every timepoint to the first by Elastix's default parameter map "bspline" (advanced Mattes mutual
    information, 4 resolutions of 256 iterations, control points 10 mm apart): ``(K, *S)`` to ``(K, 3, *S)``."""
    return _pairs(images, affine, ["bspline"])


def elastix_default(images: Tensor, affine: Tensor = _UNIT) -> Tensor:
    """Register every timepoint to the first by Elastix's default parameter maps, "translation", "affine" and "bspline"
    (Klein et al. 2010, IEEE TMI 29:196; Marstal et al. 2016)."""
    return _pairs(images, affine, ["translation", "affine", "bspline"])


def elastix_breast(images: Tensor, affine: Tensor = _UNIT) -> Tensor:
    """Register every timepoint to the first by the model zoo's Par0032 for breast DCE-MRI (Gubern-Merida et al. 2015,
    MedIA 20:265), which GroupMorph's paper compares with: rigid, then B-splines 40 mm apart."""
    return _pairs(images, affine, [_BREAST_RIGID, _BREAST_SPLINE])


def elastix_pca(images: Tensor, affine: Tensor = _UNIT) -> Tensor:
    """Register all timepoints to their mean by the model zoo's Par0047 for DCE-MRI of the liver (Jansen et al. 2017,
    Phys. Med. Biol. 62:7556; metric by Huizinga et al. 2016, MedIA 29:65): B-splines 16 mm apart."""
    parameters = _groupwise((8, 4, 2, 1), 500, CheckNumberOfSamples=["true"], FinalBSplineInterpolationOrder=["3"])
    return _group(images, affine, parameters)


def elastix_groupwise(images: Tensor, affine: Tensor = _UNIT, iterations: int = 1000) -> Tensor:
    """Register all timepoints to their mean by Elastix's PCAMetric2 and a stack of B-splines, as published in the
    Elastix model zoo's Par0039 for abdominal DCE-MRI (Huizinga et al. 2016), with half of its grid spacing, 16 voxels,
    as the motion here is finer: ``(K, *S)`` to ``(K, 3, *S)``."""
    parameters = _groupwise(
        (4, 2, 1),
        iterations,
        AutomaticParameterEstimation=["true"],
        ASGDParameterEstimationMethod=["Original"],
        GridSpacingSchedule=["4", "2", "1"],
    )
    return _group(images, affine, parameters)
