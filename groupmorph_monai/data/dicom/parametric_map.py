"""Maps on the grid of the aligned series as Parametric Map objects (DICOM PS3.3, A.75 and C.8.32)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ParametricMapStorage, generate_uid

from ..series import LPS_TO_RAS, Series
from .derived import code_item, derived_object, item
from .geometry import decimals, orientation
from .plane import Plane
from .references import referenced_series, save, source_reference

_SERIES_NUMBER = 3000  # added to the series number of the source
_LARGEST = 2**16 - 1  # maximum of an unsigned 16-bit pixel
_NAME = re.compile(r"(.+?)(?:_(\d+))?(_before)?")


@dataclass(frozen=True)
class _Quantity:
    """Quantity stored in a map: meaning, code and unit."""

    meaning: str
    code: Code
    unit: Code


def _own(value: str, meaning: str) -> Code:
    """Make a private code for a concept that no public coding scheme defines."""
    return Code(value, "99GROUPMORPH", meaning)


_PER_MINUTE = Code("/min", "UCUM", "/min")  # pydicom 2 does not define it
_QUANTITIES = {
    "enhancement": _Quantity(
        "Peak enhancement over the first scan", _own("ENHANCEMENT", "Peak enhancement"), codes.UCUM.Percent
    ),
    "enhancement_ratio": _Quantity(
        "Early over late enhancement", _own("SER", "Signal enhancement ratio"), codes.UCUM.NoUnits
    ),
    "time_to_peak_s": _Quantity("Time from the first to the brightest scan", codes.DCM.TimeToPeak, codes.UCUM.Second),
    "jacobian": _Quantity(
        "Volume of tissue over the common space", _own("JACOBIAN", "Volume ratio"), codes.UCUM.NoUnits
    ),
    "std_mm": _Quantity(
        "Standard deviation of the displacement", _own("STD", "Displacement uncertainty"), codes.UCUM.Millimeter
    ),
    "ktrans": _Quantity("Ktrans of Tofts' model", codes.DCM.Ktrans, _PER_MINUTE),
    "kinetic_r2": _Quantity(
        "R2 of the fit of Tofts' model", _own("R2", "Coefficient of determination"), codes.UCUM.NoUnits
    ),
}


def write_parametric_maps(series: Series, maps: Mapping[str, np.ndarray], home: int, folder: Path) -> None:
    """Write each map as one multi-frame object of a new series, ``NAME.dcm``.

    Values are 16-bit integers with one slope and intercept for the map, as few programs read floating-point pixels; the
    error is at most 1 / 131070 of the map's range.

    Args:
        series: returned by `read_dicom`.
        maps: ``(*S)`` on the grid of scan ``home``, by name: "ktrans", or "jacobian_02" of timepoint 2.
        folder: existing folder for the files.

    Raises:
        ValueError: For the name of an unknown map.
    """
    uid, organisation, base = generate_uid(), generate_uid(), series.dicom_slices[home][0]
    affine = LPS_TO_RAS @ series.frames[home].affine
    for number, (name, volume) in enumerate(maps.items(), start=1):
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"maps: expected names such as ktrans_before or jacobian_02, got {name!r}")
        kind, timepoint, before = match.groups()
        quantity = _QUANTITIES[kind]
        slices = series.dicom_slices
        if timepoint is not None:
            slices = (slices[int(timepoint)],)
        meaning = quantity.meaning + (", before registration" if before else "")
        meaning += f", timepoint {int(timepoint)}" if timepoint else ""
        image = derived_object(series.dicom_slices, home, "maps", meaning, _SERIES_NUMBER)
        image.SeriesInstanceUID, image.InstanceNumber, image.ContentLabel = uid, number, name.upper()[:16]
        image.SOPClassUID, image.Modality = ParametricMapStorage, base.source.examination.modality
        _add_pixels(image, np.nan_to_num(volume), quantity)
        _add_groups(image, affine, slices, organisation)
        image.ReferencedSeriesSequence = referenced_series(plane for planes in slices for plane in planes)
        save(image, folder / f"{name}.dcm")


def _add_pixels(image: Dataset, volume: np.ndarray, quantity: _Quantity) -> None:
    """Add the pixels, one frame per slice, and the groups that define the unit of stored values."""
    low, high = float(volume.min()), float(volume.max())
    slope = max(high - low, 1e-6) / _LARGEST
    stored = ((volume.astype(np.float64) - low) / slope).round().clip(0, _LARGEST).astype("<u2")
    image.ImageType = ["DERIVED", "PRIMARY", "OTHER", "NONE"]
    image.Columns, image.Rows, image.NumberOfFrames = volume.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.LossyImageCompression, image.PresentationLUTShape, image.BurnedInAnnotation = "00", "IDENTITY", "NO"
    image.ContentQualification, image.RecognizableVisualFeatures = "RESEARCH", "NO"
    image.AcquisitionContextSequence = []
    concept = item(
        ValueType="CODE",
        ConceptNameCodeSequence=[code_item(codes.SCT.Quantity)],
        ConceptCodeSequence=[code_item(quantity.code)],
    )
    mapping = item(
        RealWorldValueFirstValueMapped=0,
        RealWorldValueLastValueMapped=_LARGEST,
        RealWorldValueSlope=slope,
        RealWorldValueIntercept=low,
        LUTExplanation=image.ContentDescription,
        LUTLabel=image.ContentLabel,
        MeasurementUnitsCodeSequence=[code_item(quantity.unit)],
        QuantityDefinitionSequence=[concept],
    )
    image.SharedFunctionalGroupsSequence = [
        item(
            RealWorldValueMappingSequence=[mapping],
            PixelValueTransformationSequence=[item(RescaleIntercept=0, RescaleSlope=1, RescaleType="US")],
            ParametricMapFrameTypeSequence=[item(FrameType=list(image.ImageType))],
            FrameVOILUTSequence=[item(WindowCenter=(_LARGEST + 1) // 2, WindowWidth=_LARGEST + 1)],
        )
    ]
    image.add_new("PixelData", "OW", np.ascontiguousarray(stored.T).tobytes())


def _add_groups(image: Dataset, affine: np.ndarray, slices: Sequence[Sequence[Plane]], organisation: str) -> None:
    """Add the position of each frame and references to its source images.

    Args:
        affine: ``(4, 4)``, voxel (column, row, slice) to LPS mm.
        slices: source slices of each timepoint.
        organisation: UID of the dimension organisation.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    measures = item(PixelSpacing=decimals(spacing[1::-1]), SliceThickness=decimals(spacing[2:])[0])
    measures.SpacingBetweenSlices = measures.SliceThickness
    shared = image.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=orientation(affine))]
    image.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organisation)]
    image.DimensionIndexSequence = [
        item(
            DimensionIndexPointer=0x00209057,  # In-Stack Position Number
            FunctionalGroupPointer=0x00209111,  # Frame Content Sequence
            DimensionOrganizationUID=organisation,
        )
    ]
    places = [np.stack([plane.place.position for plane in planes]) for planes in slices]
    frames = []
    for s in range(image.NumberOfFrames):
        position = (affine @ [0, 0, s, 1])[:3]
        nearest = [planes[int(np.linalg.norm(p - position, axis=1).argmin())] for planes, p in zip(slices, places)]
        content = item(StackID="1", InStackPositionNumber=s + 1, DimensionIndexValues=[s + 1])
        derivation = item(
            DerivationDescription=image.ContentDescription,
            DerivationCodeSequence=[code_item(codes.DCM.SpatialResampling)],
            SourceImageSequence=[source_reference(plane) for plane in nearest],
        )
        frames.append(
            item(
                FrameContentSequence=[content],
                PlanePositionSequence=[item(ImagePositionPatient=decimals(position))],
                DerivationImageSequence=[derivation],
            )
        )
    image.PerFrameFunctionalGroupsSequence = frames
