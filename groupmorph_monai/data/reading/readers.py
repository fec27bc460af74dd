"""Read images and series from files.

For every format, the affine maps voxel (i, j, k) to world coordinates in RAS mm, as in NIfTI; the centre of voxel
(0, 0, 0) is at ``affine[:3, 3]``. ITK's LPS coordinates are converted here.

NIfTI files may contain two affines. As in nibabel, the sform is used if its code is above 0, else the qform, else the
voxel size alone, with the origin at the centre of the volume and the first axis pointing left.
"""

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import torch

from ...errors import InputError
from ...space.grid import Grid
from ..series import LEAST_DETERMINANT, LONGEST_MM, LPS_TO_RAS, Frame, Series, check_affine, checked_series
from ..storage import IN_MEMORY, Storage
from .dirlab import is_dirlab, read_dirlab
from .folders import dicom_paths, dicom_reader, folder_files
from .names import NIFTI_ENDINGS
from .nifti_voxels import check_stored_header, forms_apart, nifti_values
from .sidecars import even_step, sidecar, times_of_files, times_of_volumes, without_time
from .signature import check_itk_path, check_regular_file
from .text_headers import check_text_header

__all__ = ["header_grids", "read_image", "read_series"]

logger = logging.getLogger(__name__)

_GREY = "convert it to a grey-value image"
# NIfTI codes of units other than mm and s.
_UNIT_MM = {nib.nifti1.unit_codes["meter"]: 1e3, nib.nifti1.unit_codes["micron"]: 1e-3}
_TIME_UNIT_S = {nib.nifti1.unit_codes["msec"]: 1e-3, nib.nifti1.unit_codes["usec"]: 1e-6}
_HERTZ = 32  # NIfTI code of the first unit of frequencies
_SPACE_UNIT_BITS = 0x07
_MOST_COMPRESSED = 1032  # maximum number of voxels per byte: the compression limit of deflate


@dataclass(frozen=True)
class _File:
    """One image file as stored: ``data`` with any number of axes, without trailing axes of length 1, and ``warnings``
    about its header."""

    data: np.ndarray
    affine: np.ndarray
    path: str
    frame_time: float | None = None
    header: nib.Nifti1Header | None = None
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence file descriptor 2, to which MetaIO writes messages, bypassing Python, before ITK raises."""
    try:
        stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # the process has no standard error
        yield
        return
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def _load_nifti(path: str, labels: bool, storage: Storage) -> _File:
    ending = next(ending for ending in sorted(NIFTI_ENDINGS, key=len, reverse=True) if path.lower().endswith(ending))
    if path[-len(ending) :] not in (ending, ending.upper()):
        raise InputError(f"{path}: expected the ending {ending} or {ending.upper()}, got mixed case; rename it")
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(
            f"{path}: expected NIfTI, got {type(image).__name__.removesuffix('Image')}, which does not distinguish "
            "left from right; convert it to NIfTI"
        )
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind == "c":
        raise InputError(f"{path}: expected one number per voxel, got RGB or complex values; {_GREY}")
    header = image.header
    check_stored_header(image, path)
    warnings = _warn_of_two_positions(header, image.shape, path)
    data, time = nifti_values(image, path, labels, storage), float(header["pixdim"][4])
    unit = int(header["xyzt_units"]) & ~_SPACE_UNIT_BITS
    # Programs that know no frame time leave 1 without a unit; the fourth axis may also be one of frequencies.
    no_time = (time == 1 and unit == 0) or unit >= _HERTZ
    frame_time = time if data.ndim > 3 and np.isfinite(time) and time > 0 and not no_time else None
    return _File(data, _affine_mm(image), path, frame_time, header, warnings)


def _warn_of_two_positions(header: nib.Nifti1Header, shape: Sequence[int], path: str) -> tuple[str, ...]:
    """Warn if the header's qform and sform place the volume differently."""
    apart_mm = _unit_mm(header) * forms_apart(header, shape)
    if apart_mm <= 0.1:
        return ()
    warning = (
        f"qform and sform of {path} differ by up to {apart_mm:.1f} mm; the sform is used, while ITK may use the qform"
    )
    logger.warning("%s", warning)
    return (warning,)


def _unit_mm(header: nib.Nifti1Header) -> float:
    return _UNIT_MM.get(int(header["xyzt_units"]) & _SPACE_UNIT_BITS, 1.0)


def _affine_mm(image: nib.Nifti1Pair) -> np.ndarray:
    return np.diag([*[_unit_mm(image.header)] * 3, 1.0]) @ image.affine


def _load_itk(path: str, labels: bool) -> _File:
    check_itk_path(path)
    check_text_header(path)
    with _silence():
        reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        if reader is None:
            raise InputError(f"{path}: expected an ending of its format, got {Path(path).name!r}; rename it to .nrrd")
        reader.SetFileName(path)
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() > 1:
            raise InputError(
                f"{path}: expected one number per voxel, got several (RGB or vectors, or a 3D Slicer sequence); "
                f"{_GREY}, or save every volume of the sequence as a file"
            )
        image = itk.imread(path) if labels else itk.imread(path, itk.F)
    data = itk.array_from_image(image).T
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    affine, n, direction = np.eye(4), min(3, data.ndim), np.asarray(image.GetDirection())
    if not np.allclose(direction[:n, n:], 0) or not np.allclose(direction[n:, :n], 0):
        raise InputError(
            f"{path}: expected time as an axis of its own, the last, got directions that mix space and time, "
            f"{direction.tolist()}; correct the header"
        )
    affine[:n, :n] = direction[:n, :n] * spacing[:n]
    affine[:n, 3] = origin[:n]
    # ITK also returns 1 if the file has no frame time.
    frame_time = float(spacing[3]) if data.ndim > 3 and spacing[3] != 1 else None
    return _File(data, LPS_TO_RAS @ affine, path, frame_time)


def _load(path: str | Path, labels: bool = False, storage: Storage = IN_MEMORY) -> _File:
    """Read any image file.

    Raises:
        InputError: If this fails for any reason.
    """
    path = str(path)
    check_regular_file(path)
    try:
        nifti = path.lower().endswith(NIFTI_ENDINGS)
        file = _load_nifti(path, labels, storage) if nifti else _load_itk(path, labels)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"{path}: expected an image that fits into memory, got one that does not ({_reason(error)}); crop it, or "
            "correct its size in the header"
        ) from error
    except Exception as error:  # every library has its own exceptions
        and_data = ", together with its data file" if path.lower().endswith((".mhd", ".nhdr")) else ""
        raise InputError(
            f"{path}: expected a complete image, got an unreadable one ({_reason(error)}); copy or convert it again"
            + and_data
        ) from error
    # Round to the header's precision, so that written files lie exactly where their images do in memory.
    file = replace(file, affine=file.affine.astype(np.float32).astype(np.float64))
    check_affine(file.affine, f"{path}: header")
    data = file.data
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    return replace(file, data=data)


def _load_all(paths: Sequence[str | Path], storage: Storage) -> list[_File]:
    """Read image files; NIfTI in parallel, others one by one, as ITK is silenced for the whole process."""
    if storage.scans_at_once:
        files = (_load(path, storage=storage) for path in paths)
        return [replace(file, data=storage.keep(file.data)) if file.data.ndim == 3 else file for file in files]
    parallel = all(str(path).lower().endswith(NIFTI_ENDINGS) for path in paths)
    with ThreadPoolExecutor(torch.get_num_threads() if parallel else 1) as pool:
        return list(pool.map(_load, paths))


def _reason(error: Exception) -> str:
    """Shorten a library's message to one line: for ITK the text after the object's address, otherwise all of it."""
    message = str(error).strip()
    _, from_itk, reason = message.partition("ITK ERROR: ")
    reason = re.sub(r"^\w+\(0x\w+\): ", "", reason) if from_itk else message
    return " ".join(reason.split())[:160] or type(error).__name__


def read_image(path: str | Path, labels: bool = False) -> Frame:
    """Read one 3D volume as it is stored; ``labels`` keeps its dtype, otherwise it is float32."""
    file = _load(path, labels)
    _check_volume(file, 3, "split it into 3D files")
    return Frame(np.ascontiguousarray(file.data), file.affine, file.path)


def _check_volume(file: _File, most_axes: int, cure_4d: str = "split it into 3D files, or use it alone") -> None:
    shape = file.data.shape
    if not 3 <= len(shape) <= most_axes or min(shape[:3]) < 2:
        wanted = "a 3D volume" if most_axes == 3 else "a 3D volume or a 4D series"
        cure = cure_4d if len(shape) == 4 else "make one 3D file per timepoint"
        raise InputError(f"{file.path}: expected {wanted}, got shape {shape}; {cure}")


def _from_files(files: Sequence[str | Path], storage: Storage) -> Series:
    dirlab = len(files) == 1 and is_dirlab(files[0])
    loaded = [_File(*volume) for volume in read_dirlab(files[0])] if dirlab else _load_all(files, storage)
    for file in loaded:
        _check_volume(file, 4 if len(files) == 1 else 3)
    first, volumes = loaded[0], [(file, file.data) for file in loaded]
    if first.data.ndim == 4:
        volumes = [(first, first.data[..., t]) for t in range(first.data.shape[3])]
    frames = [Frame(np.ascontiguousarray(data), file.affine, file.path, header=file.header) for file, data in volumes]
    frame_time = first.frame_time
    if first.data.ndim == 4:
        frame_time_s = frame_time and frame_time * _unit_s(first.header)
        times = times_of_volumes(first.path, len(frames), frame_time_s)
        step_s = even_step(times)
        if frame_time_s and (step_s is None or not math.isclose(frame_time_s, step_s, rel_tol=0.01)):
            frame_time = None  # contradicted by the side-car
    else:
        times = times_of_files(files)
        if times is None and (untimed := without_time(files)):
            logger.warning("%s: its side-car states no acquisition time, so all times are ignored", untimed)
    logger.info("Read %d timepoints: %s", len(frames), ", ".join(Path(path).name for path in files))
    description = str(sidecar(first.path).get("SeriesDescription", ""))
    return Series(
        tuple(frames), frame_time, times, description, warnings=tuple(chain(*(file.warnings for file in loaded)))
    )


def _unit_s(header: nib.Nifti1Header | None) -> float:
    """Return the unit of the frame time in seconds according to the header; 1 if it has none."""
    return 1.0 if header is None else _TIME_UNIT_S.get(int(header["xyzt_units"]) & ~_SPACE_UNIT_BITS, 1.0)


def read_series(
    series: Series | str | Path | Sequence[str | Path] | None,
    timepoints: int | None = None,
    description: str | None = None,
    storage: Storage = IN_MEMORY,
) -> Series:
    """Read K scans of one patient; a `Series` is returned unchanged.

    Args:
        series: a 4D file; a list of 3D files in temporal order; a folder of image files, in the order of the times in
            their sidecars, or else in natural order of their names (scan2 before scan10); a DIR-Lab case, see
            `read_dirlab`; or DICOM folders or files, which `read_dicom` sorts. NIfTI is read by nibabel, as MONAI's
            metadata lacks the frame time; MHA and NRRD by ITK.
        timepoints: the number of timepoints that the network requires; None for any.
        description: pattern of series descriptions or file names that selects the series of a folder.
        storage: where to keep the volumes. Those of DICOM and DIR-Lab are always kept in memory.

    Returns:
        The series. Fill values, as outside the circular field of view of CT or in empty end slices, are replaced by the
        smallest measured value, and ``valid`` is False there. Scans with sheared axes (a tilted gantry, an affine
        registration stored in the header) are interpolated onto a grid with orthogonal axes, as neither ITK nor NIfTI's
        qform supports shear; ``valid`` is False outside their field of view. A shear below 0.001, from rounding, is
        removed from the affine instead.

    Raises:
        InputError: If the input is invalid; with a one-line message.
    """
    if isinstance(series, Series):
        return series
    paths = _checked_paths(series)
    dirlab = len(paths) == 1 and is_dirlab(paths[0])  # check this first, as raw voxels may look like DICOM
    if dicom := [] if dirlab else dicom_paths(paths):
        unchecked: Series = dicom_reader(dicom[0]).read_dicom(dicom, description)
    else:
        unchecked = _from_files(paths if dirlab else _image_files(paths, description), storage)
    return checked_series(unchecked, timepoints, storage)


def _image_files(paths: Sequence[str | Path], description: str | None) -> Sequence[str | Path]:
    """List the scans of a folder; other paths are returned as they are."""
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return folder_files(Path(paths[0]), description)
    for folder in filter(os.path.isdir, paths):
        check_regular_file(folder)
    return paths


def header_grids(
    series: Series | str | Path | Sequence[str | Path] | None, description: str | None = None
) -> list[Grid]:
    """Read the grids of a series from the headers of its NIfTI, MHA or NRRD files, without reading the voxels.

    Args:
        series: as in `read_series`.
        description: as in `read_series`.

    Returns:
        One grid per scan. The list is empty for None; for DICOM, whose headers take as long to read as the images; and
        if a file is missing, or its header is broken or describes more voxels than the file can contain: `read_series`
        reports the reason.

    Raises:
        InputError: If a folder has no images, or several series.
    """
    if series is None:
        return []
    if isinstance(series, Series):
        return [frame.grid for frame in series.frames]
    paths = _checked_paths(series)
    if not all(map(os.path.exists, paths)) or (len(paths) == 1 and is_dirlab(paths[0])) or dicom_paths(paths):
        return []
    files = _image_files(paths, description)
    try:
        return [grid for file in files for grid in _header_grids(str(file))]
    except Exception:  # every library has its own exceptions
        return []


def _header_grids(path: str) -> list[Grid]:
    check_regular_file(path)
    if path.lower().endswith(NIFTI_ENDINGS):
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):
            raise ValueError("not NIfTI")
        shape, affine = image.shape, _affine_mm(image)
    else:
        shape, affine = _itk_header(path)
    grid = Grid(shape[:3], torch.from_numpy(affine))
    if len(shape) < 3 or not (grid.affine.det().abs() > LEAST_DETERMINANT and grid.extent_mm.max() <= LONGEST_MM):
        raise ValueError("no volume of a patient")
    if math.prod(shape) > _MOST_COMPRESSED * os.path.getsize(path):
        raise ValueError("the file is too short")
    return [grid] * math.prod(shape[3:])


def _itk_header(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    check_text_header(path, voxels=False)
    with _silence():
        reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        reader.SetFileName(path)
        reader.ReadImageInformation()
    axes, affine = range(reader.GetNumberOfDimensions()), np.eye(4)
    for d in axes[:3]:
        affine[:3, d] = np.array(reader.GetDirection(d))[:3] * reader.GetSpacing(d)
        affine[d, 3] = reader.GetOrigin(d)
    return tuple(reader.GetDimensions(d) for d in axes), LPS_TO_RAS @ affine


def _checked_paths(series: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    """Check the paths of a series, which may have any type if they come from a config or a data list."""
    paths = [series] if isinstance(series, (str, Path)) else series or []
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, (str, Path)) and str(path) for path in paths):
        raise InputError(
            f"series: expected image files or a folder, got {series!r}; for example ['t0.nii.gz', 't1.nii.gz']"
        )
    if not paths:
        raise InputError("series: expected image files or a folder, got an empty list; list the scans")
    return list(paths)
