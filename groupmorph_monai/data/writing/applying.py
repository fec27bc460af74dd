"""Apply written fields to images and points, and compose two fields."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...errors import InputError
from ...space.grid import Grid
from ...space.transforms import ComposedTransform, Transform
from ..preprocessing.resampling import resample
from ..reading.markups import is_markups, map_markups
from ..reading.names import image_stem
from ..reading.points import is_points, read_named_points, write_points
from ..reading.readers import read_image
from ..reading.signature import check_itk_path
from ..series import LONGEST_MM, Frame
from ..series_checks import boxes_overlap
from .apply_record import RECORD, check_replaceable, read_record, record_entry, write_record
from .earlier_result import names_of_result
from .fields import read_field, resampling_grid, write_field
from .itk_transforms import is_itk_transform, write_itk_transform
from .nifti import write_image
from .output_folder import atomic_folder, check_contains_no_input, check_file_name

logger = logging.getLogger(__name__)
_LARGEST_LABEL = 2**53  # largest integer up to which float64 is exact
_MOST_LABELS = 16  # of an image that may be a label map; scans have more values
_MOST_OUTSIDE = 0.1  # maximum share of a scan outside of the common space; motion alone moves a few percent there
_FIELD = re.compile(r"(?P<inverse>inverse_)?ddf_(?P<scan>\d+)\.nii(\.gz)?")


def apply_field(field_path: str | Path, image: str | Path | Frame, nearest: bool = False) -> Frame:
    """Warp another image of timepoint KK to the common space with ``ddf_KK``, or back with ``inverse_ddf_KK``.

    Args:
        field_path: a written field, whose resampling grid is the output grid.
        image: image on any grid, in the world coordinates of timepoint KK.
        nearest: use nearest-neighbour interpolation, for label maps; keeps the dtype.

    Raises:
        InputError: If the image does not overlap the field.
    """
    field = read_field(field_path)
    image = image if isinstance(image, Frame) else read_image(image, labels=nearest)
    if not boxes_overlap(image.grid, field.grid):
        raise InputError(
            f"{image.path}: expected an image that overlaps the field {field_path} in space, got one that does not; "
            "use an image in the space of that timepoint"
        )
    if not nearest and _resembles_labels(image.data):
        logger.warning("%s: it has a few whole numbers as values; add --label if it is a label map", image.path)
    _log_direction(field_path, image.path, points=False)
    grid = resampling_grid(field_path)
    values, covered = warp_frame(image, grid, field, str(field_path), nearest)
    return Frame(np.where(covered, values, values.dtype.type(0)), grid.affine.numpy(), image.path)


def _resembles_labels(data: np.ndarray) -> bool:
    values = np.unique(data)
    return len(values) <= _MOST_LABELS and bool((values == np.round(values)).all())


def warp_frame(
    image: Frame, grid: Grid, transform: Transform, name: str, nearest: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a user's image, treating masked, NaN and infinite voxels as unmeasured.

    Args:
        name: name of the transform, for messages.

    Raises:
        InputError: If the field maps no voxel into the image, or if labels are too large.
    """
    image = _with_measured_mask(image, nearest)
    whole = nearest and image.data.dtype.kind in "iu"
    if whole and abs(label := max(int(image.data.min()), int(image.data.max()), key=abs)) > _LARGEST_LABEL:
        raise InputError(
            f"{image.path}: expected labels up to 2^53, which float64 holds exactly, got {label}; renumber the labels"
        )
    if nearest and not whole and (image.data != np.round(image.data)).any():
        logger.warning("%s: its values are not whole numbers; omit --label unless it is a label map", image.path)
    values, covered = resample(image, grid, transform, nearest)
    if not covered.any():
        raise InputError(
            f"{name}: expected a field that leads into {image.path}, got one that leads outside of it; use the field "
            "of that timepoint"
        )
    return values, covered


def _with_measured_mask(image: Frame, labels: bool) -> Frame:
    """Exclude masked voxels, and NaN and infinite ones, which ``--outside nan`` writes, from the field of view."""
    finite = np.isfinite(image.data)
    measured = finite if image.valid is None else finite & image.valid
    if measured.all():
        return image
    if not measured.any():
        raise InputError(f"{image.path}: expected finite intensities, got none; use another image")
    if undefined := np.count_nonzero(~finite if image.valid is None else ~finite & image.valid):
        logger.warning(
            "%s: %d NaN or infinite voxels count as outside of the field of view and become 0", image.path, undefined
        )
    data = np.where(measured, image.data, image.data.dtype.type(0))
    return replace(image, data=data, valid=None if labels else measured)  # labels are not interpolated


def apply_field_to_points(field_path: str | Path, points_mm: np.ndarray, name: str | Path = "points") -> np.ndarray:
    """Map points p to ``p + field(p)``: with ``ddf_KK`` from the common space to timepoint KK, with ``inverse_ddf_KK``
    from timepoint KK to the common space.

    Args:
        field_path: a written field.
        points_mm: ``(P, 3)``, RAS mm.
        name: name of their file, for messages.

    Raises:
        InputError: If coordinates are not finite or not plausible as mm.
    """
    field = read_field(field_path)
    points = torch.as_tensor(np.asarray(points_mm, dtype=np.float64))
    if not bool((points.abs() < LONGEST_MM).all()):
        raise InputError(
            f"{name}: expected finite coordinates within {LONGEST_MM / 1000:g} m of the scanner's centre, got others; "
            "use mm"
        )
    _log_direction(field_path, name, points=True)
    outside = int((~field.grid.contains(points)).sum())
    if outside:
        logger.warning("%s: %d of %d points are outside and move like its border", field_path, outside, len(points))
    return field(points).numpy()


def _log_direction(field_path: str | Path, name: str | Path, points: bool) -> None:
    """Log between which spaces a field of a registration moves an image or points, which run the other way."""
    if field := _FIELD.fullmatch(Path(field_path).name):
        spaces = f"scan {int(field['scan'])}", "the common space"
        origin, target = spaces if points == bool(field["inverse"]) else spaces[::-1]
        logger.info("%s: from %s to %s", name, origin, target)


def apply_field_to_files(
    field_path: str | Path, files: Sequence[str | Path], output_dir: str | Path, nearest: bool = False
) -> list[Path]:
    """Apply a written field to images and points. Results appear only when all of them are complete.

    Args:
        files: images as for `apply_field`, or points as for `read_named_points`.
        nearest: whether the images are label maps.

    Returns:
        The written files, named after the inputs, with the ending .nii.gz or .csv; 3D Slicer's points keep their
        format, labels and properties.

    Raises:
        InputError: If two results would have the same name, or a result would replace another file than an earlier
            result of this function.
    """
    targets = [Path(output_dir) / _result_name(Path(file).name) for file in files]
    _check_targets([field_path, *files], files, targets)
    with atomic_folder(output_dir) as folder:
        record = read_record(Path(output_dir))
        check_replaceable(record, field_path, files, targets)
        for file, target in zip(files, targets):
            if is_markups(file):
                map_markups(file, partial(apply_field_to_points, field_path, name=file), folder / target.name)
            elif target.suffix == ".csv":
                points, names = read_named_points(file)
                write_points(apply_field_to_points(field_path, points, file), folder / target.name, names)
            else:
                write_image(apply_field(field_path, file, nearest), folder / target.name)
            record[target.name] = record_entry(field_path, file, folder / target.name, Path(output_dir))
        write_record(record, folder)
    return targets


def combine_fields(result: str | Path, origin: int, target: int, path: str | Path) -> None:
    """Write the transform from scan ``origin`` to scan ``target`` of a registration. It maps points of ``origin`` to
    the same tissue in ``target``, and images of ``target`` to the grid of ``origin``.

    Args:
        result: folder written by `write_registration` with fields.
        path: ``.nii.gz`` or ``.nii`` for a field on the grid of ``origin``, ``.h5`` for an ITK composite transform,
            in another folder than ``result``.

    Raises:
        InputError: If there is no such scan or field, or if the path has another ending or is in that folder.
    """
    path, names = Path(path), [f"inverse_ddf_{origin:02d}.nii.gz", f"ddf_{target:02d}.nii.gz"]
    if path.suffix == ".h5":
        check_itk_path(path.resolve())
    elif not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"--output: expected a name that ends in .nii.gz, .nii or .h5, got {path}; rename it")
    check_file_name(path)
    _check_replaces_transform(path)
    if Path(result).is_file():
        raise InputError(f"DIR: expected the folder of a registration, got the file {result}; use its folder")
    for option, scan in (("--from", origin), ("--to", target)):
        _check_scan(Path(result), option, scan)
    files = [Path(result) / name for name in names]
    for file in files:
        if not file.is_file():
            raise InputError(
                f"{file}: expected the fields of a registration, found none; use the number of a scan from 0, and a "
                "folder that 'register' wrote without --fields none"
            )
    check_contains_no_input(path.parent, files)
    first, second = map(read_field, files)
    if not boxes_overlap(first.grid, second.grid):
        raise InputError(
            f"{files[1]}: expected a field that overlaps {files[0].name} in space, got one that does not; use the "
            "fields of one registration"
        )
    transform, grid = ComposedTransform(first, second), resampling_grid(files[0])
    outside = 1 - second.grid.contains(first(grid.points(every=max(1, max(grid.shape) // 32)))).double().mean()
    if outside > _MOST_OUTSIDE:
        logger.warning(
            "%s: %.0f %% of scan %d lie outside of the common space, where its motion is extrapolated",
            result,
            100 * outside,
            origin,
        )
    with atomic_folder(path.parent) as folder:
        if path.suffix == ".h5":
            write_itk_transform(transform, grid, folder / path.name)
        else:
            write_field(transform.displacement(grid).numpy(), grid, folder / path.name)


def _check_replaces_transform(path: Path) -> None:
    """Refuse to replace a file of a registration, and what is no transform, such as a scan, a pipe or a broken link."""
    if path.name in names_of_result(path.parent):
        raise InputError(
            f"--output: expected a new file or an earlier transform, got {path}, a file of the registration in this "
            "folder; choose another name"
        )
    if os.path.lexists(path) and not (path.is_file() and _is_transform(path)):
        raise InputError(
            f"--output: expected a new file or an earlier transform, got {path}, another file; choose another name"
        )


def _is_transform(path: Path) -> bool:
    if path.suffix == ".h5":
        return is_itk_transform(path)
    try:
        read_field(path)
    except InputError:
        return False
    return True


def _check_scan(result: Path, option: str, scan: int) -> None:
    stems = [path.name.split(".")[0] for path in result.glob("ddf_*.nii.gz")]
    last = max((int(stem[4:]) for stem in stems if stem[4:].isdecimal()), default=None)
    if scan < 0 or (last is not None and scan > last):
        wanted = "the number of a scan, from 0" if last is None else f"a scan from 0 to {last}"
        raise InputError(f"{option}: expected {wanted}, got {scan}")


def _result_name(name: str) -> str:
    if is_markups(name):
        return name
    if is_points(name):
        return Path(name).stem + ".csv"
    return image_stem(name) + ".nii.gz"


def _check_targets(inputs: Sequence[str | Path], files: Sequence[str | Path], targets: Sequence[Path]) -> None:
    registration = names_of_result(targets[0].parent) if targets else set()
    for number, target in enumerate(targets):
        check_file_name(target)
        if target.name == RECORD:
            raise InputError(f"{files[number]}: expected another name than that of the record of results; rename it")
        for file in inputs:
            if target.exists() and Path(file).exists() and target.samefile(file):
                raise InputError(f"--output: {target} would replace the input {file}; choose another folder")
        if target.name in registration:
            raise InputError(
                f"--output: {target} would replace a file of the registration in this folder; choose another folder"
            )
        if target in targets[:number]:
            raise InputError(
                f"{files[number]}: expected a unique name, got one whose result {target} is also that of "
                f"{files[targets.index(target)]}; apply the field to them separately, with two output folders"
            )
