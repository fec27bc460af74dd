"""An image file as stored, and the interface of the formats that are read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import nibabel as nib
import numpy as np

from ..storage import Storage


@dataclass(frozen=True)
class ImageFile:
    """One image file.

    Args:
        data: voxels with any number of axes, ``(i, j, k, ...)``.
        affine: ``(4, 4)``, voxel to RAS mm.
        path: the file.
        frame_time: time between volumes in the header's unit; None if the header has none.
        header: header of a NIfTI file.
        warnings: doubts about the header.
    """

    data: np.ndarray
    affine: np.ndarray
    path: str
    frame_time: float | None = None
    header: nib.Nifti1Header | None = None
    warnings: tuple[str, ...] = ()


class ImageFormat(ABC):
    """A format of image files, or several that one library reads. Methods may raise the library's exceptions."""

    parallel: ClassVar[bool]  # whether files can be read by several threads at once

    @abstractmethod
    def read(self, path: str, labels: bool, storage: Storage) -> ImageFile:
        """Read a file; ``labels`` keeps its dtype, otherwise the voxels are float32."""

    @abstractmethod
    def frame_time_s(self, path: str) -> float | None:
        """Read the time between volumes, without the voxels; None if the header has none."""

    @abstractmethod
    def header(self, path: str) -> tuple[tuple[int, ...], np.ndarray]:
        """Read the shape, with any number of axes, and the affine ``(4, 4)``, voxel to RAS mm, without the voxels."""
