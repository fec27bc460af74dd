"""Write a registration: the aligned series, fields and maps."""

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypedDict, cast

import numpy as np
import torch

from ...space.grid import Grid
from ...space.transforms import Transform
from ..contrast.enhancement import peak_enhancement_percent
from ..contrast.kinetics import Fits, kinetic_maps
from ..preprocessing.resampling import resample
from ..reading.folders import dicom_reader
from ..reading.names import bids_name
from ..series import Frame, Series
from ..storage import IN_MEMORY, Storage
from .fields import compact_grid, write_field
from .integers import integer_type
from .itk_transforms import write_itk_transform
from .nifti import CHECK_SETTINGS, check_finite, nifti_image, save_nifti
from .output_folder import atomic_folder
from .products import DICOM_FOLDER, SEQUENCE, TRANSFORM_SEQUENCE, Products
from .sequences import write_sequence, write_transform_sequence

FILES_AT_ONCE = 4  # number of files written in parallel; more would take too much memory
VolumeName = Literal["warped", "native", "warped_covered", "native_covered"]
VOLUMES: dict[VolumeName, type] = {
    "warped": np.float32,
    "native": np.float32,
    "warped_covered": bool,
    "native_covered": bool,
}


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
    products: Products | None = None,
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
        products: what to write; None for the defaults.
        storage: where to keep the returned volumes.

    Returns:
        The volumes, the kinetics, and the names of the files.

    Raises:
        ValueError: If series and transforms differ in number.
    """
    if len(transforms) != len(series.frames):
        raise ValueError(f"transforms: expected one for each of {len(series.frames)} timepoints, got {len(transforms)}")
    with atomic_folder(output_dir) as folder:
        return _Writer(series, transforms, home, products or Products(), storage, folder).write(std_mm)


@dataclass(frozen=True)
class _Writer:
    """Write the files of one registration to ``folder``; other arguments as for `write_registration`."""

    series: Series
    transforms: Sequence[Transform]
    home: int
    products: Products
    storage: Storage
    folder: Path
    maps: dict[str, np.ndarray] = field(default_factory=dict)  # 3D maps on the grid of the home scan, by file name

    @cached_property
    def grid(self) -> Grid:
        return self.series.frames[self.home].grid

    @cached_property
    def inverses(self) -> list[Transform]:
        return [transform.inverse for transform in self.transforms]

    def write(self, std_mm: Sequence[Frame] | None) -> Written:
        frames, shape = self.series.frames, (len(self.transforms), *self.grid.shape)
        volumes = {name: self.storage.empty_array(shape, dtype) for name, dtype in VOLUMES.items()}
        if self.products.jacobian:
            determinants = self.storage.empty_array(shape, np.float32)
            self.maps.update((f"jacobian_{k:02d}", part) for k, part in enumerate(determinants))

        def write_timepoint(k: int) -> None:
            volumes["warped"][k], volumes["warped_covered"][k] = resample(frames[k], self.grid, self.transforms[k])
            volumes["native"][k], volumes["native_covered"][k] = resample(frames[k], self.grid)
            if self.products.jacobian:
                determinants[k] = self.transforms[k].jacobian_determinant(self.grid).numpy()
            if std_mm is not None:
                name = f"std_mm_{k:02d}"
                self.maps[name], _ = resample(std_mm[k], self.grid)
                check_finite(self.maps[name], f"{name}.nii.gz", "standard deviations", CHECK_SETTINGS)
            self._write_fields(k)
            self.storage.release()

        _in_threads(write_timepoint, range(len(frames)))
        covered = self._everywhere(volumes["warped_covered"]) & self._everywhere(volumes["native_covered"])
        fit, images = self.products.kinetics, (volumes["native"], volumes["warped"])
        kinetics = None
        if fit is not None:
            kinetics = fit.fit_series(self.series, self.home, *images, covered, self.transforms[self.home])
        self.maps.update(kinetic_maps(kinetics))
        _in_threads(self._write_map, self.maps)
        self._write_products(self._write_series(volumes["warped"], volumes["warped_covered"]))
        files = sorted(file.name for file in self.folder.iterdir())
        return cast(Written, {**volumes, "covered": covered, "kinetics": kinetics, "files": files})

    def _write_fields(self, k: int) -> None:
        """Write the field of timepoint k on the home grid and its inverse on the grid of timepoint k."""
        for prefix, transforms, grid in (
            ("ddf", self.transforms, self.grid),
            ("inverse_ddf", self.inverses, self.series.frames[k].grid),
        ):
            path = self.folder / f"{prefix}_{k:02d}.nii.gz"
            if self.products.fields == "full":
                write_field(transforms[k].displacement(grid).numpy(), grid, path)
            elif self.products.fields == "compact":
                # An affine transform, which has no lattice, is stored on that of another timepoint.
                lattice = compact_grid([t.lattice for t in (transforms[k], *transforms)], grid)
                write_field(transforms[k].displacement(lattice).numpy(), lattice, path, grid)

    def _everywhere(self, covered: np.ndarray) -> np.ndarray:
        """Return where all K of ``(K, *S)`` are True, as ``covered.all(axis=0)``."""
        everywhere = np.ones(covered.shape[1:], bool)
        for chunk in self.storage.chunks(len(covered)):
            everywhere &= covered[chunk].all(axis=0)
        return everywhere

    def _write_map(self, name: str) -> None:
        save_nifti(nifti_image(self.maps[name], self.series.frames[self.home].affine), self.folder / f"{name}.nii.gz")

    def _write_series(self, warped: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Write the aligned series, its mean and coverage, with the spacing, units, codes and frame time of the home
        scan, and return the aligned series as written: of integer scans, rounded to the values of an integer type."""
        border, storage = self.products.outside == "border", self.storage
        filler = np.float32(np.nan if self.products.outside == "nan" else 0)
        number, total, total_of_all = np.zeros(warped.shape[1:], np.uint16), 0.0, 0.0
        extremes: list[float] = []
        aligned = warped if border else storage.empty_array(warped.shape, np.float32)
        for chunk in storage.chunks(len(warped)):
            number += covered[chunk].sum(axis=0, dtype=np.uint16)
            total = total + (warped[chunk] * covered[chunk]).sum(axis=0)
            if border:
                total_of_all = total_of_all + warped[chunk].sum(axis=0)
            else:
                aligned[chunk] = np.where(covered[chunk], warped[chunk], filler)
            extremes += [float(aligned[chunk].min()), float(aligned[chunk].max())]
        mean = np.where(number > 0, total / np.maximum(number, 1), total_of_all / len(warped) if border else filler)
        mean = mean.astype(np.float32)
        integers = integer_type(self.series.frames, float(np.min(extremes)), float(np.max(extremes)), storage)
        if integers is not None:
            mean = integers.rounded(mean)
            for chunk in storage.chunks(len(aligned)):
                for volume in aligned[chunk]:
                    volume[:] = integers.rounded(volume)
        home, timed = self.series.frames[self.home], self.series.frames[0].header
        image = nifti_image(np.moveaxis(aligned, 0, -1), home.affine, home.header, self.series.frame_time, timed)
        save_nifti(image, self.folder / "warped.nii.gz", storage, integers)
        save_nifti(nifti_image(mean, home.affine, home.header), self.folder / "mean.nii.gz", integers=integers)
        save_nifti(nifti_image(number, home.affine), self.folder / "coverage.nii.gz")
        return aligned

    def _write_products(self, aligned: np.ndarray) -> None:
        """Write the outputs that need the whole series, or a library that is not thread-safe."""
        products, times_s = self.products, self.series.times_s
        if products.exports.itk_transforms:
            for k, (transform, inverse) in enumerate(zip(self.transforms, self.inverses)):
                write_itk_transform(transform, self.grid, self.folder / f"transform_{k:02d}.h5")
                grid = self.series.frames[k].grid
                write_itk_transform(inverse, grid, self.folder / f"inverse_transform_{k:02d}.h5")
        if products.exports.sequence:
            write_sequence(aligned, self.grid, self.folder / SEQUENCE, times_s)
            lattices = [t.lattice for t in self.transforms]
            lattice = self.grid if products.fields == "full" else compact_grid(lattices, self.grid)
            write_transform_sequence(self.transforms, lattice, self.folder / TRANSFORM_SEQUENCE, times_s)
        if products.exports.dicom:
            self._write_dicom(aligned, self.folder / DICOM_FOLDER)
        if products.exports.bids_names:
            self._add_bids_names()

    def _write_dicom(self, aligned: np.ndarray, folder: Path) -> None:
        series, home, maps = self.series, self.home, self.maps
        dicom = dicom_reader(Path(series.frames[home].path))
        dicom.write_dicom(series, aligned, home, folder)
        dicom.write_registration_object(series, self.transforms, home, folder / "motion.dcm")
        if series.dicom_slices[home][0].source.examination.modality == "MR":
            maps = {"enhancement": peak_enhancement_percent(np.nan_to_num(aligned)), **maps}
        dicom.write_parametric_maps(series, dict(sorted(maps.items())), home, folder)

    def _add_bids_names(self) -> None:
        """Give files a second name, by hard links if the file system supports them."""
        scans = [frame.path for frame in self.series.frames]
        for file in list(self.folder.iterdir()):
            if name := bids_name(file.name, scans):
                try:
                    os.link(file, self.folder / name)
                except OSError:
                    shutil.copyfile(file, self.folder / name)


def _in_threads(function: Callable[..., None], items: Iterable[object]) -> None:
    """Call a function for each item in a few threads."""
    with ThreadPoolExecutor(min(torch.get_num_threads(), FILES_AT_ONCE)) as pool:
        list(pool.map(function, items))
