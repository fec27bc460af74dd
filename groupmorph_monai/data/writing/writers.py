"""Write a registration: the aligned series, fields and maps."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

import numpy as np
import torch

from ...errors import InputError
from ...space.grid import Grid
from ...space.transforms import Transform
from ..contrast.enhancement import peak_enhancement_percent
from ..contrast.kinetics import KINETIC_MAPS, Fits, ToftsFit, kinetic_maps
from ..preprocessing.resampling import resample
from ..reading.folders import dicom_reader
from ..reading.names import bids_name, is_bids_name
from ..reading.regions import check_regions
from ..reading.signature import read_text
from ..series import Frame, Series
from ..storage import IN_MEMORY, Storage
from .fields import compact_grid, write_field
from .integers import integer_type
from .itk_transforms import write_itk_transform
from .nifti import CHECK_SETTINGS, check_finite, nifti_image, save_nifti
from .output_folder import atomic_folder, check_contains_no_input
from .replacement import REPORT, check_names, check_ownership, journals
from .sequences import write_sequence, write_transform_sequence

__all__ = [
    "FILES_AT_ONCE", "VOLUMES", "Products", "Written", "check_result_folder", "earlier_result",
    "listed_result", "write_registration",
]  # fmt: skip

logger = logging.getLogger(__name__)
FILES_AT_ONCE = 4  # number of files written in parallel; more would take too much memory
_DICOM = "dicom"  # folder name
VolumeName = Literal["warped", "native", "warped_covered", "native_covered"]
VOLUMES: dict[VolumeName, type] = {
    "warped": np.float32,
    "native": np.float32,
    "warped_covered": bool,
    "native_covered": bool,
}
_SEQUENCE, _TRANSFORM_SEQUENCE = "warped.seq.nrrd", "transforms.seq.nrrd"


@dataclass(frozen=True)
class Products:
    """Outputs of a registration: optional files, and the values outside of the scans' fields of view.

    Args:
        fields: "full" for fields on the grids of the scans, "compact" on the lattice from which they are interpolated,
            or "none".
        itk_transforms: write ``transform_KK.h5`` and ``inverse_transform_KK.h5``, equivalent to the fields.
        sequence: write ``warped.seq.nrrd`` and ``transforms.seq.nrrd``, sequences for 3D Slicer.
        dicom: write the aligned series with its motion to the folder ``dicom``, see `write_dicom`.
        bids_names: write transforms and images under a second name as well, see `bids_name`.
        kinetics: fit that makes maps of contrast kinetics before and after: ``ktrans.nii.gz`` (1/min) and
            ``kinetic_r2.nii.gz``, and the same with ``_before``; and of the aligned series ``enhancement.nii.gz``
            (percent), ``enhancement_ratio.nii.gz`` and ``time_to_peak_s.nii.gz``; None for no maps.
        region: file drawn on the scan that defines the output grid, or one per scan: the report shows the signal where
            it is above 0; None for no region.
        jacobian: write ``jacobian_KK.nii.gz``, determinants.
        outside: value of the aligned series and its mean outside the field of view: "zero", "nan", or "border" for that
            of the nearest covered voxel.
    """

    fields: str = "compact"
    itk_transforms: bool = False
    sequence: bool = False
    dicom: bool = False
    bids_names: bool = False
    kinetics: ToftsFit | None = None
    region: str | Sequence[str] | None = None
    jacobian: bool = False
    outside: str = "zero"

    def check(self, series: Series, home: int) -> None:
        """Check that these outputs can be written for a series.

        Raises:
            InputError: If one of them cannot.
        """
        if self.fields not in ("full", "compact", "none"):
            raise InputError(f"write_fields: expected full, compact or none, got {self.fields!r}")
        if self.outside not in ("zero", "nan", "border"):
            raise InputError(f"outside: expected zero, nan or border, got {self.outside!r}")
        if self.dicom and series.slices is None:
            path = series.frames[home].path
            raise InputError(f"--dicom: expected a series that was read from DICOM, got {path}; omit the option")
        if self.dicom:
            dicom_reader(Path(series.frames[home].path)).check_modality(series.dicom_slices[home][0])
        if self.kinetics is not None:
            self.kinetics.check(series, home)
        if self.region:
            check_regions(self.region, series, home, "mask or region")

    def names(self, std: bool) -> list[str]:
        """List the names of all outputs, except second names; ``{}`` stands for the number of a timepoint."""
        kinds = {
            "ddf_{}.nii.gz": self.fields != "none",
            "inverse_ddf_{}.nii.gz": self.fields != "none",
            "std_mm_{}.nii.gz": std,
            "jacobian_{}.nii.gz": self.jacobian,
            "transform_{}.h5": self.itk_transforms,
            "inverse_transform_{}.h5": self.itk_transforms,
            _SEQUENCE: self.sequence,
            _TRANSFORM_SEQUENCE: self.sequence,
            _DICOM: self.dicom,
            **{f"{name}.nii.gz": self.kinetics is not None for name in KINETIC_MAPS},
        }
        return [*_ALWAYS, *(name for name, kept in kinds.items() if kept)]


_ALWAYS = ("warped.nii.gz", "mean.nii.gz", "coverage.nii.gz")
_ALL = Products(itk_transforms=True, sequence=True, dicom=True, kinetics=ToftsFit(), jacobian=True).names(std=True)
REPORTS = (REPORT, "report.png", "report.html")
_SINGLE = {name for name in _ALL if "{}" not in name}
_NUMBERED = re.compile("|".join(re.escape(name).replace(r"\{\}", r"\d+") for name in _ALL if "{}" in name))


class Written(TypedDict):
    """Volumes computed by `write_registration`, on the grid of the home scan.

    Args:
        warped, native: the series after and before registration, ``(K, *S)`` float32.
        warped_covered, native_covered: their fields of view, ``(K, *S)`` bool.
        covered: ``(*S)`` bool, the intersection of all these.
        kinetics: returned by `ToftsFit.fit_series`; None without a fit.
        files: names of the written files.
    """

    warped: np.ndarray
    native: np.ndarray
    warped_covered: np.ndarray
    native_covered: np.ndarray
    covered: np.ndarray
    kinetics: Fits | None
    files: list[str]


def write_registration(
    series: Series,
    transforms: Sequence[Transform],
    output_dir: str | Path,
    home: int = 0,
    std_mm: Sequence[Frame] | None = None,
    products: Products = Products(),
    storage: Storage = IN_MEMORY,
) -> Written:
    """Write the aligned series and its fields. All files appear at once when they are complete.

    ``warped.nii.gz`` (4D), its mean over covered voxels ``mean.nii.gz``, the number of scans per voxel
    ``coverage.nii.gz``, ``std_mm_KK.nii.gz`` and ``jacobian_KK.nii.gz`` are on the grid of scan ``home``.
    ``ddf_KK.nii.gz`` (maps points of the common space to timepoint KK, and its images to the common space) covers that
    grid; ``inverse_ddf_KK.nii.gz`` (maps back) covers the grid of timepoint KK.

    Args:
        series: K native volumes, each interpolated once, or not at all if its transform is the identity.
        transforms: K, from the common space to each timepoint.
        home: index of the scan that defines the output grid.
        std_mm: K frames, standard deviation of each displacement.
        products: what to write.
        storage: where to keep the returned volumes.

    Returns:
        The volumes, the kinetics, and the names of the files.

    Raises:
        ValueError: If series and transforms differ in number.
    """
    count, grid, affine = len(series.frames), series.frames[home].grid, series.frames[home].affine
    if len(transforms) != count:
        raise ValueError(f"transforms: expected one for each of {count} timepoints, got {len(transforms)}")
    result = {name: storage.empty_array((count, *grid.shape), dtype) for name, dtype in VOLUMES.items()}
    inverses, maps = [transform.inverse for transform in transforms], dict[str, np.ndarray]()
    if products.jacobian:
        determinants = storage.empty_array((count, *grid.shape), np.float32)
        maps |= {f"jacobian_{k:02d}": determinants[k] for k in range(count)}
    with atomic_folder(output_dir) as folder:

        def write_timepoint(k: int) -> None:
            _resample_timepoint(result, k, series.frames[k], grid, transforms[k])
            if products.jacobian:
                determinants[k] = transforms[k].jacobian_determinant(grid).numpy()
            if std_mm is not None:
                maps[f"std_mm_{k:02d}"], _ = resample(std_mm[k], grid)
                check_finite(maps[f"std_mm_{k:02d}"], f"std_mm_{k:02d}.nii.gz", "standard deviations", CHECK_SETTINGS)
            _write_field(products.fields, transforms, k, grid, folder / f"ddf_{k:02d}.nii.gz")
            _write_field(products.fields, inverses, k, series.frames[k].grid, folder / f"inverse_ddf_{k:02d}.nii.gz")
            storage.release()

        _in_threads(write_timepoint, range(count))
        covered = _everywhere(result["warped_covered"], storage) & _everywhere(result["native_covered"], storage)
        fit, images = products.kinetics, (result["native"], result["warped"])
        kinetics = None if fit is None else fit.fit_series(series, home, *images, covered, transforms[home])
        maps |= kinetic_maps(kinetics)
        _in_threads(lambda name: save_nifti(nifti_image(maps[name], affine), folder / f"{name}.nii.gz"), maps)
        aligned = _write_series(result, series, home, products.outside, folder, storage)
        _write_products(series, transforms, aligned, maps, home, products, folder)
        files = sorted(file.name for file in folder.iterdir())
    return cast(Written, {**result, "covered": covered, "kinetics": kinetics, "files": files})


def _resample_timepoint(
    result: Mapping[VolumeName, np.ndarray], k: int, frame: Frame, grid: Grid, transform: Transform
) -> None:
    result["warped"][k], result["warped_covered"][k] = resample(frame, grid, transform)
    result["native"][k], result["native_covered"][k] = resample(frame, grid)


def _in_threads(function: Callable[..., None], items: Iterable[object]) -> None:
    """Call a function for each item in a few threads."""
    with ThreadPoolExecutor(min(torch.get_num_threads(), FILES_AT_ONCE)) as pool:
        list(pool.map(function, items))


def _write_products(
    series: Series,
    transforms: Sequence[Transform],
    aligned: np.ndarray,
    maps: Mapping[str, np.ndarray],
    home: int,
    products: Products,
    folder: Path,
) -> None:
    """Write the outputs that need the whole series, or a library that is not thread-safe."""
    grid = series.frames[home].grid
    for k, transform in enumerate(transforms if products.itk_transforms else ()):
        write_itk_transform(transform, grid, folder / f"transform_{k:02d}.h5")
        write_itk_transform(transform.inverse, series.frames[k].grid, folder / f"inverse_transform_{k:02d}.h5")
    if products.sequence:
        write_sequence(aligned, grid, folder / _SEQUENCE, series.times_s)
        lattice = grid if products.fields == "full" else compact_grid([t.lattice for t in transforms], grid)
        write_transform_sequence(transforms, lattice, folder / _TRANSFORM_SEQUENCE, series.times_s)
    if products.dicom:
        dicom = dicom_reader(Path(series.frames[home].path))
        dicom.write_dicom(series, aligned, home, folder / _DICOM)
        dicom.write_registration_object(series, transforms, home, folder / _DICOM / "motion.dcm")
        if series.dicom_slices[home][0].source.examination.modality == "MR":
            maps = {"enhancement": peak_enhancement_percent(np.nan_to_num(aligned)), **maps}
        dicom.write_parametric_maps(series, dict(sorted(maps.items())), home, folder / _DICOM)
    if products.bids_names:
        _add_bids_names(series, folder)


def _add_bids_names(series: Series, folder: Path) -> None:
    """Give files a second name, by hard links if the file system supports them."""
    scans = [frame.path for frame in series.frames]
    for file in list(folder.iterdir()):
        if name := bids_name(file.name, scans):
            try:
                os.link(file, folder / name)
            except OSError:
                shutil.copyfile(file, folder / name)


def _write_field(kind: str, transforms: Sequence[Transform], k: int, volume: Grid, path: Path) -> None:
    """Write a field: "full" on the grid ``volume``, "compact" on its lattice, or that of another transform."""
    if kind == "full":
        write_field(transforms[k].displacement(volume).numpy(), volume, path)
    elif kind == "compact":
        grid = compact_grid([t.lattice for t in (transforms[k], *transforms)], volume)
        write_field(transforms[k].displacement(grid).numpy(), grid, path, volume)


def _everywhere(covered: np.ndarray, storage: Storage) -> np.ndarray:
    """Return where all K of ``(K, *S)`` are True, as ``covered.all(axis=0)``."""
    everywhere = np.ones(covered.shape[1:], bool)
    for chunk in storage.chunks(len(covered)):
        everywhere &= covered[chunk].all(axis=0)
    return everywhere


def _write_series(
    result: Mapping[VolumeName, np.ndarray], series: Series, home: int, outside: str, folder: Path, storage: Storage
) -> np.ndarray:
    """Write the aligned series, its mean and coverage, with the spacing, units, codes and frame time of the home scan,
    and return the aligned series as written: of integer scans, rounded to the values of an integer type."""
    warped, coverage = result["warped"], result["warped_covered"]
    affine, header = series.frames[home].affine, series.frames[home].header
    filler = {"zero": 0.0, "nan": np.nan}
    number, total, everything = np.zeros(warped.shape[1:], np.uint16), 0.0, 0.0
    extremes: list[float] = []
    aligned = warped if outside == "border" else storage.empty_array(warped.shape, np.float32)
    for chunk in storage.chunks(len(warped)):
        number += coverage[chunk].sum(axis=0, dtype=np.uint16)
        total = total + (warped[chunk] * coverage[chunk]).sum(axis=0)
        if outside == "border":
            everything = everything + warped[chunk].sum(axis=0)
        else:
            aligned[chunk] = np.where(coverage[chunk], warped[chunk], np.float32(filler[outside]))
        extremes += [float(aligned[chunk].min()), float(aligned[chunk].max())]
    mean = total / np.maximum(number, 1)
    mean = np.where(number > 0, mean, everything / len(warped) if outside == "border" else filler[outside])
    mean = mean.astype(np.float32)
    integers = integer_type(series.frames, float(np.min(extremes)), float(np.max(extremes)), storage)
    if integers is not None:
        mean = integers.rounded(mean)
        for chunk in storage.chunks(len(aligned)):
            for volume in aligned[chunk]:
                volume[:] = integers.rounded(volume)
    timed = series.frames[0].header
    image = nifti_image(np.moveaxis(aligned, 0, -1), affine, header, series.frame_time, timed)
    save_nifti(image, folder / "warped.nii.gz", storage, integers)
    save_nifti(nifti_image(mean, affine, header), folder / "mean.nii.gz", integers=integers)
    save_nifti(nifti_image(number, affine), folder / "coverage.nii.gz")
    return aligned


def listed_result(output_dir: Path) -> set[str]:
    """List the files of an earlier registration in ``output_dir`` according to its report, which may still be in a
    journal; empty if there is no such folder."""
    try:
        names = {path.name for path in output_dir.iterdir()}
        listed = {name for folder in (output_dir, *journals(output_dir)) for name in _listed(folder)}
    except OSError:
        return set()
    return {name for name in listed & names if _is_output(name)}


def _is_output(name: str) -> bool:
    return name in _SINGLE or is_bids_name(name) or _NUMBERED.fullmatch(name) is not None


def _listed(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads(read_text(folder / REPORT))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def check_result_folder(output_dir: Path, inputs: Iterable[str | Path]) -> None:
    """Check that the result of a registration can be written to ``output_dir``.

    Args:
        output_dir: the folder, which may not exist yet.
        inputs: files and folders that the run reads.

    Raises:
        InputError: If an input could be overwritten or removed, if a folder, or a file that each run writes, is there
            but not part of an earlier result, or if the earlier result is protected.
    """
    results = listed_result(output_dir)
    check_contains_no_input(output_dir, inputs, results)
    if output_dir.is_dir():
        check_ownership(output_dir, results)
        names = {path.name for path in output_dir.iterdir() if _is_output(path.name) or path.name in REPORTS} - results
        check_names(output_dir, names)
        if foreign := sorted(names.intersection(_ALWAYS)):
            raise InputError(
                f"{output_dir / foreign[0]}: expected no file that a registration would replace, got one that no "
                f"{REPORT} beside it lists; move it, or choose another output folder"
            )


def earlier_result(output_dir: Path) -> set[str]:
    """List the files of the earlier result, to be replaced. Other files that look like outputs are kept with a warning,
    as only the user may decide to delete them."""
    results = listed_result(output_dir)
    unlisted = sorted(p.name for p in output_dir.iterdir() if _NUMBERED.fullmatch(p.name) and p.name not in results)
    if unlisted:
        logger.warning("%s also has %d files of an earlier run, such as %s", output_dir, len(unlisted), unlisted[0])
    return results
