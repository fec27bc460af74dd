"""The aligned series as a new series of the study that it comes from."""

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from ..readers import LPS_TO_RAS
from ..series import Series
from .derived import check_modality, code_item, derived_header
from .headers import Plane

__all__ = ["write_dicom"]

_LARGEST = 2**15 - 1  # of a pixel: as a signed or an unsigned number it is the same
_SERIES_NUMBER = 1000  # added to that of the source, so that a viewer lists the aligned series behind the scanner's


def write_dicom(series: Series, aligned: np.ndarray, home: int, folder: Path) -> None:
    """Write aligned timepoints as single-frame images of one new series, whose geometry is that of scan ``home`` and
    whose times and protocol are those of each timepoint.

    Pixels are integers, multiplied by one power of two for the whole series, so that integers below 32768 and their
    ratios between timepoints are kept exactly, also by programs that do not know the rescale slope.

    Args:
        series: as `read_dicom` gives it.
        aligned: ``(K, *S)`` on the grid of scan ``home``; NaN becomes 0.
        folder: made if missing.
    Raises: InputError where the modality is neither MR nor CT.
    """
    folder.mkdir(exist_ok=True)
    base = series.slices[home][0]
    check_modality(base)
    aligned = np.nan_to_num(aligned, nan=0.0)
    slope = 2.0 ** math.ceil(math.log2(max(float(np.abs(aligned).max()), 1e-30) / _LARGEST))
    uid, affine = generate_uid(), LPS_TO_RAS @ series.frames[home].affine
    for k, (volume, planes) in enumerate(zip(aligned, series.slices)):
        header = derived_header(min(planes, key=_first), base)
        header.SeriesInstanceUID, header.SeriesNumber = uid, _SERIES_NUMBER + base.source.number
        header.SeriesDescription = f"{base.source.description} aligned".strip()[:64]
        header.TemporalPositionIdentifier, header.NumberOfTemporalPositions = k + 1, len(aligned)
        _add_grid(header, affine, volume.shape)
        if slope != 1 or header.Modality == "CT":
            header.RescaleSlope, header.RescaleIntercept = DSfloat(slope, auto_format=True), 0
            header.RescaleType = "HU" if header.Modality == "CT" else "US"
        places = np.stack([plane.position for plane in planes])
        for s in range(volume.shape[2]):
            image = deepcopy(header)
            image.SOPInstanceUID, image.InstanceNumber = generate_uid(), k * volume.shape[2] + s + 1
            position = (affine @ [0, 0, s, 1])[:3]
            image.ImagePositionPatient = [DSfloat(float(x), auto_format=True) for x in position]
            source = planes[int(np.linalg.norm(places - position, axis=1).argmin())]
            image.SourceImageSequence = [_reference(source)]
            pixels = np.rint(volume[:, :, s].T / slope).astype("<i2")
            image.SmallestImagePixelValue, image.LargestImagePixelValue = int(pixels.min()), int(pixels.max())
            image.add_new("PixelData", "OW", pixels.tobytes())
            _save(image, folder / f"{k:02d}_{s:04d}.dcm")


def _first(plane: Plane) -> tuple:
    """Order of the slices of a volume in time, by what `order` takes for its time."""
    return tuple(plane.keys.get(name, 0.0) for name in ("acquisition time", "trigger time", "content time"))


def _add_grid(header: Dataset, affine: np.ndarray, shape: Sequence[int]) -> None:
    """``affine``: voxel (column, row, slice) to LPS mm."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = (affine[:3, :2] / spacing[:2]).T.ravel()
    header.ImageOrientationPatient = [DSfloat(float(x), auto_format=True) for x in axes]
    header.PixelSpacing = [DSfloat(float(x), auto_format=True) for x in spacing[1::-1]]
    header.SpacingBetweenSlices = DSfloat(float(spacing[2]), auto_format=True)
    header.Columns, header.Rows = shape[:2]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1


def _reference(plane: Plane) -> Dataset:
    item = Dataset()
    sop_class, several = _kind(plane.path)
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, plane.uid
    if several:
        item.ReferencedFrameNumber = plane.frame + 1
    item.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.SourceImageForImageProcessingOperation)]
    return item


@lru_cache(maxsize=4096)
def _kind(path: str) -> tuple[str, bool]:
    """SOP class of a file, and whether it has several frames."""
    header = pydicom.dcmread(path, specific_tags=["SOPClassUID", "NumberOfFrames"], force=True)
    return header.SOPClassUID, "NumberOfFrames" in header


def _save(image: Dataset, path: Path) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), image, file_meta=meta, preamble=b"\0" * 128)
    if pydicom.__version__ < "3":
        file.is_little_endian, file.is_implicit_VR = True, False
        pydicom.dcmwrite(path, file, write_like_original=False)
    else:
        pydicom.dcmwrite(path, file, enforce_file_format=True)
