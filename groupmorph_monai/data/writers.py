"""From a registration to files that other programs read, and from those files to other images and points.

Everything here is in millimetres. In memory a displacement is RAS; in a file it is LPS, ITK's convention, as NIfTI with
five axes (X, Y, Z, 1, 3) and intent 'vector', which ITK, ANTs and 3D Slicer take as a displacement field. The affine of
a file is RAS, as in any NIfTI. Point p of the grid on which a field lies is at ``p + field(p)`` in the other image.
"""

import csv
import json
import logging
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from ..errors import InputError
from ..space.geometry import DenseTransform, Grid, Transform, jacobian_determinant
from .names import image_stem
from .output_folder import all_or_nothing
from .points import read_points
from .readers import read_image
from .replacement import REPORT
from .resampling import resample
from .right_angles import is_sheared
from .series import Frame, Series, overlap

__all__ = [
    "apply_field",
    "apply_field_to_files",
    "apply_field_to_points",
    "earlier_result",
    "read_field",
    "write_image",
    "write_points",
    "write_registration",
]

logger = logging.getLogger(__name__)
_FILES_AT_ONCE = 4
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0], dtype=np.float32)
_POINT_SUFFIXES = (".csv", ".txt", ".fcsv", ".pts")
_NUMBERED = re.compile(r"(ddf|inverse_ddf|std_mm|jacobian)_\d+\.nii\.gz")
_SINGLE = ("warped.nii.gz", "mean.nii.gz", "coverage.nii.gz")


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


def _check_finite(values: np.ndarray, name: str | Path, what: str, cure: str) -> None:
    """Refuse NaN and infinity, which every comparison would let pass, with an InputError."""
    with np.errstate(all="ignore"):
        total = np.sum(values)  # without an array of flags beside a field of full size
    if not np.isfinite(total):
        number = int((~np.isfinite(values)).sum())
        if number:
            raise InputError(f"{name}: expected finite {what}, got {number} NaN or infinite values; {cure}")


_CHECK_SETTINGS = "nothing is written; check the weights, and settings such as noise"


def _write_field(displacement_mm: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """``(3, *S)`` RAS mm to ITK's NIfTI."""
    _check_finite(displacement_mm, path.name, "displacements", _CHECK_SETTINGS)
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
    """Write the aligned series and its fields; all files appear at once when all are complete, or none does.

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
                std, path = resample(std_mm[k], grid)[0], folder / f"std_mm_{k:02d}.nii.gz"
                _check_finite(std, path.name, "standard deviations", _CHECK_SETTINGS)
                nib.save(_image(std, affine), path)
            field = transform.inverse.displacement(frame.grid).numpy()
            _write_field(field, frame.affine, folder / f"inverse_ddf_{k:02d}.nii.gz")

        # Compression takes most of the time and one thread a file; more than a few at once would fill the memory.
        with ThreadPoolExecutor(min(count, os.cpu_count() or 1, _FILES_AT_ONCE)) as pool:
            list(pool.map(write_timepoint, range(count)))
        _write_series(result["warped"], coverage, series, home, outside, folder)
        files = sorted(file.name for file in folder.iterdir())
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


def earlier_result(output_dir: Path) -> set[str]:
    """Names of the files of a registration that was written to ``output_dir`` before, as its report lists them.

    What else looks like a field of a registration is warned of and stays: deleting it is the user's to do.
    """
    try:
        listed = json.loads((output_dir / REPORT).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        listed = []
    results = {str(name) for name in listed} & {path.name for path in output_dir.iterdir()}
    results = {name for name in results if name in _SINGLE or _NUMBERED.fullmatch(name)}
    others = sorted(p.name for p in output_dir.iterdir() if _NUMBERED.fullmatch(p.name) and p.name not in results)
    if others:
        logger.warning("%s also holds %d files of an earlier run, such as %s", output_dir, len(others), others[0])
    return results


def read_field(path: str | Path) -> DenseTransform:
    """Read a written field. Beyond its grid the border's displacement holds. It has no inverse: that is in another
    file, and on another grid."""
    try:
        image = nib.load(path)
        shape = image.shape
        if len(shape) == 5 and shape[3:] == (1, 3):
            lps = image.get_fdata(dtype=np.float32, caching="unchanged")[:, :, :, 0]
            _check_finite(lps, path, "displacements", "register the series again")
            grid = Grid(shape[:3], image.affine)
            ras = torch.from_numpy(np.ascontiguousarray(np.moveaxis(lps * _RAS_TO_LPS, -1, 0)))
            voxels = torch.einsum("de,eijk->dijk", torch.linalg.inv(grid.affine[:3, :3]).float(), ras)
            return DenseTransform(voxels, None, grid, fade=math.inf)
    except (InputError, MemoryError):
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


def apply_field_to_files(
    field_path: str | Path, files: Sequence[str | Path], output_dir: str | Path, nearest: bool = False
) -> list[Path]:
    """Apply a written field to images and points. All results appear at once when all are complete, or none does.

    Args:
        files: images as `apply_field` takes them, or points as `read_points` does.
        nearest: the images are label maps.
    Returns: the written files: ``output_dir``, the name of each input, and .nii.gz or .csv.
    Raises: InputError where two results would have one name, or a result that of an input.
    """
    targets = [Path(output_dir) / _result_name(Path(file).name) for file in files]
    _check_targets([field_path, *files], files, targets)
    with all_or_nothing(output_dir) as folder:
        for file, target in zip(files, targets):
            if target.suffix == ".csv":
                write_points(apply_field_to_points(field_path, read_points(file)), folder / target.name)
            else:
                write_image(apply_field(field_path, file, nearest), folder / target.name)
    return targets


def _result_name(name: str) -> str:
    if name.lower().endswith(_POINT_SUFFIXES):
        return Path(name).stem + ".csv"
    return image_stem(name) + ".nii.gz"


def _check_targets(inputs: Sequence[str | Path], files: Sequence[str | Path], targets: Sequence[Path]) -> None:
    for number, target in enumerate(targets):
        for file in inputs:
            if target.exists() and Path(file).exists() and target.samefile(file):
                raise InputError(f"--output: {target} would replace the input {file}; choose another folder")
        if target in targets[:number]:
            raise InputError(
                f"{files[number]}: expected a name of its own, got one whose result {target} is that of "
                f"{files[targets.index(target)]} too; apply the field to them one by one, into two folders"
            )


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
