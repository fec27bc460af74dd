"""Back end for the time-series registration of monai-physio, an optional dependency."""

from __future__ import annotations  # ITK's types do not support |

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
import torch
from monai_physio.register_time_series_images import RegisterTimeSeriesImages

from ..data.series import LPS_TO_RAS, Frame, Series
from ..data.writing.itk_transforms import itk_transform
from ..errors import InputError
from ..evaluation.metrics import nmi
from .api import Registration, register

_AIR_HU = -1024  # lowest intensity of CT


class RegisterTimeSeriesGroupMorph(RegisterTimeSeriesImages):
    """Group-wise registration of a time series to a fixed image.

    The fixed image, its mask, the dilation of masks and the modality are set by the methods of the base class. Label
    maps are not used.

    Args:
        log_level: level of monai-physio's logger.
        settings: keyword arguments of `groupmorph_monai.register`: settings by name, and ``overlays``.

    Example::

        registrar = RegisterTimeSeriesGroupMorph(overlays=["effort/fast"])
        registrar.set_modality("mri")
        registrar.set_fixed_image(frames[0])
        result = registrar.register_time_series(frames)
    """

    def __init__(self, log_level: int | str = logging.INFO, **settings: Any):
        super().__init__(log_level=log_level)
        self.settings = settings

    def register_time_series(
        self,
        moving_images: list[itk.Image],
        moving_masks: list[itk.Image | None] | None = None,
        moving_labelmaps: list[itk.Image | None] | None = None,
        reference_frame: int = 0,
        register_reference: bool = True,
    ) -> dict[str, list[Any]]:
        """Register all images to the fixed image jointly.

        Args:
            moving_images: K images on any grids.
            moving_masks: K masks, each may be None; None for no masks.
            moving_labelmaps: not used.
            reference_frame: index of the image that need not be registered.
            register_reference: whether to register it; if not, its transform is the identity.

        Returns:
            ``fixed_to_moving_transforms``, K transforms that resample each image to the fixed grid;
            ``moving_to_fixed_transforms``, their inverses; ``losses``, K numbers: 1 minus the normalised mutual
            information of the fixed and the aligned image, or 0 for an image that is not registered.

        Raises:
            InputError: If an argument is invalid; a ValueError.
        """
        count = len(moving_images)
        if self.fixed_image is None:
            raise InputError("fixed image: expected one, got none; call set_fixed_image first")
        if not 0 <= reference_frame < count:
            raise InputError(f"reference_frame: expected 0 to {count - 1}, got {reference_frame}; choose one of these")
        if moving_masks is not None and len(moving_masks) != count:
            raise InputError(f"moving_masks: expected {count}, got {len(moving_masks)}; pass one, or None, per image")
        if moving_labelmaps is not None or self.fixed_labelmap is not None:
            self.log_warning("GroupMorph does not use label maps")
        registered = [k for k in range(count) if register_reference or k != reference_frame]
        images = [self.fixed_image, *(moving_images[k] for k in registered)]
        masks = [self.fixed_mask, *((moving_masks or [None] * count)[k] for k in registered)]
        frames = tuple(_frame(image, f"image {n}") for n, image in enumerate(images))
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {}
            if any(mask is not None for mask in masks):
                options["mask"] = self._mask_files(masks, images, Path(folder))
            if self.modality == "ct":
                options["intensity_least"] = _AIR_HU
            result = register(Series(frames), reference=0, **{**options, **self.settings})
        for reason in result.verdict["reasons"]:
            self.log_warning(reason)
        transforms = {k: result.transforms[n] for n, k in enumerate(registered, start=1)}
        identity = itk.IdentityTransform[itk.D, 3].New()
        return {
            "fixed_to_moving_transforms": [
                itk_transform(transforms[k], result.grid) if k in transforms else identity for k in range(count)
            ],
            "moving_to_fixed_transforms": [
                itk_transform(transforms[k].inverse, _frame(image, "image").grid) if k in transforms else identity
                for k, image in enumerate(moving_images)
            ],
            "losses": [_loss(result, registered.index(k) + 1) if k in transforms else 0.0 for k in range(count)],
        }

    def _mask_files(self, masks: Sequence[itk.Image | None], images: Sequence[itk.Image], folder: Path) -> list[str]:
        """Write one mask file per image: its dilated mask or, without one, a mask of all voxels."""
        files = []
        for n, (mask, image) in enumerate(zip(masks, images)):
            if mask is None:
                mask_image = itk.image_from_array(np.ones_like(itk.array_view_from_image(image), dtype=np.uint8))
            else:
                mask_image = self.labelmap_tools.convert_labelmap_to_mask(mask, dilation_in_mm=self.mask_dilation_mm)
            mask_image.CopyInformation(image if mask is None else mask)
            files.append(str(folder / f"mask_{n}.nrrd"))
            itk.imwrite(mask_image, files[-1])
        return files


def _frame(image: itk.Image, name: str) -> Frame:
    """Convert an image of ITK, whose coordinates are LPS."""
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    affine[:3, 3] = np.array(image.GetOrigin())
    data = np.ascontiguousarray(itk.array_from_image(image).T, dtype=np.float32)
    return Frame(data, LPS_TO_RAS @ affine, name)


def _loss(result: Registration, k: int) -> float:
    """Return 1 minus the normalised mutual information of the fixed image and image ``k``; 1 without overlap."""
    pair = torch.from_numpy(result.warped[[0, k]])
    overlap = torch.isfinite(pair).all(dim=0)
    return 1 - nmi(pair.nan_to_num(), mask=overlap) if overlap.any() else 1.0
