"""From files to a series of volumes with their place in the patient.

Whatever the format, an affine takes voxel (i, j, k) to the world in RAS mm, as in NIfTI; the centre of voxel (0, 0, 0)
lies at ``affine[:3, 3]``. ITK's LPS ends here.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import torch

from ..errors import InputError
from ..space.geometry import AffineTransform, Grid

__all__ = ["Frame", "Series", "overlap", "read_image", "read_series"]

logger = logging.getLogger(__name__)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NIFTI = (".nii", ".nii.gz")
# What counts as an image in a folder; a file that is named outright may be anything that ITK reads.
_IMAGES = (*_NIFTI, ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl", ".gipl.gz", ".vtk")
_GREY = "convert it to a grey-value image"


@dataclass(frozen=True)
class Frame:
    """One volume: ``data`` ``(i, j, k)``, float32 or labels, and ``affine`` ``(4, 4)``, voxel to RAS mm; ``valid`` is
    True where a voxel was measured and not filled in, None where all were."""

    data: np.ndarray
    affine: np.ndarray
    path: str
    valid: np.ndarray | None = None

    @property
    def grid(self) -> Grid:
        return Grid(self.data.shape, self.affine)


@dataclass(frozen=True)
class Series:
    """K volumes of one patient in the order of time; ``header`` is the first file's where that is NIfTI.

    ``frame_time`` is the time between frames in the header's unit, 1.0 where no file tells it.
    """

    frames: tuple[Frame, ...]
    frame_time: float = 1.0
    header: nib.Nifti1Header | None = None


@dataclass(frozen=True)
class _File:
    """One image file as stored: ``data`` of any number of axes, trailing axes of one voxel gone."""

    data: np.ndarray
    affine: np.ndarray
    path: str
    frame_time: float = 1.0
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
    kind = image.get_data_dtype()
    if kind.fields is not None or kind.kind == "c":
        raise InputError(f"{path}: expected one number a voxel, got RGB or complex values; {_GREY}")
    data = np.asarray(image.dataobj) if labels else image.get_fdata(dtype=np.float32, caching="unchanged")
    zooms = image.header.get_zooms()
    frame_time = float(zooms[3]) if data.ndim > 3 and np.isfinite(zooms[3]) and zooms[3] > 0 else 1.0
    return _File(data, image.affine.astype(np.float64), path, frame_time, image.header)


def _load_itk(path: str, labels: bool) -> _File:
    with _silence():
        reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
        if reader is None:
            raise InputError(f"{path}: expected an image (NIfTI, MHA, NRRD), got a file that is none; leave it out")
        reader.SetFileName(path)
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() > 1:
            raise InputError(f"{path}: expected one number a voxel, got several (RGB or vectors); {_GREY}")
        image = itk.imread(path) if labels else itk.imread(path, itk.F)
    data = itk.array_from_image(image).T
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    affine, n = np.eye(4), min(3, data.ndim)
    affine[:n, :n] = np.asarray(image.GetDirection())[:n, :n] * spacing[:n]
    affine[:n, 3] = origin[:n]
    return _File(data, LPS_TO_RAS @ affine, path, float(spacing[3]) if data.ndim > 3 else 1.0)


def _load(path: str | Path, labels: bool = False) -> _File:
    """Read any image file; every way to fail ends in an InputError."""
    path = str(path)
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    if Path(path).is_dir():
        raise InputError(f"{path}: expected an image file, got a folder; give one folder alone, or files")
    try:
        file = (_load_nifti if path.lower().endswith(_NIFTI) else _load_itk)(path, labels)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Each library has its own kinds, ITK's of many lines.
        raise InputError(
            f"{path}: expected a whole image, got one that cannot be read ({_reason(error)}); copy or convert it again"
        ) from error
    matrix = file.affine[:3]
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :3])) < 1e-12:
        raise InputError(f"{path}: expected an invertible affine matrix, got {matrix.tolist()}; mend the header")
    data = file.data
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    return replace(file, data=data)


def _reason(error: Exception) -> str:
    """The end of a library's message, where its reason stands, in one line without the path of ITK's source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:120]


def read_image(path: str | Path, labels: bool = False) -> Frame:
    """Read one 3D volume; ``labels`` keeps its dtype, otherwise it is float32."""
    file = _load(path, labels)
    _check_volume(file, 3)
    return Frame(np.ascontiguousarray(file.data), file.affine, file.path)


def _check_volume(file: _File, most_axes: int) -> None:
    shape = file.data.shape
    if not 3 <= len(shape) <= most_axes or min(shape[:3]) < 2:
        wanted = "a 3D volume" if most_axes == 3 else "a 3D volume or a 4D series"
        cure = "split it into 3D files, or give it alone" if len(shape) == 4 else "make one 3D file a timepoint"
        raise InputError(f"{file.path}: expected {wanted}, got shape {shape}; {cure} (DICOM: with dcm2niix)")


def _natural(path: Path) -> list:
    """Key that sorts scan2 before scan10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.name.lower())]


def _folder_files(folder: Path) -> list[Path]:
    entries = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    files = sorted((p for p in entries if p.name.lower().endswith(_IMAGES)), key=_natural)
    if not files:
        raise InputError(
            f"{folder}: expected image files (NIfTI, MHA, NRRD), found none among {len(entries)} files; "
            "check the path, and convert DICOM with dcm2niix first"
        )
    return files


def _timepoints(files: Sequence[str | Path]) -> tuple[list[Frame], _File]:
    """The frames, and the first file for what else it tells."""
    loaded = [_load(path) for path in files]
    for file in loaded:
        _check_volume(file, 4 if len(files) == 1 else 3)
    first, volumes = loaded[0], [(file, file.data) for file in loaded]
    if first.data.ndim == 4:
        volumes = [(first, first.data[..., t]) for t in range(first.data.shape[3])]
    return [Frame(np.ascontiguousarray(data), file.affine, file.path) for file, data in volumes], first


def read_series(series: Series | str | Path | Sequence[str | Path] | None, timepoints: int | None = None) -> Series:
    """Read K scans of one patient; a series that is read already is given back.

    Args:
        series: a 4D file; a list of 3D files in the order of time; or a folder, whose image files count in the natural
            order of their names (scan2 before scan10). NIfTI is read by nibabel, as MONAI's meta data is wrong about
            the frame time; all else (MHA, NRRD, ...) by ITK.
        timepoints: the one K that the network takes; none for any.
    Raises: InputError, in one line, for whatever the user can mend.
    """
    if isinstance(series, Series):
        return series
    given = [series] if isinstance(series, (str, Path)) else list(series or [])
    if not given:
        raise InputError("series: expected image files or a folder, got an empty list; name the scans")
    if len(given) == 1 and Path(given[0]).is_dir():
        given = _folder_files(Path(given[0]))
    frames, first = _timepoints(given)
    if len(frames) < 2:
        raise InputError(f"{first.path}: expected a series, got one timepoint; give two 3D files or more, or a 4D file")
    for number, frame in enumerate(frames):
        _check_frame(frame, number, frames[0])
        if frame.data.shape != first.data.shape[:3] or not np.allclose(frame.affine, first.affine, atol=1e-3):
            logger.info("Frame %d (%s) lies on another grid: resampled to the first one's.", number, frame.path)
    logger.info("Read %d timepoints: %s", len(frames), ", ".join(Path(path).name for path in given))
    if timepoints is not None and len(frames) != timepoints:
        raise InputError(
            f"{first.path}: expected {timepoints} timepoints, as many as this model takes, got {len(frames)}; give "
            f"{timepoints} volumes, or --set timepoints={len(frames)} and weights trained so"
        )
    return Series(tuple(frames), first.frame_time, first.header)


def _check_frame(frame: Frame, number: int, first: Frame) -> None:
    name = f"{frame.path} (timepoint {number})"
    # NaN passes through min and max.
    low, high = float(frame.data.min()), float(frame.data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~np.isfinite(frame.data)).sum())
        raise InputError(f"{name}: expected finite voxels, got {count} NaN or infinite ones; replace them, say by 0")
    if low == high:
        raise InputError(f"{name}: expected an image, got {low:g} in every voxel; leave this timepoint out")
    if not overlap(frame.grid, first.grid):
        raise InputError(
            f"{name}: expected a volume that overlaps the first one ({first.path}) in space, got one at {_box(frame)} "
            f"mm RAS beside {_box(first)}; check that both show the same region and that no header lost its origin"
        )


def _corners(grid: Grid) -> torch.Tensor:
    """The volume's eight corners in RAS mm, outer faces of the voxels: ``(8, 3)``."""
    voxels = torch.tensor(list(product(*[(-0.5, n - 0.5) for n in grid.shape])), dtype=torch.float64)
    return AffineTransform(grid.affine)(voxels)


def overlap(one: Grid, other: Grid) -> bool:
    """Whether two volumes meet in space, judged by boxes along the axes of either."""
    for grid, box in ((one, other), (other, one)):
        corners = box.voxels(_corners(grid)).numpy()
        if np.any(corners.max(0) <= -0.5) or np.any(corners.min(0) >= np.array(box.shape) - 0.5):
            return False
    return True


def _box(frame: Frame) -> str:
    corners = _corners(frame.grid).round().int().numpy()
    return " x ".join(f"[{a}, {b}]" for a, b in zip(corners.min(0), corners.max(0)))
