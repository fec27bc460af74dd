"""Greedy, by the developers of ITK-SNAP."""

import numpy as np
import SimpleITK as sitk  # noqa: N813
from picsl_greedy import Greedy3D
from torch import Tensor

from .images import as_array, each_onto_first, in_voxels, spacing_of

_METRIC = "-m WNCC 2x2x2 -n 100x50x10"


def greedy(images: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Register every timepoint to the first as in the quick start of Greedy's documentation: affine, then a stationary
    velocity, both by weighted correlation in windows of radius 2, for 100, 50 and 10 iterations (Yushkevich et al.
    2016, Alzheimer's & Dementia 12:P126; greedy.readthedocs.io, "Quick Start")."""
    spacing = spacing_of(affine)

    def pair(fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        program = Greedy3D()
        both = [sitk.GetImageFromArray(as_array(volume)) for volume in (fixed, moving)]
        for image in both:
            image.SetSpacing(spacing)
        data = dict(zip(("fixed", "moving"), both))
        program.execute(f"-i fixed moving -a {_METRIC} -ia-image-centers -o matrix", matrix=None, **data)
        program.execute(f"-i fixed moving -it matrix {_METRIC} -sv -o warp -oinv back", warp=None, back=None)
        program.execute("-rf fixed -rc forward -r warp matrix", forward=None)
        program.execute("-rf moving -rc inverse -r matrix,-1 back", inverse=None)
        fields = (sitk.GetArrayFromImage(program[name]) for name in ("forward", "inverse"))
        forward, inverse = (in_voxels(np.asarray(u), spacing) for u in fields)
        return forward, inverse

    return each_onto_first(images, pair)
