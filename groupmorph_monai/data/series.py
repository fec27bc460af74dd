"""Series of volumes with their positions in the patient."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import torch

from ..space.alignment import check_reference
from ..space.grid import Grid

if TYPE_CHECKING:
    from .dicom.plane import Plane  # needs pydicom, which is optional

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from coordinates of DICOM and ITK to those of NIfTI, as used here
LEAST_DETERMINANT = 1e-12  # mm^3; minimum determinant of an affine matrix
LEAST_VOXELS = 4  # minimum size of a scan and of a working grid along each axis
LONGEST_MM = 1e4  # maximum extent of a volume of a patient


@dataclass(frozen=True)
class Frame:
    """One volume.

    Args:
        data: voxels, ``(i, j, k)``, float32 or labels.
        affine: ``(4, 4)``, voxel to RAS mm.
        path: its file, for messages and reports.
        valid: ``(i, j, k)`` bool, True for measured voxels and False for fill values; None if unknown.
        header: header of its NIfTI file.
    """

    data: np.ndarray
    affine: np.ndarray
    path: str
    valid: np.ndarray | None = None
    header: nib.Nifti1Header | None = None

    @property
    def grid(self) -> Grid:
        return Grid(self.data.shape, torch.as_tensor(self.affine))

    @property
    def content(self) -> Hashable:
        """Shape, positions and hash of the voxels, which copies of the volume share."""
        return self.data.shape, self.affine.tobytes(), blake2b(np.ascontiguousarray(self.data).data).digest()


@dataclass(frozen=True)
class Series:
    """K volumes of one patient in temporal order.

    Args:
        frames: K volumes.
        frame_time: time between frames in the header's unit, or in seconds without header; None if unknown or uneven.
        times_s: times of all frames in seconds since the first one, if known.
        description: series description of the scanner, if known.
        slices: DICOM slices of each frame; None for other formats.
        warnings: doubts about the files; each warning is a reason to check the registration.
        clock: what gave the times, such as a DICOM attribute; empty if they are unknown.
    """

    frames: tuple[Frame, ...]
    frame_time: float | None = None
    times_s: tuple[float, ...] | None = None
    description: str = ""
    slices: tuple[Sequence["Plane"], ...] | None = None
    warnings: tuple[str, ...] = ()
    clock: str = ""

    @property
    def names(self) -> list[str]:
        """Readable name of each timepoint: the scanner's description of its series, or the name of its file."""
        described = [planes[0].source.description for planes in self.slices or ()]
        return [name or Path(frame.path).name for name, frame in zip_longest(described, self.frames)]

    @property
    def dicom_slices(self) -> tuple[Sequence["Plane"], ...]:
        """DICOM slices of each frame.

        Raises:
            ValueError: If the series has another format.
        """
        if self.slices is None:
            raise ValueError("series: expected one that was read from DICOM, got another format")
        return self.slices

    def check_reference(self, reference: int | None) -> None:
        """Check the index of the reference timepoint.

        Raises:
            InputError: If there is no such timepoint.
        """
        check_reference(reference, len(self.frames))
