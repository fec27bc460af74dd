"""Read images and series from files.

For every format, the affine maps voxel (i, j, k) to world coordinates in RAS mm, as in NIfTI; the centre of voxel
(0, 0, 0) is at ``affine[:3, 3]``.
"""

import logging
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...space.grid import Grid
from ..series import LEAST_DETERMINANT, LONGEST_MM, Frame, Series
from ..series_checks import check_affine, checked_series
from ..storage import IN_MEMORY, Storage
from .dirlab import is_dirlab, read_dirlab
from .folders import dicom_paths, dicom_reader, folder_files
from .image_file import ImageFile, ImageFormat
from .itk_format import ItkFormat
from .names import NIFTI_ENDINGS
from .nifti_format import NiftiFormat, time_unit_s
from .sidecars import contradictions, even_step, sidecar, times_of_files, times_of_volumes, without_time
from .signature import check_regular_file

logger = logging.getLogger(__name__)

_NIFTI, _ITK = NiftiFormat(), ItkFormat()
_MOST_COMPRESSED = 1032  # maximum number of voxels per byte: the compression limit of deflate


def _format(path: str | Path) -> ImageFormat:
    return _NIFTI if str(path).lower().endswith(NIFTI_ENDINGS) else _ITK


def _load(path: str | Path, labels: bool = False, storage: Storage = IN_MEMORY) -> ImageFile:
    """Read any image file.

    Raises:
        InputError: If this fails for any reason.
    """
    path = str(path)
    check_regular_file(path)
    try:
        file = _format(path).read(path, labels, storage)
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


def _load_all(paths: Sequence[str | Path], storage: Storage) -> list[ImageFile]:
    """Read image files, in parallel if all their formats allow it."""
    if storage.scans_at_once:
        files = (_load(path, storage=storage) for path in paths)
        return [replace(file, data=storage.keep(file.data)) if file.data.ndim == 3 else file for file in files]
    parallel = all(_format(path).parallel for path in paths)
    with ThreadPoolExecutor(torch.get_num_threads() if parallel else 1) as pool:
        return list(pool.map(_load, paths))


def _reason(error: Exception) -> str:
    """Shorten a library's message to one line: for ITK the text after the object's address, and of NRRD's chain of
    causes the last one; otherwise all of it."""
    reason = re.sub(r".*(?:ITK ERROR|itk::ERROR): \w+\(0x\w+\): ", "", str(error).strip(), flags=re.DOTALL)
    reason = re.sub(r".*\[nrrd\] \w+: ", "", reason, flags=re.DOTALL)
    return " ".join(reason.split())[:160] or type(error).__name__


def read_image(path: str | Path, labels: bool = False) -> Frame:
    """Read one 3D volume as it is stored.

    Args:
        path: the file: NIfTI, MHA or NRRD.
        labels: keep the dtype of the file instead of converting to float32.

    Raises:
        InputError: If the file cannot be read, or is not a 3D volume.
    """
    file = _load(path, labels)
    _check_volume(file, 3, "split it into 3D files")
    _warn(file.warnings)
    return Frame(np.ascontiguousarray(file.data), file.affine, file.path)


def _check_volume(file: ImageFile, most_axes: int, cure_4d: str = "split it into 3D files, or use it alone") -> None:
    shape = file.data.shape
    if not 3 <= len(shape) <= most_axes or min(shape[:3]) < 2:
        wanted = "a 3D volume" if most_axes == 3 else "a 3D volume or a 4D series"
        cure = cure_4d if len(shape) == 4 else "make one 3D file per timepoint"
        cure = "use the scans; a displacement field is for 'groupmorph apply'" if shape[3:] == (1, 3) else cure
        raise InputError(f"{file.path}: expected {wanted}, got shape {shape}; {cure}")


def _from_files(files: Sequence[str | Path], storage: Storage) -> Series:
    loaded = _load_all(files, storage)
    for file in loaded:
        _check_volume(file, 4 if len(files) == 1 else 3)
    first, volumes = loaded[0], [(file, file.data) for file in loaded]
    warnings = [warning for file in loaded for warning in file.warnings]
    if first.data.ndim == 4:
        volumes = [(first, first.data[..., t]) for t in range(first.data.shape[3])]
    frames = [Frame(np.ascontiguousarray(data), file.affine, file.path, header=file.header) for file, data in volumes]
    frame_time, sidecars = first.frame_time, [sidecar(file.path) for file in loaded]
    if first.data.ndim == 4:
        frame_time_s = frame_time and frame_time * time_unit_s(first.header)
        times = times_of_volumes(first.path, sidecars[0], len(frames), frame_time_s)
        step_s = even_step(times)
        if frame_time_s and (step_s is None or not math.isclose(frame_time_s, step_s, rel_tol=0.01)):
            frame_time = None  # contradicted by the sidecar
        clock = "time between frames in the header" if frame_time else "sidecar"
    else:
        times = times_of_files(sidecars)
        warnings += contradictions(files, sidecars, times)
        if times is None and (untimed := without_time(sidecars)) is not None:
            logger.warning("%s: its sidecar states no acquisition time, so all times are ignored", files[untimed])
        clock = "sidecars"
    description = str(sidecars[0].get("SeriesDescription", ""))
    return Series(tuple(frames), frame_time, times, description, warnings=tuple(warnings), clock=clock if times else "")


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
            `read_dirlab`; or DICOM folders or files, which `read_dicom` sorts.
        timepoints: the number of timepoints that the network requires; None for any.
        description: pattern of series descriptions or file names that selects the series of a folder.
        storage: where to keep the volumes. Those of DICOM and DIR-Lab are always kept in memory.

    Returns:
        The series. Fill values, as outside the circular field of view of CT or in empty end slices, are replaced by the
        smallest measured value, and ``valid`` is False there. Scans with sheared axes (a tilted gantry, an affine
        registration stored in the header) are interpolated onto a grid with orthogonal axes, as neither ITK nor NIfTI's
        qform supports shear, with a warning; ``valid`` is False outside their field of view. A shear below 0.001,
        from rounding, is removed from the affine instead.

    Raises:
        InputError: If the input is invalid; with a one-line message.
    """
    if isinstance(series, Series):
        return series
    paths = _checked_paths(series)
    if _are_dirlab(paths):  # check this first, as raw voxels may look like DICOM
        unchecked = Series(tuple(read_dirlab(paths[0])))
    elif dicom := dicom_paths(paths):
        return checked_series(dicom_reader(dicom[0]).read_dicom(dicom, description), timepoints, storage)
    else:
        unchecked = _from_files(_image_files(paths, description), storage)
    checked = checked_series(unchecked, timepoints, storage)
    _log(unchecked)
    return checked


def _log(series: Series) -> None:
    paths = dict.fromkeys(frame.path for frame in series.frames)  # a 4D file once
    logger.info("Read %d timepoints: %s", len(series.frames), ", ".join(Path(path).name for path in paths))
    _warn(series.warnings)


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        logger.warning("%s", warning)


def _are_dirlab(paths: Sequence[str | Path]) -> bool:
    return len(paths) == 1 and is_dirlab(paths[0])


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
        series, description: as in `read_series`.

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
    if not all(map(os.path.exists, paths)) or _are_dirlab(paths) or dicom_paths(paths):
        return []
    files = _image_files(paths, description)
    try:
        return [grid for file in files for grid in _header_grids(str(file))]
    except Exception:  # every library has its own exceptions
        return []


def states_times(series: str | Path | Sequence[str | Path], description: str | None = None) -> bool:
    """Check whether headers or sidecars state the acquisition times of a series, without reading the voxels.

    Args:
        series, description: as in `read_series`.

    Returns:
        True also for DICOM and for broken files, which `read_series` reports.

    Raises:
        InputError: If a folder has no images, or several series.
    """
    paths = _checked_paths(series)
    if _are_dirlab(paths) or dicom_paths(paths):
        return not _are_dirlab(paths)
    files = _image_files(paths, description)
    if len(files) > 1:
        return times_of_files([sidecar(file) for file in files]) is not None
    try:
        file = str(files[0])
        frame_time_s = _format(file).frame_time_s(file)
        return times_of_volumes(file, sidecar(file), len(_header_grids(file)), frame_time_s) is not None
    except Exception:  # every library has its own exceptions
        return True


def _header_grids(path: str) -> list[Grid]:
    check_regular_file(path)
    shape, affine = _format(path).header(path)
    grid = Grid(shape[:3], torch.from_numpy(affine))
    if len(shape) < 3 or not (grid.affine.det().abs() > LEAST_DETERMINANT and grid.extent_mm.max() <= LONGEST_MM):
        raise ValueError("no volume of a patient")
    if math.prod(shape) > _MOST_COMPRESSED * os.path.getsize(path):
        raise ValueError("the file is too short")
    return [grid] * math.prod(shape[3:])


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
