"""Read NIfTI files by nibabel, as MONAI's metadata lacks the frame time.

NIfTI files may contain two affines. As in nibabel, the sform is used if its code is above 0, else the qform, else the
voxel size alone, with the origin at the centre of the volume and the first axis pointing left.
"""

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from ...errors import InputError
from ..storage import Storage
from .image_file import ImageFile, ImageFormat
from .names import NIFTI_ENDINGS
from .nifti_voxels import has_form, nifti_values, open_nifti, positions_apart

# NIfTI codes of units other than mm and s.
_UNIT_MM = {nib.nifti1.unit_codes["meter"]: 1e3, nib.nifti1.unit_codes["micron"]: 1e-3}
_TIME_UNIT_S = {nib.nifti1.unit_codes["msec"]: 1e-3, nib.nifti1.unit_codes["usec"]: 1e-6}
_HERTZ = 32  # NIfTI code of the first unit of frequencies
_SPACE_UNIT_BITS = 0x07


class NiftiFormat(ImageFormat):
    """NIfTI-1 and NIfTI-2, as one file or as a pair of .hdr and .img, with or without gzip."""

    parallel = True

    def read(self, path: str, labels: bool, storage: Storage) -> ImageFile:
        _check_ending(path)
        image = open_nifti(path)
        kind = image.get_data_dtype()
        if kind.fields is not None or kind.kind == "c":
            raise InputError(
                f"{path}: expected one number per voxel, got RGB or complex values; convert it to a grey-value image"
            )
        warnings = _warn_of_two_positions(image.header, image.shape, path)
        data = nifti_values(image, path, labels, storage)
        frame_time = _frame_time(image.header) if data.ndim > 3 else None
        return ImageFile(data, _affine_mm(image), path, frame_time, image.header, warnings)

    def frame_time_s(self, path: str) -> float | None:
        header = open_nifti(path).header
        frame_time = _frame_time(header)
        return frame_time and frame_time * time_unit_s(header)

    def header(self, path: str) -> tuple[tuple[int, ...], np.ndarray]:
        image = open_nifti(path)
        return image.shape, _affine_mm(image)


def time_unit_s(header: nib.Nifti1Header | None) -> float:
    """Return the unit of the frame time in seconds according to the header; 1 if it has none."""
    return 1.0 if header is None else _TIME_UNIT_S.get(int(header["xyzt_units"]) & ~_SPACE_UNIT_BITS, 1.0)


def _check_ending(path: str) -> None:
    ending = next(ending for ending in sorted(NIFTI_ENDINGS, key=len, reverse=True) if path.lower().endswith(ending))
    if path[-len(ending) :] not in (ending, ending.upper()):
        raise InputError(f"{path}: expected the ending {ending} or {ending.upper()}, got mixed case; rename it")


def _warn_of_two_positions(header: nib.Nifti1Header, shape: Sequence[int], path: str) -> tuple[str, ...]:
    """Return a warning if ITK may place the volume differently: if qform and sform differ, or both are missing."""
    apart_mm = _unit_mm(header) * positions_apart(header, shape)
    if apart_mm <= 0.1:
        return ()
    if not has_form(header):
        return (
            f"neither qform nor sform of {path} is set (both codes are 0), so its orientation is unknown: it is read "
            f"as by nibabel, first axis to the left, while ITK (3D Slicer, ANTs) places it up to {apart_mm:.1f} mm "
            "elsewhere; write the right qform into its header, or apply fields to the file by 'groupmorph apply'",
        )
    apart = f"differ by up to {apart_mm:.1f} mm" if np.isfinite(apart_mm) else "differ, as the qform is invalid"
    return (
        f"qform and sform of {path} {apart}; the sform is used, while ITK (3D Slicer, ANTs) may use the qform; make "
        "them equal, or apply fields to the file by 'groupmorph apply'",
    )


def _frame_time(header: nib.Nifti1Header) -> float | None:
    """Return the frame time; None for 1 without a unit, which programs leave that know none, and for frequencies."""
    time, unit = float(header["pixdim"][4]), int(header["xyzt_units"]) & ~_SPACE_UNIT_BITS
    none = (time == 1 and unit == 0) or unit >= _HERTZ
    return time if np.isfinite(time) and time > 0 and not none else None


def _unit_mm(header: nib.Nifti1Header) -> float:
    return _UNIT_MM.get(int(header["xyzt_units"]) & _SPACE_UNIT_BITS, 1.0)


def _affine_mm(image: nib.Nifti1Pair) -> np.ndarray:
    return np.diag([*[_unit_mm(image.header)] * 3, 1.0]) @ image.affine
