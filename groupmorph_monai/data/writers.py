"""From a registration to files that other programs read, and from those files to other images and points.

Everything here is in millimetres. In memory a displacement is RAS; in a file it is LPS, ITK's convention, as NIfTI with
five axes (X, Y, Z, 1, 3) and intent 'vector', which ITK, ANTs and 3D Slicer take as a displacement field. The affine of
a file is RAS, as in any NIfTI. Point p of the grid on which a field lies is at ``p + field(p)`` in the other image.
"""

import csv
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from torch import Tensor

from ..errors import InputError
from .readers import Frame, Series, overlap, read_image
from .resampling import resample
from .right_angles import is_sheared

__all__ = [
    "apply_field",
    "apply_field_to_points",
    "check_output_dir",
    "jacobian_determinant",
    "native_displacement_mm",
    "read_field",
    "warp_frame",
    "write_image",
    "write_points",
    "write_registration",
]

logger = logging.getLogger(__name__)
_FILES_AT_ONCE = 4
_SLAB_VOXELS = 2**20
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)


def _array(values: Tensor | np.ndarray, dtype: type) -> np.ndarray:
    """A plain array, from whatever device and subclass."""
    return np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values, dtype=dtype)


def native_displacement_mm(
    ddf: Tensor | np.ndarray, affine: np.ndarray, target: np.ndarray, size: Sequence[int]
) -> np.ndarray:
    """A field of the working grid on another grid, in millimetres.

    Args:
        ddf: ``(3, *W)``, voxels of the working grid, whose affine is ``affine`` ``(4, 4)``.
        target: affine of the grid of ``size``; beyond the working grid its border's displacement holds.
    Returns: ``(3, *size)``, RAS mm, float32.
    """
    field = resample(_array(ddf, np.float32), affine, target, size)
    return np.einsum("de,eijk->dijk", affine[:3, :3].astype(np.float32), field)


def warp_frame(frame: Frame, displacement_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """``frame`` at ``x + displacement(x)`` for every voxel x of the grid with ``affine``: its one interpolation.

    ``displacement_mm`` is ``(3, *S)``, RAS. Returns ``(*S)`` float32.
    """
    return resample(frame.data[None], frame.affine, affine, displacement_mm.shape[1:], displacement_mm)[0]


def jacobian_determinant(displacement_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Determinant of the derivative of ``x + displacement(x)`` by central differences, one-sided at the border.

    ``displacement_mm`` is ``(3, *S)``, RAS, on the grid with ``affine``. Returns ``(*S)`` float32: 1 keeps the volume,
    below 0 it folds.
    """
    # With M the affine and G the derivative by voxel, the one in mm is I + G M^-1: its determinant is |M + G| / |M|.
    matrix = affine[:3, :3].astype(np.float32)
    size = displacement_mm.shape[1:]
    result, step = np.empty(size, np.float32), max(1, _SLAB_VOXELS // (size[1] * size[2]))
    for start in range(0, size[0], step):
        # A layer more on either side, where there is one, for the central differences; two at the least.
        low, high = max(0, min(start - 1, size[0] - 2)), min(size[0], start + step + 1)
        (a, b, c), (d, e, f), (g, h, i) = (
            [np.gradient(u, axis=axis) + row[axis] for axis in range(3)]
            for u, row in zip(displacement_mm[:, low:high], matrix)
        )
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        own = slice(start, min(start + step, size[0]))
        result[own] = determinant[own.start - low : own.stop - low]
    return result / np.float32(np.linalg.det(matrix))


def check_output_dir(path: str | Path) -> Path:
    """Make the folder where it is missing. Raises InputError where that, or writing in it, fails."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write to, got {error.strerror}; choose another") from error
    return folder


@contextmanager
def _all_or_nothing(output_dir: Path) -> Iterator[Path]:
    """A folder to write in; its files move to ``output_dir`` together at the end, or after an error not at all."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=output_dir))
    try:
        yield partial
        for file in sorted(partial.iterdir()):
            os.replace(file, output_dir / file.name)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{output_dir}: expected to write the results, got {reason}; make room there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _image(
    data: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header | None = None, frame_time: float | None = None
) -> nib.Nifti1Image:
    """Make an image whose qform and sform are equal, so that every program places it alike.

    Args:
        affine: ``(4, 4)``, RAS mm, axes at right angles.
        header: of the file that the image comes from: its description, unit of time, and the code of the form that was
            read, which both forms get. Without one the unit is seconds and the code that of scanner coordinates.
        frame_time: between the volumes of a 4D image; None, also for an image that is not 4D, writes none.
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
    time_unit = nib.nifti1.unit_codes["sec"] if header is None else int(header["xyzt_units"]) & 0x38
    image.set_qform(affine, code)
    image.set_sform(affine, code)
    image.header["xyzt_units"] = nib.nifti1.unit_codes["mm"] + (time_unit if frame_time else 0)
    image.header["pixdim"][4] = frame_time or 0
    return image


def _write_field(displacement_mm: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """``(3, *S)`` RAS mm to ITK's NIfTI."""
    lps = np.moveaxis(displacement_mm, 0, -1) * _RAS_TO_LPS
    image = _image(lps[:, :, :, None].astype(np.float32, copy=False), affine)
    image.header.set_intent("vector")
    nib.save(image, path)


def write_registration(
    series: Series,
    ddf: Tensor,
    inverse_ddf: Tensor,
    affine: Tensor | np.ndarray,
    output_dir: str | Path,
    std: Tensor | None = None,
    jacobian: bool = False,
) -> dict[str, object]:
    """Write the aligned series and its fields; all files appear when all are complete, or none does.

    ``warped.nii.gz`` (4D) and ``mean.nii.gz`` lie on the first native grid, as do ``ddf_KK.nii.gz`` (a point of the
    common space to timepoint KK; brings its images to the common space), ``std_mm_KK.nii.gz``, ``jacobian_KK.nii.gz``;
    ``inverse_ddf_KK.nii.gz`` lies on the grid of timepoint KK and leads back.

    Args:
        series: K native volumes, each interpolated once.
        ddf, inverse_ddf: ``(K, 3, *W)``, voxels of the working grid, whose affine to RAS mm is ``affine`` ``(4, 4)``.
        std: ``(K, 3, *W)``, standard deviation of each component of ``ddf``, voxels of the working grid.
        jacobian: write the determinants too.
    Returns: ``warped``, ``native`` (the same grid, unregistered), ``jacobian``: ``(K, *S)`` float32; ``files``: names.
    """
    output_dir, affine = check_output_dir(output_dir), _array(affine, np.float64)
    first, count = series.frames[0], len(series.frames)
    if not len(ddf) == len(inverse_ddf) == count:
        raise ValueError(f"ddf, inverse_ddf: expected {count} timepoints, got {len(ddf)} and {len(inverse_ddf)}")
    result = {name: np.empty((count, *first.data.shape), np.float32) for name in ("warped", "native", "jacobian")}
    with _all_or_nothing(output_dir) as folder:

        def write_timepoint(k: int) -> None:
            frame = series.frames[k]
            field = native_displacement_mm(ddf[k], affine, first.affine, first.data.shape)
            _write_field(field, first.affine, folder / f"ddf_{k:02d}.nii.gz")
            result["warped"][k] = warp_frame(frame, field, first.affine)
            result["native"][k] = resample(frame.data[None], frame.affine, first.affine, first.data.shape)[0]
            result["jacobian"][k] = jacobian_determinant(field, first.affine)
            if jacobian:
                nib.save(_image(result["jacobian"][k], first.affine), folder / f"jacobian_{k:02d}.nii.gz")
            if std is not None:
                nib.save(_image(_std_mm(std[k], affine, first), first.affine), folder / f"std_mm_{k:02d}.nii.gz")
            field = native_displacement_mm(inverse_ddf[k], affine, frame.affine, frame.data.shape)
            _write_field(field, frame.affine, folder / f"inverse_ddf_{k:02d}.nii.gz")

        # Compression takes most of the time and one thread a file; more than a few at once would fill the memory.
        with ThreadPoolExecutor(min(count, os.cpu_count() or 1, _FILES_AT_ONCE)) as pool:
            list(pool.map(write_timepoint, range(count)))
        _write_series(result["warped"], series, folder)
        files = sorted(file.name for file in folder.iterdir())
    _warn_of_leftovers(output_dir, files)
    return {**result, "files": files}


def _std_mm(std: Tensor, affine: np.ndarray, first: Frame) -> np.ndarray:
    """Length of the standard deviation, in mm, on the grid of ``first``; interpolated as a length."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0).reshape(3, 1, 1, 1)
    length = np.linalg.norm(_array(std, np.float32) * spacing, axis=0)
    return resample(length[None], affine, first.affine, first.data.shape)[0]


def _write_series(warped: np.ndarray, series: Series, folder: Path) -> None:
    """The aligned series and its mean, with the first file's spacing, unit of time, code and frame time."""
    affine, header = series.frames[0].affine, series.header
    nib.save(_image(np.moveaxis(warped, 0, -1), affine, header, series.frame_time), folder / "warped.nii.gz")
    nib.save(_image(warped.mean(axis=0), affine, header), folder / "mean.nii.gz")


def _warn_of_leftovers(output_dir: Path, files: Sequence[str]) -> None:
    """A longer series written before leaves fields that do not belong to this one; deleting is the user's to do."""
    kinds = ("ddf_", "inverse_ddf_", "std_mm_", "jacobian_")
    old = sorted(p.name for p in output_dir.glob("*_[0-9]*.nii.gz") if p.name.startswith(kinds) and p.name not in files)
    if old:
        logger.warning("%s also holds %d files of an earlier run, such as %s", output_dir, len(old), old[0])


def read_field(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A written field: displacement ``(3, *S)`` RAS mm, and the affine of the grid on which it lies."""
    try:
        image = nib.load(path)
        shape = image.shape
        if len(shape) == 5 and shape[3:] == (1, 3):
            lps = image.get_fdata(dtype=np.float32, caching="unchanged")[:, :, :, 0]
            return np.ascontiguousarray(np.moveaxis(lps * _RAS_TO_LPS, -1, 0)), image.affine.astype(np.float64)
    except MemoryError:
        raise
    except Exception as error:  # nibabel, gzip and zlib each have their own kinds.
        raise InputError(f"{path}: expected a field that 'register' wrote, got {error}; check the path") from error
    raise InputError(f"{path}: expected a field (X, Y, Z, 1, 3), got shape {shape}; give a ddf_KK or inverse_ddf_KK")


def apply_field(
    field_path: str | Path,
    image: str | Path | Frame,
    nearest: bool = False,
    like: str | Path | Frame | None = None,
) -> Frame:
    """Bring another image of timepoint KK into the common space with ``ddf_KK``, or back with ``inverse_ddf_KK``.

    Args:
        field_path: a written field; its grid is the result's unless ``like`` gives another.
        image: on any grid, in the same world as timepoint KK.
        nearest: for label maps; keeps their dtype.
    """
    displacement, affine = read_field(field_path)
    image = image if isinstance(image, Frame) else read_image(image, labels=nearest)
    size, target = displacement.shape[1:], affine
    if not overlap(image, Frame(np.broadcast_to(np.float32(0), size), affine, str(field_path))):
        raise InputError(
            f"{image.path}: expected an image that overlaps the field {field_path} in space, got one beside it; "
            "give an image in the space of that timepoint"
        )
    if like is not None:
        like = like if isinstance(like, Frame) else read_image(like)
        size, target = like.data.shape, like.affine
        displacement = resample(displacement, affine, target, size)
    moved = resample(image.data[None], image.affine, target, size, displacement, nearest)[0]
    return Frame(moved, target, image.path)


def apply_field_to_points(field_path: str | Path, points_mm: np.ndarray) -> np.ndarray:
    """``p + field(p)`` for ``(P, 3)`` points in RAS mm: with ``ddf_KK`` from the common space to timepoint KK, with
    ``inverse_ddf_KK`` from timepoint KK to the common space."""
    displacement, affine = read_field(field_path)
    points_mm = np.asarray(points_mm, dtype=np.float64)
    to_voxel = np.linalg.inv(affine)
    voxels = points_mm @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    outside = int(((voxels < -0.5) | (voxels > np.array(displacement.shape[1:]) - 0.5)).any(axis=1).sum())
    if outside:
        logger.warning("%s: %d of %d points lie outside and move as its border", field_path, outside, len(points_mm))
    # A grid of P x 1 x 1 voxels at the origin, displaced to the points, samples the field there.
    at = points_mm.T.reshape(3, -1, 1, 1)
    moves = resample(displacement, affine, np.diag([0.0, 0.0, 0.0, 1.0]), at.shape[1:], at)
    return points_mm + moves[:, :, 0, 0].T


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
    with _all_or_nothing(check_output_dir(path.parent)) as folder:
        nib.save(_image(data, frame.affine), folder / path.name)


def write_points(points_mm: np.ndarray, path: str | Path) -> None:
    """Write ``(P, 3)`` points in RAS mm as CSV with the header x,y,z, complete or not at all."""
    path = Path(path)
    with _all_or_nothing(check_output_dir(path.parent)) as folder, open(folder / path.name, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow("xyz")
        table.writerows(np.asarray(points_mm, dtype=np.float64).tolist())
