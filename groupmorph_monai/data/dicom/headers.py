"""Read the header of a DICOM image for each of its slices.

A classic file contains one slice, an enhanced (multi-frame) file many, and a mosaic of Siemens or United Imaging the
slices of one volume side by side in one picture. All are converted to `Plane`s.
"""

import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, ParametricMapStorage, SegmentationStorage

from . import vendors
from .attributes import Attributes, to_float
from .clocks import moments
from .plane import PROTOCOL, Diffusion, Examination, ImageFile, Person, Place, Plane, Raster, Scaling, Source

logger = logging.getLogger(__name__)

_LABEL_MAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"  # pydicom 2 lacks it
_MAPS = ParametricMapStorage, SegmentationStorage, _LABEL_MAP_STORAGE  # without image intensities
# Methods of reconstruction of CT and their strength, such as ASiR-V 40%.
_RECONSTRUCTION = re.compile(r"(?:ASIR(?:-?V)?|IDOSE|SAFIRE|ADMIRE|AIDR(?: ?3D)?|VEO)\W*\d+ ?%", re.IGNORECASE)
_GATED = re.compile("gat|phas|cycle|resp|breath|cardi", re.IGNORECASE)


def planes_of(dataset: Dataset, path: str) -> Iterator[Plane]:
    """Yield the slices of one file; none if it contains no grey-value image with a position in the patient."""
    if _missing_grey_values(dataset):
        return
    slices = vendors.mosaic_slices(dataset)
    for frame in range(len(slices) or _placed_frames(dataset)):
        attributes = Attributes(dataset, 0, slices[frame]) if slices else Attributes(dataset, frame)
        place = _place(attributes)
        if place is None:
            continue
        if vendors.rows_are_reversed(attributes):
            place = _with_reversed_rows(place, int(dataset.Rows))
        plane = _plane(attributes, path, _instance(dataset) or path, frame, place)
        if slices:
            yield _tile(plane, len(slices))
        else:
            yield from _tiles(dataset, plane) if "MOSAIC" in plane.source.image_type else [plane]


def _instance(dataset: Dataset) -> str:
    """Read the SOP instance UID, which some programs write into the file's meta information alone; empty if missing."""
    meta = getattr(dataset, "file_meta", Dataset())
    return str(dataset.get("SOPInstanceUID") or meta.get("MediaStorageSOPInstanceUID") or "")


def missing_slices(dataset: Dataset) -> str:
    """Explain why a file has no slices."""
    if reason := _missing_grey_values(dataset):
        return reason
    if not _placed_frames(dataset):
        return "several frames without functional groups"
    attributes = Attributes(dataset, 0)
    names = ("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)
    missing = [name for name, length in names if len(attributes.numbers(name)) != length]
    return f"no {' and no '.join(missing)}" if missing else "no positions of its slices"


def _missing_grey_values(dataset: Dataset) -> str:
    """Explain why a file has no grey values; empty if it has some."""
    sop_class = dataset.get("SOPClassUID")
    if sop_class in _MAPS:
        return f"{UID(sop_class).name.removesuffix(' Storage')} objects"
    if "Rows" not in dataset:
        return "no pixels"
    if int(dataset.get("SamplesPerPixel") or 1) > 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return "colours"
    return ""


def _placed_frames(dataset: Dataset) -> int:
    """Count the frames, checking that each has its own position: a damaged number of frames could be billions."""
    count, groups = max(int(dataset.get("NumberOfFrames") or 1), 1), dataset.get("PerFrameFunctionalGroupsSequence")
    if groups and count > len(groups):
        raise ValueError(f"{count} frames, but positions of {len(groups)}")
    return count if groups or count == 1 else 0


def _place(attributes: Attributes) -> Place | None:
    position, axes = (attributes.numbers(f"Image{name}Patient") for name in ("Position", "Orientation"))
    spacing = attributes.numbers("PixelSpacing")
    if len(position) != 3 or len(axes) != 6 or len(spacing) != 2:
        return None
    directions = np.array(axes).reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return Place(np.array(position), directions / lengths, (spacing[0], spacing[1])) if lengths.all() else None


def _with_reversed_rows(place: Place, rows: int) -> Place:
    columns_axis, rows_axis = place.axes
    last_row = place.position + (rows - 1) * place.spacing_mm[0] * rows_axis
    return replace(place, position=last_row, axes=np.stack([columns_axis, -rows_axis]))


def _plane(attributes: Attributes, path: str, uid: str, frame: int, place: Place) -> Plane:
    clocks = moments(attributes)
    scaling = Scaling(
        _rescale(attributes, "RescaleSlope", 1.0),
        _rescale(attributes, "RescaleIntercept", 0.0),
        vendors.display_scale(attributes),
        _real_world_slope(attributes),
        attributes.get("Modality") == "MR" and "philips" in attributes.text("Manufacturer").lower(),
    )
    return Plane(
        source=_source(attributes, place),
        file=ImageFile(path, uid, frame, scaling),
        place=place,
        keys=_keys(attributes) | {name: local for name, (local, _) in clocks.items()} | {"frame number": float(frame)},
        zones={name: zone for name, (_, zone) in clocks.items()},
        protocol=tuple(tuple(map(_plain, attributes.values(*names))) for names in PROTOCOL),
        diffusion=Diffusion(vendors.b_value(attributes), vendors.b_value_ge(attributes)),
        person=Person(*map(attributes.text, ("PatientName", "PatientBirthDate", "PatientSex"))),
    )


def _rescale(attributes: Attributes, name: str, default: float) -> float:
    """Read a slope or an intercept; NaN, which is refused when the pixels are read, if it is not a finite number."""
    return default if attributes.get(name) is None else attributes.number(name, default=math.nan)


def _real_world_slope(attributes: Attributes) -> float | None:
    """Read the slope of the first Real World Value Mapping of a frame or a classic image; None if it has none."""
    mappings = attributes.get("RealWorldValueMappingSequence", default=[])
    sources = [attributes, *(Attributes(mapping, 0) for mapping in mappings[:1])]
    return next(filter(None, (source.number("RealWorldValueSlope") for source in sources)), None)


def _source(attributes: Attributes, place: Place) -> Source:
    get, number, text = attributes.get, attributes.number, attributes.text
    echo_time, echo_number = number("EffectiveEchoTime", "EchoTime"), number("EchoNumbers")
    echo = [f"ECHO {echo_number:g}"] if echo_time is None and echo_number is not None else []
    kinds = attributes.texts("FrameType", "ImageType") + attributes.texts("ComplexImageComponent")
    return Source(
        Examination(
            patient=text("PatientID", "PatientName"),
            study=text("StudyInstanceUID"),
            space=text("FrameOfReferenceUID"),
            modality=text("Modality"),
        ),
        series=text("SeriesInstanceUID"),
        number=int(number("SeriesNumber", default=0)),
        description=text("SeriesDescription", "ProtocolName").strip(),
        image_type=(*kinds, *vendors.image_kinds(attributes), *echo),
        echo_time_ms=round(echo_time or 0.0, 2),
        raster=Raster((int(get("Rows")), int(get("Columns"))), place.spacing_mm, tuple(place.axes.ravel().tolist())),
    )


def _phase(attributes: Attributes) -> float | None:
    """Read the phase of a gated scan, in percent of the respiratory or cardiac cycle.

    Most CT scanners write it into the description, such as "ASiR 40% Gated, 30.0%", in which 40% is the strength of the
    reconstruction, or the comment, some with a decimal comma. Percentages of other scanners may be a dose or a
    concentration.
    """
    nominal = attributes.number("NominalPercentageOfRespiratoryPhase", "NominalPercentageOfCardiacPhase")
    if nominal is not None:
        return nominal
    text = _RECONSTRUCTION.sub("", " ".join(map(attributes.text, ("SeriesDescription", "ImageComments"))))
    if attributes.get("Modality") != "CT" and not _GATED.search(text):
        return None
    return _combined([float(n.replace(",", ".")) for n in re.findall(r"(\d{1,3}(?:[.,]\d+)?) ?%", text)])


def _combined(numbers: Sequence[float]) -> float | None:
    """Combine numbers, only some of which differ between the images at one position, to sort by them."""
    return sum(number * 1000.0**-n for n, number in enumerate(numbers)) if numbers else None


def _plain(value: object) -> str:
    """Format a value of the protocol in the same way for all scans: 4.2, 4.20 and 4,2 are the same number."""
    try:
        return f"{to_float(str(value)):.5g}"
    except ValueError:
        return str(value)


def _keys(attributes: Attributes) -> dict[str, float]:
    number = attributes.number
    keys = {
        "temporal offset": number("TemporalPositionTimeOffset"),
        "trigger time": number("TriggerTime", "NominalCardiacTriggerDelayTime"),
        "dynamic scan begin": vendors.dynamic_begin_s(attributes),
        "frame reference time": number("FrameReferenceTime"),
        "phase": _phase(attributes),
        "temporal position": number("TemporalPositionIndex", "TemporalPositionIdentifier"),
        "acquisition number": number("FrameAcquisitionNumber", "AcquisitionNumber"),
        "spin label": vendors.spin_label(attributes),
        "series number": number("SeriesNumber"),
        "instance number": number("InstanceNumber"),
        "dimension index": _combined(attributes.numbers("DimensionIndexValues")),
        "repetition time": vendors.repetition_of_volumes_s(attributes),
    }
    if (label := keys["spin label"]) is not None and (dynamic := keys["temporal position"]) is not None:
        keys["spin label"] = dynamic + label / 4  # sorts by repetition, then by label, which is below 4
    for name in ("trigger time", "frame reference time"):
        milliseconds = keys[name]
        keys[name] = None if milliseconds is None else milliseconds / 1000
    if (position := keys["temporal position"]) is not None and (
        resolution := number("TemporalResolution", default=0.0)
    ):
        keys["temporal resolution"] = position * resolution / 1000
    return {name: value for name, value in keys.items() if value is not None}


def _tiles(dataset: Dataset, plane: Plane) -> Iterator[Plane]:
    """Yield the slices of a Siemens mosaic, whose number and order nibabel reads from its private header."""
    with warnings.catch_warnings(action="ignore"):  # nibabel calls its DICOM readers experimental
        from nibabel.nicom.dicomwrappers import MosaicWrapper, wrapper_from_data

        mosaic = wrapper_from_data(dataset)
    if not isinstance(mosaic, MosaicWrapper):
        logger.warning(
            "%s: ignored, as it is a mosaic without Siemens' private header; export it again with private attributes",
            plane.file.path,
        )
        return
    rows, columns, slices = mosaic.image_shape
    _check_tile(rows, columns, plane)
    step = mosaic.slice_normal * mosaic.voxel_sizes[2]
    for k in range(slices):
        down, right = divmod(k, mosaic.mosaic_size)
        file = replace(plane.file, corner=(down * rows, right * columns))
        place = replace(plane.place, position=mosaic.image_position + k * step)
        yield replace(plane, source=plane.source.with_shape(rows, columns), file=file, place=place)


def _tile(plane: Plane, number: int) -> Plane:
    """Locate a slice in a United Imaging mosaic of ``number`` slices, which has at least as many columns as rows."""
    across = math.ceil(math.sqrt(number))
    down, right = divmod(plane.file.frame, across)
    all_rows, all_columns = plane.source.raster.shape
    rows, columns = all_rows // math.ceil(number / across), all_columns // across
    _check_tile(rows, columns, plane)
    file = replace(plane.file, frame=0, corner=(down * rows, right * columns))
    return replace(plane, source=plane.source.with_shape(rows, columns), file=file)


def _check_tile(rows: int, columns: int, plane: Plane) -> None:
    if not rows or not columns:
        raise ValueError(f"more slices than fit into a mosaic of {plane.source.raster.shape} pixels")
