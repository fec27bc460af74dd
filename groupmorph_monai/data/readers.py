"""From files to a series of volumes with their place in the patient.

Whatever the format, an affine takes voxel (i, j, k) to the world in RAS mm, as in NIfTI; the centre of voxel (0, 0, 0)
lies at ``affine[:3, 3]``. ITK's LPS ends here.

A NIfTI file may hold two such maps. As nibabel does, the sform is taken where its code is above 0, else the qform, else
the voxel size alone with the origin in the middle of the volume and the first axis pointing left.
"""

import contextlib
import gzip
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import torch

from ..errors import InputError
from ..space.geometry import Grid
from .dirlab import is_dirlab, read_dirlab
from .folders import dicom_paths, dicom_reader, folder_files
from .names import NIFTI_ENDINGS
from .series import LONGEST_MM, Frame, Series, checked_series
from .sidecars import sidecar, times_of_files, times_of_volumes

__all__ = ["header_grids", "read_image", "read_series"]

logger = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_GREY = "convert it to a grey-value image"
# NIfTI's codes of units other than mm, and what they measure.
_UNIT_MM = {nib.nifti1.unit_codes["meter"]: 1e3, nib.nifti1.unit_codes["micron"]: 1e-3}
_TIME_UNIT_S = {nib.nifti1.unit_codes["msec"]: 1e-3, nib.nifti1.unit_codes["usec"]: 1e-6}
_SPACE_UNIT_BITS = 0x07
_MOST_COMPRESSED = 1032  # voxels that a byte may hold: deflate makes nothing smaller


@dataclass(frozen=True)
class _File:
    """One image file as stored: ``data`` of any number of axes, trailing axes of one voxel gone."""

    data: np.ndarray
    affine: np.ndarray
    path: str
    frame_time: float | None = None
    header: nib.Nifti1Header | None = None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on file descriptor 2: MetaIO writes its complaints there, past Python, before ITK raises."""
    try:
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # A process without standard error has nothing to be silenced.
        yield
        return
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _load_nifti(path: str, labels: bool) -> _File:
    image = nib.load(path)
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(
            f"{path}: expected NIfTI, got {type(image).__name__.removesuffix('Image')}, which does not tell left from "
            "right; convert it to NIfTI"
        )
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind == "c":
        raise InputError(f"{path}: expected one number a voxel, got RGB or complex values; {_GREY}")
    header = image.header
    _check_stored_header(image, path)
    apart_mm = _unit_mm(header) * _forms_apart(header, image.shape)
    if apart_mm > 0.1:
        logger.warning(
            "%s: qform and sform place the volume up to %.1f mm apart; the sform is used, while ITK may use the qform",
            path,
            apart_mm,
        )
    data, time = _values(image, path, labels), float(header["pixdim"][4])
    return _File(
        data, _affine_mm(image), path, time if data.ndim > 3 and np.isfinite(time) and time > 0 else None, header
    )


def _unit_mm(header: nib.Nifti1Header) -> float:
    return _UNIT_MM.get(int(header["xyzt_units"]) & _SPACE_UNIT_BITS, 1.0)


def _affine_mm(image: nib.Nifti1Pair) -> np.ndarray:
    return np.diag([*[_unit_mm(image.header)] * 3, 1.0]) @ image.affine


def _values(image: nib.Nifti1Pair, path: str, labels: bool) -> np.ndarray:
    """Read the voxels, and of a single gzip file its end too: nibabel stops before the checksum that stands there."""
    with gzip.open(path) if path.lower().endswith(".nii.gz") else contextlib.nullcontext() as file:
        image = image if file is None else type(image).from_stream(file)
        data = np.asarray(image.dataobj) if labels else image.get_fdata(dtype=np.float32, caching="unchanged")
        try:
            while file is not None and file.read(1 << 20):
                pass
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" not in str(error):  # what else follows the whole image does no harm
                raise
    return data


def _check_stored_header(image: nib.Nifti1Image, path: str) -> None:
    """Refuse what nibabel would replace by a guess: an infinite scale; no voxel size where no sform tells it."""
    with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    if np.isinf(header["scl_slope"]):
        raise InputError(f"{path}: expected a finite scl_slope, got {header['scl_slope']}; mend the header")
    sizes = header["pixdim"][1:4]
    if int(header["sform_code"]) <= 0 and not (np.isfinite(sizes) & (sizes != 0)).all():
        raise InputError(f"{path}: expected voxel sizes in pixdim, got {sizes.tolist()}; mend the header")


def _forms_apart(header: nib.Nifti1Header, shape: Sequence[int]) -> float:
    """The longest distance between where the qform and the sform put a corner of the volume; 0 with only one of them.

    The sform is compared as a qform would hold it: what its quaternion rounds (up to 1e-3 radians, next to half a turn)
    and the shear that it cannot hold are no contradiction.
    """
    if min(int(header["qform_code"]), int(header["sform_code"])) <= 0:
        return 0.0
    rounded = header.copy()
    try:
        rounded.set_qform(header.get_sform())
        difference = rounded.get_qform() - header.get_qform()
    except (ValueError, np.linalg.LinAlgError):  # no unit quaternion, or no invertible sform
        return np.inf
    corners = np.array(list(product(*[(0, n - 1) for n in shape[:3]], (1,))))
    return float(np.linalg.norm(corners @ difference.T, axis=1).max())


def _load_itk(path: str, labels: bool) -> _File:
    with _silence():
        reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        if reader is None:
            raise InputError(f"{path}: expected an image (NIfTI, MHA, NRRD), got a file that is none; leave it out")
        reader.SetFileName(path)
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() > 1:
            raise InputError(
                f"{path}: expected one number a voxel, got several (RGB or vectors, or a sequence of 3D Slicer); "
                f"{_GREY}, or save every volume of a sequence as a file"
            )
        image = itk.imread(path) if labels else itk.imread(path, itk.F)
    data = itk.array_from_image(image).T
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    affine, n = np.eye(4), min(3, data.ndim)
    affine[:n, :n] = np.asarray(image.GetDirection())[:n, :n] * spacing[:n]
    affine[:n, 3] = origin[:n]
    # 1 is what ITK says, too, where the file says nothing.
    frame_time = float(spacing[3]) if data.ndim > 3 and spacing[3] != 1 else None
    return _File(data, LPS_TO_RAS @ affine, path, frame_time)


def _load(path: str | Path, labels: bool = False) -> _File:
    """Read any image file; every way to fail ends in an InputError."""
    path = str(path)
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder; check the path")
    if Path(path).is_dir():
        raise InputError(f"{path}: expected an image file, got a folder; give one folder alone, or files")
    try:
        file = (_load_nifti if path.lower().endswith(NIFTI_ENDINGS) else _load_itk)(path, labels)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(
            f"{path}: expected an image that fits the memory, got one that does not ({_reason(error)}); crop it, or "
            "mend the header where its size is wrong"
        ) from error
    except Exception as error:  # Each library has its own kinds, ITK's of many lines.
        beside = ", with the data file that it names" if path.lower().endswith((".mhd", ".nhdr")) else ""
        raise InputError(
            f"{path}: expected a whole image, got one that cannot be read ({_reason(error)}); copy or convert it again"
            + beside
        ) from error
    # What a header holds, so that a written file lies exactly where its image does in memory.
    file = replace(file, affine=file.affine.astype(np.float32).astype(np.float64))
    matrix = file.affine[:3]
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :3])) < 1e-12:
        raise InputError(f"{path}: expected an invertible affine matrix, got {matrix.tolist()}; mend the header")
    data = file.data
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    return replace(file, data=data)


def _load_all(paths: Sequence[str | Path]) -> list[_File]:
    """Read image files; NIfTI several at a time, and others one by one, as ITK is silenced for the whole process."""
    several = all(str(path).lower().endswith(NIFTI_ENDINGS) for path in paths)
    with ThreadPoolExecutor(torch.get_num_threads() if several else 1) as pool:
        return list(pool.map(_load, paths))


def _reason(error: Exception) -> str:
    """A library's reason, in one line: of ITK what follows the object's address, of others their last line."""
    message = str(error).strip()
    _, from_itk, reason = message.partition("ITK ERROR: ")
    reason = re.sub(r"^\w+\(0x\w+\): ", "", reason) if from_itk else (message.splitlines() or [""])[-1]
    return " ".join(reason.split())[:160] or type(error).__name__


def read_image(path: str | Path, labels: bool = False) -> Frame:
    """Read one 3D volume as it is stored; ``labels`` keeps its dtype, otherwise it is float32."""
    file = _load(path, labels)
    _check_volume(file, 3)
    return Frame(np.ascontiguousarray(file.data), file.affine, file.path)


def _check_volume(file: _File, most_axes: int) -> None:
    shape = file.data.shape
    if not 3 <= len(shape) <= most_axes or min(shape[:3]) < 2:
        wanted = "a 3D volume" if most_axes == 3 else "a 3D volume or a 4D series"
        cure = "split it into 3D files, or give it alone" if len(shape) == 4 else "make one 3D file a timepoint"
        raise InputError(f"{file.path}: expected {wanted}, got shape {shape}; {cure}")


def _from_files(files: Sequence[str | Path]) -> Series:
    dirlab = len(files) == 1 and is_dirlab(files[0])
    loaded = [_File(*volume) for volume in read_dirlab(files[0])] if dirlab else _load_all(files)
    for file in loaded:
        _check_volume(file, 4 if len(files) == 1 else 3)
    first, volumes = loaded[0], [(file, file.data) for file in loaded]
    if first.data.ndim == 4:
        volumes = [(first, first.data[..., t]) for t in range(first.data.shape[3])]
    frames = [Frame(np.ascontiguousarray(data), file.affine, file.path, header=file.header) for file, data in volumes]
    if first.data.ndim == 4:
        times = times_of_volumes(first.path, len(frames), first.frame_time and first.frame_time * _unit_s(first.header))
    else:
        times = times_of_files(files)
    logger.info("Read %d timepoints: %s", len(frames), ", ".join(Path(path).name for path in files))
    return Series(tuple(frames), first.frame_time, times, str(sidecar(first.path).get("SeriesDescription", "")))


def _unit_s(header: nib.Nifti1Header | None) -> float:
    """The unit of a frame time in seconds, as its header tells it; a second where it tells none."""
    return 1.0 if header is None else _TIME_UNIT_S.get(int(header["xyzt_units"]) & ~_SPACE_UNIT_BITS, 1.0)


def read_series(
    series: Series | str | Path | Sequence[str | Path] | None,
    timepoints: int | None = None,
    description: str | None = None,
) -> Series:
    """Read K scans of one patient; a series that is read already is given back.

    Args:
        series: a 4D file; a list of 3D files in the order of time; a folder, whose image files count in the order of
            the times in their side-cars, or else in the natural order of their names (scan2 before scan10); a case of
            DIR-Lab's, see `read_dirlab`; or DICOM: folders or files, which `read_dicom` sorts. NIfTI is read by
            nibabel, as MONAI's meta data is wrong about the frame time; all else (MHA, NRRD, ...) by ITK.
        timepoints: the one K that the network takes; none for any.
        description: pattern of the series' descriptions, or of file names, that tells which series of a folder to take.
    Returns: the series in memory. A fill value, as around the round field of view of CT, becomes the smallest value
        that was measured, and ``valid`` is False there. A scan with sheared axes (a tilted gantry, an affine
        registration baked into the header) is interpolated onto a grid with axes at right angles, as neither ITK nor
        NIfTI's qform holds a shear; ``valid`` is False beyond its field of view. A shear below 0.001, from rounding,
        is dropped from the affine instead.
    Raises: InputError, in one line, for whatever the user can mend.
    """
    if isinstance(series, Series):
        return series
    given = _given_paths(series)
    dirlab = len(given) == 1 and is_dirlab(given[0])  # asked first: any raw voxels may look like DICOM
    if dicom := [] if dirlab else dicom_paths(given):
        series = dicom_reader(dicom[0]).read_dicom(dicom, description)
    else:
        one_folder = len(given) == 1 and Path(given[0]).is_dir() and not dirlab
        series = _from_files(folder_files(Path(given[0]), description) if one_folder else given)
    return checked_series(series, timepoints)


def header_grids(series: Series | str | Path | Sequence[str | Path], description: str | None = None) -> list[Grid]:
    """Tell where the scans of a series lie from the headers of its NIfTI, MHA or NRRD files, without their voxels.

    Args:
        series, description: as `read_series` takes them.
    Returns: a grid for each scan. None for DICOM, whose headers take as long to read as the images; nor where a file
        is missing, or its header is broken or says more than the file holds: reading the series tells what is wrong.
    """
    if isinstance(series, Series):
        return [frame.grid for frame in series.frames]
    try:
        given = _given_paths(series)
        if (len(given) == 1 and is_dirlab(given[0])) or dicom_paths(given):
            return []
        one_folder = len(given) == 1 and Path(given[0]).is_dir()
        files = folder_files(Path(given[0]), description) if one_folder else given
        return [grid for file in files for grid in _header_grids(str(file))]
    except Exception:  # each library has its own kinds
        return []


def _header_grids(path: str) -> list[Grid]:
    if path.lower().endswith(NIFTI_ENDINGS):
        image = nib.load(path)
        shape, affine = image.shape, _affine_mm(image)
    else:
        shape, affine = _itk_header(path)
    grid = Grid(shape[:3], affine)
    if len(shape) < 3 or not (grid.affine.det().abs() > 1e-12 and grid.extent_mm.max() <= LONGEST_MM):
        raise ValueError("no volume of a patient")
    if math.prod(shape) > _MOST_COMPRESSED * os.path.getsize(path):
        raise ValueError("the file is too short")
    return [grid] * math.prod(shape[3:])


def _itk_header(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    with _silence():
        reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        reader.SetFileName(path)
        reader.ReadImageInformation()
    axes, affine = range(reader.GetNumberOfDimensions()), np.eye(4)
    for d in axes[:3]:
        affine[:3, d] = np.array(reader.GetDirection(d))[:3] * reader.GetSpacing(d)
        affine[d, 3] = reader.GetOrigin(d)
    return tuple(reader.GetDimensions(d) for d in axes), LPS_TO_RAS @ affine


def _given_paths(series: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    """The paths that a user gave as a series, whose value may come from a config or a data list as anything."""
    given = [series] if isinstance(series, (str, Path)) else series or []
    if not isinstance(given, (list, tuple)) or not all(isinstance(path, (str, Path)) and str(path) for path in given):
        raise InputError(
            f"series: expected image files or a folder, got {series!r}; for example ['t0.nii.gz', 't1.nii.gz']"
        )
    if not given:
        raise InputError("series: expected image files or a folder, got an empty list; name the scans")
    return list(given)
