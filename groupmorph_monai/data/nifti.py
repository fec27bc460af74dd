"""NIfTI files that every program places alike."""

import io
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from isal import igzip_threaded

from ..errors import InputError
from .output_folder import all_or_nothing
from .right_angles import is_sheared
from .series import Frame
from .storage import IN_MEMORY, Storage

__all__ = ["CHECK_SETTINGS", "FASTEST", "check_finite", "nifti_image", "save_nifti", "write_image"]

FASTEST = 1  # of igzip's levels 0 to 3; the slower ones save 3 % of what float32 voxels take
CHECK_SETTINGS = "nothing is written; check the weights, and settings such as noise"


def nifti_image(
    data: np.ndarray,
    affine: np.ndarray,
    header: nib.Nifti1Header | None = None,
    frame_time: float | None = None,
    timed: nib.Nifti1Header | None = None,
) -> nib.Nifti1Image:
    """Make an image whose qform and sform are equal, so that every program places it alike.

    Args:
        affine: ``(4, 4)``, RAS mm, axes at right angles.
        header: of the file that the image comes from: its description, and the code of the form that was read, which
            both forms get. Without one the code is that of scanner coordinates.
        frame_time: between the volumes of a 4D image; None, also for an image that is not 4D, writes none.
        timed: header of the file that tells the frame time, in its unit; without one it is in seconds.
    """
    if is_sheared(affine):
        raise InputError(
            f"affine: expected axes at right angles, as ITK and NIfTI's qform hold no others, got "
            f"{np.asarray(affine).tolist()}; resample the image"
        )
    image = nib.Nifti1Image(data, affine, header, dtype=data.dtype)
    codes = [] if header is None else [int(header[f"{form}_code"]) for form in ("sform", "qform")]
    code = next((code for code in codes if code > 0), 1)
    # The units' low bits are those of space, the others those of time.
    time_unit = nib.nifti1.unit_codes["sec"] if timed is None else int(timed["xyzt_units"]) & 0x38
    image.set_qform(affine, code)
    image.set_sform(affine, code)
    image.header["xyzt_units"] = nib.nifti1.unit_codes["mm"] + (time_unit if frame_time else 0)
    image.header["pixdim"][4] = frame_time or 0
    return image


def save_nifti(image: nib.Nifti1Image, path: str | Path, storage: Storage = IN_MEMORY) -> None:
    """Write ``.nii``, or ``.nii.gz`` on as many threads as PyTorch runs: several times as fast as by zlib. The volumes
    of a series may lie in ``storage``."""
    if Path(path).suffix != ".gz":
        nib.save(image, path)
        return
    start = io.BytesIO()
    image.update_header()
    image.header.set_slope_inter(1, 0)
    image.header.write_to(start)
    with igzip_threaded.open(path, "wb", compresslevel=FASTEST, threads=torch.get_num_threads()) as file:
        file.write(start.getbuffer())
        slowest = np.asanyarray(image.dataobj).T
        for chunk in storage.chunks(len(slowest)):
            for part in slowest[chunk]:
                file.write(np.ascontiguousarray(part, image.get_data_dtype()).data)


def check_finite(values: np.ndarray, name: str | Path, what: str, cure: str) -> None:
    """Refuse NaN and infinity, which every comparison would let pass, with an InputError."""
    with np.errstate(all="ignore"):
        total = np.sum(values)  # without an array of flags beside a field of full size
    if not np.isfinite(total):
        number = int((~np.isfinite(values)).sum())
        if number:
            raise InputError(f"{name}: expected finite {what}, got {number} NaN or infinite values; {cure}")


def write_image(frame: Frame, path: str | Path, dtype: np.dtype | type | None = None) -> None:
    """Write a 3D NIfTI, complete or not at all. Types that NIfTI's readers do not share are widened or narrowed."""
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: expected a name that ends in .nii or .nii.gz; rename the output")
    data = np.asarray(frame.data, dtype=dtype)
    if data.dtype == bool:
        data = data.astype(np.uint8)
    elif data.dtype in (np.int64, np.uint64):
        fits = data.size == 0 or max(abs(int(data.min())), abs(int(data.max()))) < 2**31
        data = data.astype(np.int32 if fits else np.float64)
    elif data.dtype == np.float16:
        data = data.astype(np.float32)
    with all_or_nothing(path.parent) as folder:
        save_nifti(nifti_image(data, frame.affine), folder / path.name)
