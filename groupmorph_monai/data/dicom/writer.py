"""Write the aligned scans as a new series of their study."""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from ..series import LPS_TO_RAS, Series
from .derived import check_sources, derived_description, derived_header
from .geometry import decimals, orientation
from .plane import Plane
from .references import save, source_reference

_LARGEST = 2**15 - 1  # maximum pixel value, valid as a signed and as an unsigned number
_FEWEST_BITS = 11  # minimum precision of unscaled integers; half a step is then 0.024 % of the range
_TIMES = (
    *("AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ContentDate", "ContentTime", "TriggerTime"),
    "TimezoneOffsetFromUTC",
)
_COPIED_TIMES = ("acquisition time", "trigger time", "content time")
_SERIES_NUMBER = 1000  # added to the series number of the source, so that viewers list the aligned series after it


def write_dicom(series: Series, aligned: np.ndarray, home: int, folder: Path) -> None:
    """Write aligned timepoints as single-frame images of one new series, with the geometry of scan ``home`` and the
    times and protocol of each timepoint.

    Pixels are values rounded to integers if these need 11 to 15 bits, as MR images usually have no rescale slope.
    Otherwise they are multiples of one power of two for the whole series, which preserves the ratios between timepoints
    even in programs that ignore the rescale slope.

    Times that the source stores differently, such as temporal offsets, are written as trigger times. If the timepoints
    have no times, all get those of the first one.

    Args:
        series: returned by `read_dicom`.
        aligned: ``(K, *S)`` on the grid of scan ``home``; NaN becomes 0.
        home: index of the scan that defines the geometry.
        folder: created if it does not exist.

    Raises:
        InputError: If the modality is neither MR nor CT, or if a source lacks a UID.
    """
    folder.mkdir(exist_ok=True)
    base = series.dicom_slices[home][0]
    check_sources(series.dicom_slices, home)
    aligned = np.nan_to_num(aligned, nan=0.0)
    slope = _slope(float(np.abs(aligned).max()))
    uid, affine = generate_uid(), LPS_TO_RAS @ series.frames[home].affine
    firsts = [
        min(planes, key=lambda p: [p.keys.get(name, 0.0) for name in _COPIED_TIMES]) for planes in series.dicom_slices
    ]
    description = derived_description(series.dicom_slices, home, "aligned")
    lost = series.times_s is not None and not any(_tells(key, firsts, series.times_s) for key in _COPIED_TIMES)
    for k, (volume, planes) in enumerate(zip(aligned, series.dicom_slices)):
        header = derived_header(firsts[k], base)
        if series.times_s is None:
            _copy_times(header, derived_header(firsts[0], base))
        header.SeriesInstanceUID, header.SeriesNumber = uid, _SERIES_NUMBER + base.source.number
        header.SeriesDescription = description
        header.TemporalPositionIdentifier, header.NumberOfTemporalPositions = k + 1, len(aligned)
        if series.times_s is not None and lost:
            (header.TriggerTime,) = decimals([1000 * series.times_s[k]])
        _add_grid(header, affine, volume.shape)
        if slope != 1 or header.Modality == "CT":
            (header.RescaleSlope,), header.RescaleIntercept = decimals([slope]), 0
            header.RescaleType = "HU" if header.Modality == "CT" else "US"
        places = np.stack([plane.place.position for plane in planes])
        for s, pixels in enumerate(np.rint(volume.T / slope).astype("<i2")):
            position = (affine @ [0, 0, s, 1])[:3]
            image = _slice(header, position, planes[int(np.linalg.norm(places - position, axis=1).argmin())], pixels)
            image.InstanceNumber = k * volume.shape[2] + s + 1
            save(image, folder / f"{k:02d}_{s:04d}.dcm")


def _slice(header: Dataset, position: np.ndarray, source: Plane, pixels: np.ndarray) -> Dataset:
    """Add the position, source and pixels of one slice to a copy of the header of its volume."""
    image = deepcopy(header)
    image.SOPInstanceUID, image.ImagePositionPatient = generate_uid(), decimals(position)
    image.SourceImageSequence = [source_reference(source)]
    image.SmallestImagePixelValue, image.LargestImagePixelValue = int(pixels.min()), int(pixels.max())
    image.add_new("PixelData", "OW", pixels.tobytes())
    return image


def _copy_times(header: Dataset, other: Dataset) -> None:
    """Overwrite the times of a timepoint that has no time of its own, such as a phase of a gated scan, so that readers
    do not sort by them."""
    for name in _TIMES:
        header.pop(name, None)
        if name in other:
            setattr(header, name, other[name].value)


def _slope(largest: float) -> float:
    """Choose the rescale slope of the stored integers for values up to ``largest``."""
    bits = math.log2(max(largest, 1e-30) / _LARGEST)
    return 1.0 if _FEWEST_BITS - 15 <= bits <= 0 else 2.0 ** math.ceil(bits)


def _tells(key: str, planes: Sequence[Plane], times_s: Sequence[float]) -> bool:
    """Check whether an attribute of the first slices of all timepoints contains their times."""
    values = [plane.keys.get(key, math.nan) for plane in planes]
    return np.allclose(np.array(values) - values[0], times_s, rtol=0, atol=1e-3)


def _add_grid(header: Dataset, affine: np.ndarray, shape: Sequence[int]) -> None:
    """Add the attributes of a grid with ``affine``, voxel (column, row, slice) to LPS mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header.ImageOrientationPatient, header.PixelSpacing = orientation(affine), decimals(spacing[1::-1])
    (header.SpacingBetweenSlices,) = decimals(spacing[2:])
    header.Columns, header.Rows = shape[:2]
    header.SamplesPerPixel = 1
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
