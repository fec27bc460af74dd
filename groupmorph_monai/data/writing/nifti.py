"""Write NIfTI files that every program places at the same position."""

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from isal import igzip_threaded

from ...errors import InputError
from ..preprocessing.right_angles import is_sheared
from ..series import Frame
from ..storage import IN_MEMORY, Storage
from .integers import IntegerType
from .output_folder import atomic_folder

_MM, _SECONDS, _TIME_UNIT_BITS = 2, 8, 0x38  # NIfTI's codes of units; the low bits are the spatial unit
COMPRESSION = 2  # igzip level from 0 to 3; in the time of level 1, files are 1 % smaller, and fields 2 %
CHECK_SETTINGS = "nothing is written; check the weights, and settings such as noise"


def nifti_image(
    data: np.ndarray,
    affine: np.ndarray,
    header: nib.Nifti1Header | None = None,
    frame_time: float | None = None,
    timed: nib.Nifti1Header | None = None,
) -> nib.Nifti1Image:
    """Make an image with equal qform and sform, so that every program places it at the same position.

    Args:
        affine: ``(4, 4)``, RAS mm, orthogonal axes.
        header: header of the original file, for its description and form code, which both forms get. Without it, the
            code for scanner coordinates is used.
        frame_time: time between the volumes of a 4D image; None for no time.
        timed: header that defines the unit of the frame time; without it, the unit is seconds.

    Raises:
        InputError: If the axes are not orthogonal.
    """
    if is_sheared(affine):
        raise InputError(
            f"affine: expected orthogonal axes, as ITK and NIfTI's qform support no others, got "
            f"{np.asarray(affine).tolist()}; resample the image"
        )
    image = nib.Nifti1Image(data, affine, header, dtype=data.dtype)
    codes = [] if header is None else [int(header[f"{form}_code"]) for form in ("sform", "qform")]
    code = next((code for code in codes if code > 0), 1)
    time_unit = _SECONDS if timed is None else int(timed["xyzt_units"]) & _TIME_UNIT_BITS
    image.set_qform(affine, code)
    image.set_sform(affine, code)
    image.header["xyzt_units"] = _MM + (time_unit if frame_time else 0)
    image.header["pixdim"][4] = frame_time or 0
    return image


def save_nifti(
    image: nib.Nifti1Image, path: str | Path, storage: Storage = IN_MEMORY, integers: IntegerType | None = None
) -> None:
    """Write ``.nii`` or ``.nii.gz``, compressed with as many threads as PyTorch uses, several times as fast as zlib.

    Args:
        storage: may hold the volumes of a series.
        integers: type of the values in a ``.nii.gz``, which are rounded already; None for that of the image.
    """
    if Path(path).suffix != ".gz":
        nib.save(image, path)
        return
    start = io.BytesIO()
    slope = 1.0 if integers is None else integers.slope
    if integers is not None:
        image.set_data_dtype(integers.dtype)
    image.update_header()
    image.header.set_slope_inter(slope, 0)
    image.header.write_to(start)
    with igzip_threaded.open(path, "wb", compresslevel=COMPRESSION, threads=torch.get_num_threads()) as file:
        file.write(start.getbuffer())
        slowest = np.asanyarray(image.dataobj).T
        for chunk in storage.chunks(len(slowest)):
            for part in slowest[chunk]:
                values = part if integers is None else part / np.float32(slope)
                file.write(np.ascontiguousarray(values, image.get_data_dtype()).data)


def check_finite(values: np.ndarray, name: str | Path, what: str, cure: str) -> None:
    """Check that all values are finite.

    Raises:
        InputError: If there are NaN or infinite values.
    """
    with np.errstate(all="ignore"):
        total = np.sum(values)  # avoids a mask as large as the field
    if not np.isfinite(total):
        number = int((~np.isfinite(values)).sum())
        if number:
            raise InputError(f"{name}: expected finite {what}, got {number} NaN or infinite values; {cure}")


def write_image(frame: Frame, path: str | Path) -> None:
    """Write a 3D NIfTI atomically. Data types that not all NIfTI readers support are converted.

    Raises:
        InputError: If the name does not end in .nii or .nii.gz.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"--output: expected a name that ends in .nii or .nii.gz, got {path}; rename it")
    data = frame.data
    if data.dtype == bool:
        data = data.astype(np.uint8)
    elif data.dtype in (np.int64, np.uint64):
        fits = data.size == 0 or max(abs(int(data.min())), abs(int(data.max()))) < 2**31
        data = data.astype(np.int32 if fits else np.float64)
    elif data.dtype == np.float16:
        data = data.astype(np.float32)
    with atomic_folder(path.parent) as folder:
        save_nifti(nifti_image(data, frame.affine), folder / path.name)
