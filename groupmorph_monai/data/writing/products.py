"""Outputs of a registration, and the names of their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from ..contrast.kinetics import KINETIC_MAPS, ToftsFit
from ..reading.folders import dicom_reader
from ..reading.regions import check_regions
from ..series import Series
from .replacement import REPORT

DICOM_FOLDER, SEQUENCE, TRANSFORM_SEQUENCE = "dicom", "warped.seq.nrrd", "transforms.seq.nrrd"
REPORTS = (REPORT, "report.png", "report.html")
ALWAYS_WRITTEN = ("warped.nii.gz", "mean.nii.gz", "coverage.nii.gz")


@dataclass(frozen=True)
class Exports:
    """Copies of the results for other programs.

    Args:
        itk_transforms: write ``transform_KK.h5`` and ``inverse_transform_KK.h5``, equivalent to the fields.
        sequence: write ``warped.seq.nrrd`` and ``transforms.seq.nrrd``, sequences for 3D Slicer.
        dicom: write the aligned series with its motion to the folder ``dicom``, see `write_dicom`.
        bids_names: write transforms and images under a second name as well, see `bids_name`.
    """

    itk_transforms: bool = False
    sequence: bool = False
    dicom: bool = False
    bids_names: bool = False


@dataclass(frozen=True)
class Products:
    """Outputs of a registration: optional files, and the values outside of the scans' fields of view.

    Args:
        fields: "full" for fields on the grids of the scans, "compact" on the lattice from which they are interpolated,
            or "none".
        exports: copies for other programs.
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
    exports: Exports = Exports()
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
        if self.exports.dicom and series.slices is None:
            path = series.frames[home].path
            raise InputError(f"--dicom: expected a series that was read from DICOM, got {path}; omit the option")
        if self.exports.dicom:
            dicom_reader(Path(series.frames[home].path)).check_sources(series.dicom_slices, home)
        if self.kinetics is not None:
            self.kinetics.check(series, home)
        if self.region:
            check_regions(self.region, series, home, "mask or region")

    def files(self, timepoints: int, std: bool) -> set[str]:
        """Name all outputs for a number of timepoints, except second names."""
        return {name.format(f"{k:02d}") for name in self.names(std) for k in range(timepoints)}

    def names(self, std: bool) -> list[str]:
        """List the names of all outputs, except second names; ``{}`` stands for the number of a timepoint."""
        kinds = {
            "ddf_{}.nii.gz": self.fields != "none",
            "inverse_ddf_{}.nii.gz": self.fields != "none",
            "std_mm_{}.nii.gz": std,
            "jacobian_{}.nii.gz": self.jacobian,
            "transform_{}.h5": self.exports.itk_transforms,
            "inverse_transform_{}.h5": self.exports.itk_transforms,
            SEQUENCE: self.exports.sequence,
            TRANSFORM_SEQUENCE: self.exports.sequence,
            DICOM_FOLDER: self.exports.dicom,
            **{f"{name}.nii.gz": self.kinetics is not None for name in KINETIC_MAPS},
        }
        return [*ALWAYS_WRITTEN, *(name for name, kept in kinds.items() if kept)]
