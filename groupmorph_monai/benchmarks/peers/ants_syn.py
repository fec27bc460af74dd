"""SyN of ANTs."""

import tempfile
from typing import Any

import ants
import numpy as np
import torch
from torch import Tensor

from .images import each_onto_first, spacing_of


def syn_mi(images: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Register every timepoint to the first like ANTs' script antsRegistrationSyNQuick.sh: rigid, affine, and SyN by
    mutual information with 32 bins, for 100, 70, 50 and 0 iterations (Avants et al. 2011, NeuroImage 54:2033)."""
    return _register(images, affine, "antsRegistrationSyNQuick[s]")


def syn_cc(images: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Register every timepoint to the first like ANTs' script antsRegistrationSyN.sh: as ``syn_mi``, but SyN by local
    correlation in windows of ANTsPy's radius, 2 voxels, for 100, 70, 50 and 20 iterations (Avants et al. 2008, MedIA
    12:26)."""
    return _register(images, affine, "antsRegistrationSyN[s]")


def _register(images: Tensor, affine: Tensor, transform: str) -> tuple[Tensor, Tensor]:
    spacing = spacing_of(affine)

    def pair(fixed: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
        target, source = (
            ants.from_numpy(volume.numpy().astype(np.float32), spacing=tuple(spacing)) for volume in (fixed, moving)
        )
        with tempfile.TemporaryDirectory() as folder:
            result = ants.registration(
                target, source, type_of_transform=transform, outprefix=f"{folder}/", random_seed=1
            )
            forward_mm = _composed(target, source, result["fwdtransforms"], [False, False], f"{folder}/forward")
            inverse_mm = _composed(source, target, result["invtransforms"], [True, False], f"{folder}/inverse")
        fields_mm = (forward_mm, inverse_mm)
        forward, inverse = (torch.from_numpy(np.moveaxis(u / spacing, -1, 0)).float() for u in fields_mm)
        return forward, inverse

    return each_onto_first(images, pair)


def _composed(fixed: Any, moving: Any, transforms: list[str], invert: list[bool], prefix: str) -> np.ndarray:
    """Compute the field of a chain of transforms of ANTsPy's images, in mm, ``(*S, 3)``."""
    file = ants.apply_transforms(fixed, moving, transforms, whichtoinvert=invert, compose=prefix)
    return ants.image_read(file).numpy()
