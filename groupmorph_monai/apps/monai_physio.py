"""A back end for the time-series registration of monai-physio, which has to be installed: all images at once."""

from __future__ import annotations  # ITK's types know no |

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import itk
import numpy as np
import torch
from monai_physio.register_time_series_images import RegisterTimeSeriesImages

from ..data.reading.readers import LPS_TO_RAS
from ..data.series import Frame, Series, checked_series
from ..data.writing.itk_transforms import itk_transform
from ..errors import InputError
from ..evaluation.metrics import nmi
from .api import Registration, register

__all__ = ["RegisterTimeSeriesGroupMorph"]

_LEAST_OF_CT = -1024  # Hounsfield units of air


class RegisterTimeSeriesGroupMorph(RegisterTimeSeriesImages):
    """Register a time series to the fixed image group-wise.

    The fixed image, its mask and the modality are set as for the base class; masks are dilated as it says. Label maps
    have no part in the registration.

    Args:
        log_level: of monai-physio's logger.
        settings: by name, as `groupmorph_monai.register` takes them, ``overlays`` included.

    Example::

        registrar = RegisterTimeSeriesGroupMorph(overlays=["effort/fast"])
        registrar.set_modality("mri")
        registrar.set_fixed_image(frames[0])
        result = registrar.register_time_series(frames)
    """

    def __init__(self, log_level: int | str = logging.INFO, **settings: object):
        super().__init__(log_level=log_level)
        self.settings = settings

    def register_time_series(
        self,
        moving_images: list[itk.Image],
        moving_masks: list[itk.Image | None] | None = None,
        moving_labelmaps: list[itk.Image | None] | None = None,
        reference_frame: int = 0,
        register_reference: bool = True,
    ) -> dict[str, list]:
        """Register all images to the fixed one at once.

        Args:
            moving_images: K images of any grids.
            moving_masks: K masks, or None for images without one.
            moving_labelmaps: not used.
            reference_frame: index of the image that may be left where it is.
            register_reference: False to leave it there.
        Returns: ``fixed_to_moving_transforms``, K, which resample each image on the fixed grid;
            ``moving_to_fixed_transforms``, K, their inverses; ``losses``, K: 1 less the normalised mutual information
            of the fixed and the aligned image, 0 for the image that stays.
        Raises: InputError in one line, which is a ValueError, for whatever the caller can mend.
        """
        number = len(moving_images)
        if self.fixed_image is None:
            raise InputError("fixed image: expected one, got none; call set_fixed_image first")
        if not 0 <= reference_frame < number:
            raise InputError(f"reference_frame: expected 0 to {number - 1}, got {reference_frame}; choose one of these")
        if moving_masks is not None and len(moving_masks) != number:
            raise InputError(f"moving_masks: expected {number}, got {len(moving_masks)}; give one, or None, per image")
        if moving_labelmaps is not None or self.fixed_labelmap is not None:
            self.log_warning("Label maps have no part in a registration by GroupMorph")
        moved = [k for k in range(number) if register_reference or k != reference_frame]
        images = [self.fixed_image, *(moving_images[k] for k in moved)]
        masks = [self.fixed_mask, *((moving_masks or [None] * number)[k] for k in moved)]
        frames = tuple(_frame(image, f"image {n}") for n, image in enumerate(images))
        with tempfile.TemporaryDirectory() as folder:
            given = {}
            if any(mask is not None for mask in masks):
                given["mask"] = self._mask_files(masks, images, Path(folder))
            if self.modality == "ct":
                given["intensity_least"] = _LEAST_OF_CT
            result = register(checked_series(Series(frames), None), reference=0, **{**given, **self.settings})
        transforms = {k: result.transforms[n] for n, k in enumerate(moved, start=1)}
        stays = itk.IdentityTransform[itk.D, 3].New()
        return {
            "fixed_to_moving_transforms": [
                itk_transform(transforms[k], result.grid) if k in transforms else stays for k in range(number)
            ],
            "moving_to_fixed_transforms": [
                itk_transform(transforms[k].inverse, _frame(image, "image").grid) if k in transforms else stays
                for k, image in enumerate(moving_images)
            ],
            "losses": [_loss(result, moved.index(k) + 1) if k in transforms else 0.0 for k in range(number)],
        }

    def _mask_files(self, masks: Sequence[itk.Image | None], images: Sequence[itk.Image], folder: Path) -> list[str]:
        """Write the dilated masks, and where an image has none, one of all its voxels."""
        files = []
        for n, (mask, image) in enumerate(zip(masks, images)):
            if mask is None:
                whole = itk.image_from_array(np.ones_like(itk.array_view_from_image(image), dtype=np.uint8))
                whole.CopyInformation(image)
            else:
                whole = self.labelmap_tools.convert_labelmap_to_mask(mask, dilation_in_mm=self.mask_dilation_mm)
                whole.CopyInformation(image)
            files.append(str(folder / f"mask_{n}.nrrd"))
            itk.imwrite(whole, files[-1])
        return files


def _frame(image: itk.Image, name: str) -> Frame:
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    affine[:3, 3] = np.array(image.GetOrigin())
    data = np.ascontiguousarray(itk.array_from_image(image).T, dtype=np.float32)
    return Frame(data, LPS_TO_RAS @ affine, name)


def _loss(result: Registration, k: int) -> float:
    pair = torch.from_numpy(result.warped[[0, k]])
    seen = torch.isfinite(pair).all(dim=0)
    return 1 - nmi(pair.nan_to_num(), mask=seen) if seen.any() else 1.0
