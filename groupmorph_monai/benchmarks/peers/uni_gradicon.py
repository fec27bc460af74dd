"""uniGradICON, a network for all anatomies, whose authors provide its weights for download."""

import os
from pathlib import Path

import itk
import unigradicon
from icon_registration.itk_wrapper import register_pair
from torch import Tensor

from . import MissingError
from .images import as_array, each_onto_first, in_voxels, spacing_of

_WEIGHTS = Path("network_weights/unigradicon1.0/Step_2_final.trch")  # default path of the package
_ITERATIONS = 50
_CT_BELOW = -300.0  # HU; only CT contains lower values


def uni_gradicon(images: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Register every timepoint to the first with the defaults of the authors' program (Tian et al. 2024, "uniGradICON:
    a foundation model for medical image registration", MICCAI): the network, then 50 iterations of instance
    optimization by LNCC.

    Weights are read from ``UNIGRADICON_WEIGHTS``, or from the package's download path.

    Raises:
        MissingError: If there are no weights at this path.
    """
    weights = Path(os.environ.get("UNIGRADICON_WEIGHTS", _WEIGHTS))
    if not weights.is_file():
        raise MissingError(f"no weights at {weights}; download them, or set UNIGRADICON_WEIGHTS to their path")
    spacing = spacing_of(affine)
    network = unigradicon.get_unigradicon(unigradicon.make_sim("lncc"), weights_location=str(weights))
    modality = "ct" if float(images.min()) < _CT_BELOW else "mri"

    def pair(fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        both = [itk.image_from_array(as_array(volume)) for volume in (moving, fixed)]
        for image in both:
            image.SetSpacing(spacing)
        scaled = [unigradicon.preprocess(image, modality) for image in both]
        transforms = register_pair(network, *scaled, finetune_steps=_ITERATIONS)
        forward, inverse = (field_of(transform, both[1], spacing) for transform in transforms)
        return forward, inverse

    return each_onto_first(images, pair)


def field_of(transform: itk.Transform, grid: itk.Image, spacing: list[float]) -> Tensor:
    """Convert an ITK transform to a field ``(3, *S)`` in voxels of ``grid``."""
    field = itk.transform_to_displacement_field_filter(transform, reference_image=grid, use_reference_image=True)
    return in_voxels(itk.array_from_image(field), spacing)
