"""Scanner exports of a small series, with the times and scales of Siemens, GE, Philips and United Imaging, classic and
enhanced.

Every function returns data sets that `save` writes under names that tell nothing.
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.data.series import Series
from groupmorph_monai.errors import InputError

MR, ENHANCED_MR, CT = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "4.1", "2"))
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TIMES_S = (0.0, 61.5, 123.0, 184.5)
SIZE = (12, 10, 7)
AFFINE = LPS @ np.array([[1.5, 0, 0, -8], [0, 1.5, 0, -6], [0, 0, 3, 20], [0, 0, 0, 1.0]])


def volumes(timepoints: int = 4, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 4000, (timepoints, *SIZE)).astype(np.uint16)


def assert_aligned(series: Series, data: np.ndarray) -> None:
    """Check that the timepoints of a series are these volumes."""
    np.testing.assert_array_equal(np.stack([frame.data for frame in series.frames]), data)


def examination(**attributes: object) -> Dataset:
    """Make the attributes that all images of one examination share; keyword arguments replace them."""
    shared = Dataset()
    shared.PatientID, shared.PatientName, shared.Modality = "P1", "Phantom", "MR"
    shared.StudyInstanceUID, shared.FrameOfReferenceUID = generate_uid(), generate_uid()
    shared.StudyDate, shared.StudyTime = "20250301", "101500"
    shared.ScanningSequence, shared.RepetitionTime, shared.EchoTime, shared.FlipAngle = "GR", "4.2", "1.6", "10"
    for name, value in attributes.items():
        setattr(shared, name, value)
    return shared


def classic(
    shared: Dataset, volume: np.ndarray, affine: np.ndarray, sop_class: str = MR, **attributes: object
) -> list[Dataset]:
    """Make one image per slice of a volume ``(i, j, k)`` of integers, with ``affine`` from voxels to RAS mm."""
    uid, images = attributes.pop("SeriesInstanceUID", generate_uid()), []
    for k in range(volume.shape[2]):
        image = _data_set(shared, sop_class, volume[:, :, k].T)
        image.SeriesInstanceUID, image.ImageType = uid, ["ORIGINAL", "PRIMARY", "M", "ND"]
        image.ImagePositionPatient, image.ImageOrientationPatient, image.PixelSpacing, image.SliceThickness = _place(
            affine, k
        )
        for name, value in {"SeriesNumber": 1, "InstanceNumber": k + 1, **attributes}.items():
            setattr(image, name, value[k] if isinstance(value, list) and len(value) == volume.shape[2] else value)
        images.append(image)
    return images


def refused(path: Path, *parts: str, description: str | None = None) -> str:
    """Check that a study is refused in one line with these parts, and return it."""
    try:
        read_series(path, description=description)
    except InputError as error:
        message = str(error)
    else:
        raise AssertionError(f"{path} was read")
    assert "\n" not in message and "; " in message and len(message) < 900
    for part in parts:
        assert part in message, message
    return message


def one_series(
    data: Sequence[np.ndarray],
    headers: Sequence[dict],
    affine: np.ndarray = AFFINE,
    shared: Dataset | None = None,
    **attributes: object,
) -> list[Dataset]:
    """Make one series of all volumes, whose images also have the attributes of their volume's header."""
    shared, images = examination() if shared is None else shared, []
    attributes = {"SeriesInstanceUID": generate_uid(), **attributes}
    for volume, header in zip(data, headers, strict=True):
        images += classic(shared, volume, affine, **{**attributes, **header})
    return images


def dynamic(shared: Dataset | None = None, data: np.ndarray | None = None, **attributes: object) -> list[Dataset]:
    """Make one series with an acquisition time per volume."""
    data = volumes() if data is None else data
    headers = [{"AcquisitionNumber": k + 1, "AcquisitionTime": clock(t)} for k, t in enumerate(TIMES_S[: len(data)])]
    attributes = {"SeriesNumber": 5, "SeriesDescription": "dyn", **attributes}
    return one_series(data, [{**header, **attributes} for header in headers], shared=shared)


def siemens(
    series: np.ndarray, affine: np.ndarray, times_s: Sequence[float] = TIMES_S, **attributes: object
) -> list[Dataset]:
    """Make one series per timepoint, each with its own description, and acquisition times in microseconds."""
    shared, images = examination(Manufacturer="SIEMENS", SequenceName="*fl3d1"), []
    for k, volume in enumerate(series):
        # Reconstructed late and in another order, as happens.
        content = clock(900 - 10 * k)
        header = {"SeriesDescription": f"t1_fl3d_dyn_{k}" if k else "t1_fl3d_pre", "SeriesNumber": 7 + 2 * k}
        header |= {"AcquisitionDate": "20250301", "AcquisitionTime": clock(times_s[k]), "ContentDate": "20250301"}
        images += classic(
            shared, volume, affine, **{**header, "ContentTime": content, "AcquisitionNumber": 1, **attributes}
        )
    return images


def ge(series: np.ndarray, affine: np.ndarray, **attributes: object) -> list[Dataset]:
    """Make one series of signed pixels with one acquisition time, trigger times in ms, and images numbered slice by
    slice."""
    shared = examination(Manufacturer="GE MEDICAL SYSTEMS")
    uid, images, count = generate_uid(), [], len(series)
    for k, volume in enumerate(series.astype(np.int16)):
        numbers = [s * count + k + 1 for s in range(volume.shape[2])]
        header = {"SeriesDescription": "Ax LAVA Multi Phase", "SeriesInstanceUID": uid, "InstanceNumber": numbers}
        header |= {"AcquisitionDate": "20250301", "AcquisitionTime": "102030", "TriggerTime": str(1000 * TIMES_S[k])}
        images += classic(shared, volume, affine, **{**header, "ContentTime": "102500", **attributes})
    return images


def philips(series: np.ndarray, affine: np.ndarray, **attributes: object) -> list[Dataset]:
    """Make one series with temporal positions and content times. Stored values are multiplied by the private scale
    slope ``scale``, and the rescale slope is its inverse."""
    shared = examination(Manufacturer="Philips Medical Systems")
    uid, images = generate_uid(), []
    for k, volume in enumerate(series):
        scales = np.array([2.0 ** ((k + s) % 3) for s in range(volume.shape[2])])
        header = {"SeriesDescription": "dyn_eTHRIVE", "SeriesInstanceUID": uid, "RescaleSlope": list(1 / scales)}
        header |= {"RescaleIntercept": "0", "TemporalPositionIdentifier": k + 1, "AcquisitionTime": clock(0)}
        header |= {"ContentDate": "20250301", "ContentTime": clock(TIMES_S[k])}
        stored = (volume * scales).astype(np.uint16)
        made = classic(shared, stored, affine, **{**header, "InstanceNumber": 1, **attributes})
        for image, scale in zip(made, scales):
            block = image.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
            block.add_new(0x0E, "FL", scale)
        images += made
    for number, image in enumerate(images):
        image.InstanceNumber = number + 1
    return images


def enhanced(series: np.ndarray, affine: np.ndarray, files: int = 1) -> list[Dataset]:
    """Make multi-frame files with functional groups and frames in random order, each with its share of the
    timepoints."""
    shared = examination(Manufacturer="SIEMENS")
    uid, per_file = generate_uid(), len(series) // files
    return [_multi_frame(shared, series, range(f * per_file, (f + 1) * per_file), affine, uid, f) for f in range(files)]


def _multi_frame(
    shared: Dataset, series: np.ndarray, timepoints: Sequence[int], affine: np.ndarray, uid: str, number: int
) -> Dataset:
    frames = [(t, k) for t in timepoints for k in range(series.shape[3])]
    frames = [frames[n] for n in np.random.default_rng(number).permutation(len(frames))]
    image = _data_set(shared, ENHANCED_MR, np.stack([series[t, :, :, k].T for t, k in frames]))
    image.SeriesInstanceUID, image.SeriesNumber, image.InstanceNumber = uid, 4, number + 1
    image.SeriesDescription, image.NumberOfFrames = "t1_vibe_dyn", len(frames)
    image.ImageType, image.AcquisitionDateTime = ["ORIGINAL", "PRIMARY", "T1", "NONE"], "20250301102030"
    position, orientation, spacing, thickness = _place(affine, 0)
    image.SharedFunctionalGroupsSequence = Items(
        [
            _group(
                PlaneOrientationSequence={"ImageOrientationPatient": orientation},
                PixelMeasuresSequence={"PixelSpacing": spacing, "SliceThickness": thickness},
                PixelValueTransformationSequence={"RescaleSlope": "2", "RescaleIntercept": "-5"},
            )
        ]
    )
    image.PerFrameFunctionalGroupsSequence = Items(
        [
            _group(
                PlanePositionSequence={"ImagePositionPatient": _place(affine, k)[0]},
                FrameContentSequence={
                    # Slices one after the other.
                    "FrameAcquisitionDateTime": "20250301" + clock(TIMES_S[t] + 0.1 * k),
                    "TemporalPositionIndex": t + 1,
                    "InStackPositionNumber": k + 1,
                    "StackID": "1",
                },
                MRImageFrameTypeSequence={"FrameType": ["ORIGINAL", "PRIMARY", "T1", "NONE"]},
            )
            for t, k in frames
        ]
    )
    return image


def united_imaging(series: np.ndarray, affine: np.ndarray) -> list[Dataset]:
    """Make one mosaic per timepoint, with slice positions and acquisition times in a private sequence."""
    shared, uid, images = examination(Manufacturer="UIH"), generate_uid(), []
    columns, rows, slices = series.shape[1:]
    across = int(np.ceil(np.sqrt(slices)))
    down = int(np.ceil(slices / across))
    for t, volume in enumerate(series):
        picture = np.zeros((down * rows, across * columns), series.dtype)
        items = []
        for k in range(slices):
            y, x = k // across * rows, k % across * columns
            picture[y : y + rows, x : x + columns] = volume[:, :, k].T
            item = Dataset()
            item.ImagePositionPatient, item.AcquisitionDate = _place(affine, k)[0], "20250301"
            item.AcquisitionTime = clock(TIMES_S[t] + 0.1 * k)
            items.append(item)
        image = _data_set(shared, MR, picture)
        image.SeriesInstanceUID, image.SeriesNumber, image.InstanceNumber = uid, 6, t + 1
        image.SeriesDescription, image.ImageType = "bold", ["ORIGINAL", "PRIMARY", "M", "VFRAME"]
        _, image.ImageOrientationPatient, image.PixelSpacing, image.SliceThickness = _place(affine, 0)
        image.private_block(0x0065, "Image Private Header", create=True).add_new(0x51, "SQ", Items(items))
        images.append(image)
    return images


def save(images: Sequence[Dataset], folder: Path, seed: int = 0) -> Path:
    """Write data sets under random names without an extension, in nested folders."""
    rng = np.random.default_rng(seed)
    for n in rng.permutation(len(images)):
        path = folder / f"S{rng.integers(3)}" / f"{rng.integers(10**9):09d}"
        write(images[n], path)
    return folder


def write(image: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """Write one data set; pydicom 2 and 3 ask for it in different ways."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    file = FileDataset(str(path), image, file_meta=meta, preamble=b"\0" * 128)
    file.is_little_endian, file.is_implicit_VR = (
        getattr(meta.TransferSyntaxUID, f"is_{name}") for name in ("little_endian", "implicit_VR")
    )
    strict = {"write_like_original": False} if pydicom.__version__ < "3" else {"enforce_file_format": True}
    pydicom.dcmwrite(path, file, **strict)
    return path


def clock(seconds: float) -> str:
    """Format the time of day ``seconds`` after 10:20:30."""
    whole, part = divmod(round((10 * 3600 + 20 * 60 + 30 + seconds) * 1e6), 10**6)
    return f"{whole // 3600:02d}{whole // 60 % 60:02d}{whole % 60:02d}.{part:06d}"


def _place(affine: np.ndarray, k: int) -> tuple[list[float], list[float], list[float], float]:
    """Compute position and orientation in LPS, spacing of rows and columns, and slice thickness."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    position = (lps @ [0, 0, k, 1])[:3]
    axes = lps[:3, :2] / spacing[:2]
    rounded = [[float(f"{v:.10g}") for v in values] for values in (position, axes.T.ravel(), spacing[1::-1])]
    return *rounded, float(spacing[2])


def _data_set(shared: Dataset, sop_class: str, pixels: np.ndarray) -> Dataset:
    image = deepcopy(shared)
    image.SOPClassUID, image.SOPInstanceUID = sop_class, generate_uid()
    image.Rows, image.Columns = pixels.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.add_new("PixelData", "OW", pixels.astype(f"<{pixels.dtype.kind}2").tobytes())
    return image


def _group(**sequences: dict) -> Dataset:
    group = Dataset()
    for name, attributes in sequences.items():
        item = Dataset()
        for keyword, value in attributes.items():
            setattr(item, keyword, value)
        setattr(group, name, Items([item]))
    return group
