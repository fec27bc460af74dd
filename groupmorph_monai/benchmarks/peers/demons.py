"""Diffeomorphic demons of SimpleITK."""

from typing import Any

import SimpleITK as sitk  # noqa: N813
from torch import Tensor

from .images import as_array, each_onto_first, in_voxels, spacing_of

_LEVELS = ((4, 15), (2, 10), (1, 5))  # shrink factor, iterations
_FIELD_SIGMA_VOXELS, _STEP_VOXELS = 1.5, 2.0


def _shrunk(image: sitk.Image, factor: int) -> sitk.Image:
    if factor == 1:
        return image
    smooth = sitk.SmoothingRecursiveGaussian(image, [0.5 * factor * s for s in image.GetSpacing()])
    return sitk.Shrink(smooth, [min(factor, n // 4) or 1 for n in image.GetSize()])


def _onto(field: sitk.Image, grid: sitk.Image) -> sitk.Image:
    resample = sitk.ResampleImageFilter()
    resample.SetReferenceImage(grid)
    resample.SetUseNearestNeighborExtrapolator(True)
    return resample.Execute(field)


def _displacement(fixed: sitk.Image, moving: sitk.Image) -> sitk.Image:
    moving = sitk.HistogramMatching(moving, fixed, 1024, 7, True)
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SmoothDisplacementFieldOn()
    method.SetStandardDeviations(_FIELD_SIGMA_VOXELS)
    method.SmoothUpdateFieldOff()
    method.SetMaximumUpdateStepLength(_STEP_VOXELS)
    method.SetUseGradientType(method.Symmetric)
    field: Any = None
    for factor, iterations in _LEVELS:
        pair = _shrunk(fixed, factor), _shrunk(moving, factor)
        method.SetNumberOfIterations(iterations)
        field = method.Execute(*pair) if field is None else method.Execute(*pair, _onto(field, pair[0]))
    return field


def demons(images: Tensor, affine: Tensor) -> Tensor:
    """Register every timepoint to the first with the defaults of the authors' program DemonsRegistration (Vercauteren
    et al. 2007, "Diffeomorphic demons using ITK's finite difference solver hierarchy", Insight Journal 510): 15, 10 and
    5 iterations on three levels, the field smoothed over 1.5 voxels, steps of at most 2 voxels, symmetric forces, and
    its option to match histograms, as contrast agent changes them."""
    spacing = spacing_of(affine)

    def pair(fixed: Tensor, moving: Tensor) -> Tensor:
        both = [sitk.GetImageFromArray(as_array(volume)) for volume in (fixed, moving)]
        for image in both:
            image.SetSpacing(spacing)
        return in_voxels(sitk.GetArrayFromImage(_displacement(*both)), spacing)

    return each_onto_first(images, pair)
