"""From a registration to files that other programs read, and from those files to other images and points.

Everything here is in millimetres. In memory a displacement is RAS; in a file it is LPS, ITK's convention, as NIfTI with
five axes (X, Y, Z, 1, 3) and intent 'vector', which ITK, ANTs and 3D Slicer take as a displacement field. The affine of
a file is RAS, as in any NIfTI. Point p of the grid on which a field lies is at ``p + field(p)`` in the other image.
"""

import csv
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..errors import InputError
from ..space.geometry import DenseTransform, Grid, Transform, jacobian_determinant
from .readers import Frame, Series, overlap, read_image
from .resampling import resample
from .right_angles import is_sheared

__all__ = [
    "all_or_nothing",
    "apply_field",
    "apply_field_to_points",
    "check_output_dir",
    "read_field",
    "write_image",
    "write_points",
    "write_registration",
]

logger = logging.getLogger(__name__)
_FILES_AT_ONCE = 4
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)


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
def all_or_nothing(output_dir: str | Path) -> Iterator[Path]:
    """Yield a folder to write in, whose files replace those of their names in ``output_dir`` at the end; after an error
    none does. A reader never meets half a file.

    Raises: InputError where the disk fails.
    """
    output_dir = check_output_dir(output_dir)
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


def _write_field(displacement_mm: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """``(3, *S)`` RAS mm to ITK's NIfTI."""
    lps = np.moveaxis(displacement_mm, 0, -1) * _RAS_TO_LPS
    image = _image(lps[:, :, :, None].astype(np.float32, copy=False), affine)
    image.header.set_intent("vector")
    nib.save(image, path)


def write_registration(
    series: Series,
    transforms: Sequence[Transform],
    output_dir: str | Path,
    home: int = 0,
    std_mm: Sequence[Frame] | None = None,
    jacobian: bool = False,
    outside: str = "zero",
) -> dict[str, object]:
    """Write the aligned series and its fields; all files appear when all are complete, or none does.

    ``warped.nii.gz`` (4D), ``mean.nii.gz`` over the scans that saw a voxel, and their number, ``coverage.nii.gz``, lie
    on the grid of scan ``home``, as do ``ddf_KK.nii.gz`` (a point of the common space to timepoint KK; brings its
    images to the common space), ``std_mm_KK.nii.gz`` and ``jacobian_KK.nii.gz``; ``inverse_ddf_KK.nii.gz`` lies on the
    grid of timepoint KK and leads back.

    Args:
        series: K native volumes, each interpolated once, and not at all where its transform is the identity.
        transforms: K, from the common space to each timepoint.
        home: index of the scan whose grid the results lie on.
        std_mm: K frames, standard deviation of each displacement's length.
        jacobian: write the determinants too.
        outside: what ``warped`` and ``mean`` hold where no scan has seen a voxel: "zero", "nan", or "border" for the
            nearest value seen.
    Returns: ``warped``, ``native`` (the same grid, unregistered), ``jacobian``: ``(K, *S)`` float32; ``seen``, ``(*S)``
        bool, where every scan has seen the voxel before and after; ``files``: names.
    """
    output_dir = check_output_dir(output_dir)
    count = len(series.frames)
    if len(transforms) != count:
        raise ValueError(f"transforms: expected one for each of {count} timepoints, got {len(transforms)}")
    grid = series.frames[home].grid
    affine = grid.affine.numpy()
    result = {name: np.empty((count, *grid.shape), np.float32) for name in ("warped", "native", "jacobian")}
    coverage, always_seen = np.empty((count, *grid.shape), bool), np.empty((count, *grid.shape), bool)
    with all_or_nothing(output_dir) as folder:

        def write_timepoint(k: int) -> None:
            frame, transform = series.frames[k], transforms[k]
            field = transform.displacement(grid)
            _write_field(field.numpy(), affine, folder / f"ddf_{k:02d}.nii.gz")
            result["warped"][k], coverage[k] = resample(frame, grid, transform)
            result["native"][k], always_seen[k] = resample(frame, grid)
            result["jacobian"][k] = jacobian_determinant(field[None], grid.affine)[0].numpy()
            if jacobian:
                nib.save(_image(result["jacobian"][k], affine), folder / f"jacobian_{k:02d}.nii.gz")
            if std_mm is not None:
                nib.save(_image(resample(std_mm[k], grid)[0], affine), folder / f"std_mm_{k:02d}.nii.gz")
            field = transform.inverse.displacement(frame.grid).numpy()
            _write_field(field, frame.affine, folder / f"inverse_ddf_{k:02d}.nii.gz")

        # Compression takes most of the time and one thread a file; more than a few at once would fill the memory.
        with ThreadPoolExecutor(min(count, os.cpu_count() or 1, _FILES_AT_ONCE)) as pool:
            list(pool.map(write_timepoint, range(count)))
        _write_series(result["warped"], coverage, series, home, outside, folder)
        files = sorted(file.name for file in folder.iterdir())
    _warn_of_leftovers(output_dir, files)
    return {**result, "seen": (coverage & always_seen).all(axis=0), "files": files}


def _write_series(
    warped: np.ndarray, coverage: np.ndarray, series: Series, home: int, outside: str, folder: Path
) -> None:
    """The aligned series, its mean and coverage, with the spacing, units, codes and frame time of the home scan."""
    affine, header = series.frames[home].affine, series.frames[home].header
    filler = {"zero": 0.0, "nan": np.nan}
    number = coverage.sum(axis=0, dtype=np.uint16)
    mean = (warped * coverage).sum(axis=0) / np.maximum(number, 1)
    if outside == "border":
        mean = np.where(number > 0, mean, warped.mean(axis=0))
    else:
        warped = np.where(coverage, warped, np.float32(filler[outside]))
        mean[number == 0] = filler[outside]
    timed = series.frames[0].header
    nib.save(_image(np.moveaxis(warped, 0, -1), affine, header, series.frame_time, timed), folder / "warped.nii.gz")
    nib.save(_image(mean.astype(np.float32), affine, header), folder / "mean.nii.gz")
    nib.save(_image(number, affine), folder / "coverage.nii.gz")


def _warn_of_leftovers(output_dir: Path, files: Sequence[str]) -> None:
    """A longer series written before leaves fields that do not belong to this one; deleting is the user's to do."""
    kinds = ("ddf_", "inverse_ddf_", "std_mm_", "jacobian_")
    old = sorted(p.name for p in output_dir.glob("*_[0-9]*.nii.gz") if p.name.startswith(kinds) and p.name not in files)
    if old:
        logger.warning("%s also holds %d files of an earlier run, such as %s", output_dir, len(old), old[0])


def read_field(path: str | Path) -> DenseTransform:
    """Read a written field. Beyond its grid the border's displacement holds. It has no inverse: that is in another
    file, and on another grid."""
    try:
        image = nib.load(path)
        shape = image.shape
        if len(shape) == 5 and shape[3:] == (1, 3):
            lps = image.get_fdata(dtype=np.float32, caching="unchanged")[:, :, :, 0]
            grid = Grid(shape[:3], image.affine)
            ras = torch.from_numpy(np.ascontiguousarray(np.moveaxis(lps * _RAS_TO_LPS, -1, 0)))
            voxels = torch.einsum("de,eijk->dijk", torch.linalg.inv(grid.affine[:3, :3]).float(), ras)
            return DenseTransform(voxels, None, grid, fade=math.inf)
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
    field = read_field(field_path)
    image = image if isinstance(image, Frame) else read_image(image, labels=nearest)
    like = read_image(like) if isinstance(like, (str, Path)) else like
    if not overlap(image.grid, field.grid):
        raise InputError(
            f"{image.path}: expected an image that overlaps the field {field_path} in space, got one beside it; "
            "give an image in the space of that timepoint"
        )
    grid = field.grid if like is None else like.grid
    values, seen = resample(image, grid, field, nearest)
    return Frame(np.where(seen, values, values.dtype.type(0)), grid.affine.numpy(), image.path)


def apply_field_to_points(field_path: str | Path, points_mm: np.ndarray) -> np.ndarray:
    """``p + field(p)`` for ``(P, 3)`` points in RAS mm: with ``ddf_KK`` from the common space to timepoint KK, with
    ``inverse_ddf_KK`` from timepoint KK to the common space."""
    field = read_field(field_path)
    points = torch.as_tensor(np.asarray(points_mm, dtype=np.float64))
    outside = int((~field.grid.contains(points)).sum())
    if outside:
        logger.warning("%s: %d of %d points lie outside and move as its border", field_path, outside, len(points))
    return field(points).numpy()


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
        nib.save(_image(data, frame.affine), folder / path.name)


def write_points(points_mm: np.ndarray, path: str | Path) -> None:
    """Write ``(P, 3)`` points in RAS mm as CSV with the header x,y,z, complete or not at all."""
    path = Path(path)
    with all_or_nothing(path.parent) as folder, open(folder / path.name, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow("xyz")
        table.writerows(np.asarray(points_mm, dtype=np.float64).tolist())
