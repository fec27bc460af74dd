"""ConvexAdam, by the organisers of the Learn2Reg challenge."""

import numpy as np
import torch
from convexAdam.convex_adam_MIND import convex_adam_pt
from torch import Tensor

from .images import each_onto_first


def convex_adam(images: Tensor, affine: Tensor) -> Tensor:
    """Register every timepoint to the first with the defaults of the authors' package (Siebert et al. 2024,
    "ConvexAdam: self-configuring dual-optimisation-based 3D multitask medical image registration", IEEE TMI): MIND
    features of radius 1 and dilation 2, a coupled convex search of 4 cells of 6 voxels, inverse consistency, 80
    iterations of Adam on every second voxel, lambda 1.25. Its fields are already in voxels."""

    def pair(fixed: Tensor, moving: Tensor) -> Tensor:
        field = convex_adam_pt(fixed.contiguous(), moving.contiguous(), dtype=torch.float32)
        return torch.from_numpy(np.moveaxis(field, -1, 0).copy()).float()

    return each_onto_first(images, pair)
