"""Open NIfTI files, check their headers, and read their voxels to the end of the file."""

import contextlib
import gzip
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel import imageglobals
from nibabel.spatialimages import HeaderDataError

from ...errors import InputError
from ..series import LPS_TO_RAS
from ..storage import IN_MEMORY, Storage
from .signature import other_content

_KINDS = (nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair)
_LARGEST_OFFSET = 2**31  # maximum position of the voxels in a file
_quiet = ContextVar("quiet", default=False)
imageglobals.logger.addFilter(lambda record: not _quiet.get())


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Silence nibabel, which logs how it corrects a header: `_check_stored_header` refuses what matters."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def open_nifti(path: str | Path) -> nib.Nifti1Pair:
    """Open a NIfTI file, or a pair of files, and check its header, without reading the voxels.

    Raises:
        InputError: If it is no NIfTI, or its header contains invalid values.
    """
    kind = next((kind for kind in _KINDS if kind.path_maybe_image(path)[0]), None)
    if kind is None and nib.AnalyzeImage.path_maybe_image(path)[0]:
        raise InputError(
            f"{path}: expected NIfTI, got Analyze, which does not distinguish left from right; convert it to NIfTI"
        )
    if kind is None:
        raise InputError(f"{path}: expected NIfTI, got {other_content(path)}")
    try:
        with _quiet_nibabel():
            _check_stored_header(kind, str(path))
            return kind.from_filename(path)
    except HeaderDataError as error:
        raise InputError(f"{path}: expected a valid header, got '{error}'; correct it, or convert the image") from error


def nifti_values(image: nib.Nifti1Pair, path: str, labels: bool = False, storage: Storage = IN_MEMORY) -> np.ndarray:
    """Read the voxels, and gzip files to their end: nibabel stops before the checksum there.

    Raises:
        InputError: If so many bytes follow the voxels that the header must declare too few voxels, or if it announces
            an extension that must be among the voxels.
    """
    try:
        data, unread = _values_and_unread_bytes(image, path, labels, storage, igzip.open)
    except (EOFError, gzip.BadGzipFile):  # other data after the complete image, which igzip refuses, does no harm
        data, unread = _values_and_unread_bytes(image, path, labels, storage, gzip.open)
    # One voxel fewer along any axis leaves at least this; slight padding does no harm.
    least = image.get_data_dtype().itemsize * math.prod(sorted(image.shape[:3])[:2])
    if unread >= least > 0:
        raise InputError(
            f"{path}: expected the file to end with the voxels, got {unread} more bytes after {image.shape} voxels of "
            f"{image.get_data_dtype()}; correct dim and datatype in the header, or convert the image again"
        )
    if unread and _has_extension_at_voxels(image, unread):
        raise InputError(
            f"{path}: expected the voxels after the header's extensions, got an extension that vox_offset does not "
            "count; correct vox_offset, or convert the image again"
        )
    return data


def _has_extension_at_voxels(image: nib.Nifti1Pair, unread: int) -> bool:
    """Check whether a file with bytes after the voxels announces extensions for which there is no room before
    ``vox_offset``, or continues with another one there, as if a program had added it without moving ``vox_offset``."""
    if not isinstance(image, nib.Nifti1Image):  # in a pair, extensions and voxels are in two files
        return False
    assert isinstance(image.dataobj, nib.arrayproxy.ArrayProxy)  # not loaded
    start, offset = int(image.header["sizeof_hdr"]), int(image.dataobj.offset)
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        file.seek(start)
        announced = file.read(1) != b"\0"
        file.seek(offset)
        size = int.from_bytes(file.read(4), "little" if image.header.endianness == "<" else "big")
    least = 16  # bytes of an extension; all sizes are multiples
    return announced and (offset < start + 4 + least or (least <= size <= unread and size % least == 0))


def _values_and_unread_bytes(
    image: nib.Nifti1Pair, path: str, labels: bool, storage: Storage, open_gzip: Callable[[str], gzip.GzipFile]
) -> tuple[np.ndarray, int]:
    """Read the voxels, and count the bytes after them."""
    with open_gzip(path) if path.lower().endswith(".nii.gz") else contextlib.nullcontext() as file:
        if file is not None and isinstance(image, nib.Nifti1Image):  # true for every image in .nii.gz
            with _quiet_nibabel():
                image = image.from_stream(file)
        if labels:
            data = np.asarray(image.dataobj)
        elif storage.scans_at_once and image.ndim == 4:
            data = np.moveaxis(storage.empty_array((image.shape[3], *image.shape[:3]), np.float32), 0, 3)
            for chunk in storage.chunks(image.shape[3]):
                data[..., chunk] = image.dataobj[..., chunk]
        else:
            data = image.get_fdata(dtype=np.float32, caching="unchanged")
        return data, _unread_bytes(image, file)


def _unread_bytes(image: nib.Nifti1Pair, file: gzip.GzipFile | None) -> int:
    """Count the bytes after the voxels, those of a gzip file from its current position."""
    if file is None:
        assert isinstance(image.dataobj, nib.arrayproxy.ArrayProxy)  # not loaded
        holder = image.file_map["image"]
        if holder.filename is None or str(holder.filename).lower().endswith(".gz"):
            return 0
        end = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
        return os.path.getsize(holder.filename) - int(end)
    unread = 0
    try:
        while block := file.read(1 << 20):
            unread += len(block)
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):  # other data after the complete image does no harm
            raise
    return unread


def _check_stored_header(kind: type[nib.Nifti1Pair], path: str) -> None:
    """Refuse values that nibabel would replace by a guess: a non-integer ``vox_offset`` or one inside the header, an
    infinite scale, an unknown code or handedness, or missing voxel sizes without sform.

    Raises:
        InputError: For such values.
    """
    files = kind.filespec_to_file_map(path)
    with files.get("header", files["image"]).get_prepare_fileobj("rb") as file:
        header = kind.header_class.from_fileobj(file, check=False)
    axes = header["dim"][0]
    if not 1 <= axes <= 7:  # nibabel takes this for swapped bytes
        raise InputError(
            f"{path}: expected a number of axes from 1 to 7 in dim[0], got {min(axes, axes.byteswap())}; correct the "
            "header"
        )
    offset = float(header["vox_offset"])
    least = kind.header_class.single_vox_offset if header["magic"] == kind.header_class.single_magic else 0
    if not offset.is_integer() or not least <= offset <= _LARGEST_OFFSET:
        raise InputError(
            f"{path}: expected the position of the voxels in vox_offset, such as 352, got {offset:g}; correct the "
            "header"
        )
    if np.isinf(header["scl_slope"]):
        raise InputError(f"{path}: expected a finite scl_slope, got {header['scl_slope']}; correct the header")
    for name in ("qform_code", "sform_code"):
        if not 0 <= int(header[name]) <= 5:
            raise InputError(f"{path}: expected a {name} from 0 to 5, got {int(header[name])}; correct the header")
    sign = float(header["pixdim"][0])
    if int(header["sform_code"]) <= 0 < int(header["qform_code"]) and sign not in (-1, 0, 1):
        raise InputError(
            f"{path}: expected 1 or -1 in pixdim[0], the sign of the qform, got {sign}; correct the header"
        )
    sizes = header["pixdim"][1:4]
    if int(header["sform_code"]) <= 0 and not (np.isfinite(sizes) & (sizes != 0)).all():
        raise InputError(f"{path}: expected voxel sizes in pixdim, got {sizes.tolist()}; correct the header")


def has_form(header: nib.Nifti1Header) -> bool:
    """Check whether a header has a qform or an sform."""
    return max(int(header["qform_code"]), int(header["sform_code"])) > 0


def positions_apart(header: nib.Nifti1Header, shape: Sequence[int]) -> float:
    """Compute the maximum distance between the volume's corners as placed by nibabel and by ITK, in the header's unit.

    nibabel prefers the sform, and ITK may use the qform; with one form alone, both use that. Without any, ITK places
    voxel (0, 0, 0) at the origin, with axes along LPS. The sform is first converted to a qform, so that rounding of its
    quaternion (up to 1e-3 radians for rotations near 180 degrees) and shear, which a qform cannot represent, do not
    count.
    """
    if not has_form(header):
        difference = LPS_TO_RAS @ np.diag([*header["pixdim"][1:4], 1.0]) - header.get_base_affine()
    elif min(int(header["qform_code"]), int(header["sform_code"])) <= 0:
        return 0.0
    else:
        rounded = header.copy()
        try:
            rounded.set_qform(header.get_sform())
            difference = rounded.get_qform() - header.get_qform()
        except (ValueError, np.linalg.LinAlgError):  # no unit quaternion, or no invertible sform
            return np.inf
    corners = np.array(list(product(*[(0, n - 1) for n in (*shape, 1, 1)[:3]], (1,))))
    return float(np.linalg.norm(corners @ difference.T, axis=1).max())
