"""Read the voxels of volumes."""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import torch

from ...errors import InputError
from .order import Volume
from .plane import ImageFile, Plane

logger = logging.getLogger(__name__)
_ROUNDING = 1e-6  # of the largest value, as the slope of a copy may differ
_MOST_PADDING = 1.01  # maximum number of stored bytes per declared byte
_BLOCK = 512  # bytes; pixel data may be padded to a multiple of this size


def read_voxels(volumes: Sequence[Volume]) -> list[np.ndarray]:
    """Read volumes of any size as float32 ``(column, row, slice)``, in the units of the images.

    The slope and intercept of each slice are applied. Philips scales every image for display by its own slope; values
    are comparable only after division by this and the private scale slope. If these differ between slices of one image
    type, all are converted to the scale of the first (Chenevert et al., Errors in quantitative image analysis due to
    platform-dependent image scaling, Transl. Oncol. 7, 2014, Eq. 1).

    Raises:
        InputError: If a slope or intercept is not finite, if a slope is 0, or if copies of an image differ.
    """
    for plane in (plane for volume in volumes for plane in volume):
        _check_scaling(plane.file)
    data = [_empty(volume) for volume in volumes]
    targets = defaultdict(list)
    for array, volume in zip(data, volumes):
        for target, plane in zip(array, volume):
            targets[plane.file.path].append((plane, target))
    references = {volume[0].source.image_type: volume[0].file.scaling for volume in reversed(volumes)}

    def fill_slices_of(path: str) -> None:
        frames = stored_values(path)
        for plane, target in targets[path]:
            stored = _slice(frames, plane.file, plane.source.raster.shape)
            target[:] = plane.file.scaling.apply(stored, references[plane.source.image_type])
        _check_copies([plane for plane, _ in targets[path]], frames)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill_slices_of, targets):  # raises the exception of the first file that has one
            pass
    return [np.ascontiguousarray(array.T) for array in data]


def _check_scaling(file: ImageFile) -> None:
    slope, intercept = file.scaling.slope, file.scaling.intercept
    if not math.isfinite(slope + intercept):
        raise InputError(
            f"{file.path}: expected finite numbers as rescale slope and intercept, got others; correct the header, or "
            "export the series again"
        )
    if slope == 0:
        raise InputError(
            f"{file.path}: expected a rescale slope other than 0, by which all values become equal; correct the "
            "header, or export the series again"
        )


def _slice(frames: np.ndarray, file: ImageFile, shape: tuple[int, int]) -> np.ndarray:
    (top, left), (rows, columns) = file.corner, shape
    return frames[file.frame, top : top + rows, left : left + columns]


def _check_copies(planes: Sequence[Plane], frames: np.ndarray) -> None:
    """Check that the copies of images show the same: one of them may be changed, such as defaced.

    Args:
        planes: slices of one file.
        frames: its stored values.

    Raises:
        InputError: If a copy has other values.
    """
    copies = defaultdict(list)
    for plane in planes:
        for file in plane.copies:
            copies[file.path].append((plane, file))
    for path, pairs in copies.items():
        try:
            others = stored_values(path)
        except InputError as error:
            logger.warning("Ignored a copy that cannot be read: %s", error)
            continue
        for plane, file in pairs:
            shape, own = plane.source.raster.shape, plane.file
            values, expected = (
                one.scaling.apply(_slice(stored, one, shape), one.scaling)
                for one, stored in ((file, others), (own, frames))
            )
            tolerance = _ROUNDING * np.nanmax(np.abs(expected))
            if values.shape != expected.shape or not np.allclose(values, expected, 0, tolerance, equal_nan=True):
                raise InputError(
                    f"{path}: expected the voxels of {own.path}, which has the same SOP Instance UID, got others; "
                    "remove one of the two, such as the original of a defaced image"
                )


def _empty(volume: Volume) -> np.ndarray:
    path, shape = volume[0].file.path, (len(volume), *volume[0].source.raster.shape)
    try:
        return np.empty(shape, np.float32)
    except MemoryError as error:
        raise InputError(
            f"{path}: expected slices that fit into memory, got {shape[0]} of {shape[1]} rows and {shape[2]} columns; "
            "correct Rows and Columns, or copy the series again"
        ) from error


def stored_values(path: str) -> np.ndarray:
    """Read the stored values of a file, ``(frame, row, column)``, with unused bits cleared.

    Raises:
        InputError: If they cannot be decoded, or not converted to displayed values by a slope and an intercept.
    """
    dataset = pydicom.dcmread(path, force=True)
    table, high_bit, bits = map(dataset.get, ("ModalityLUTSequence", "HighBit", "BitsStored"))
    if table or (high_bit is not None and bits is not None and high_bit != bits - 1):
        got = "a Modality LUT Sequence" if table else f"High Bit {high_bit}, {bits} stored"
        raise InputError(
            f"{path}: expected values in the lowest bits and a rescale slope, got {got}; export the series in another "
            "way, or convert it to NIfTI"
        )
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    try:
        pixels = dataset.pixel_array
    except Exception as error:  # the decoding libraries raise many types
        reason = " ".join(str(error).split())[:160]
        if syntax is not None and syntax.is_compressed:
            raise InputError(
                f"{path}: expected pixels that can be decoded, got {syntax.name} ({reason}); install the decoders with "
                "pip install 'groupmorph-monai[dicom]', or decompress with gdcmconv --raw"
            ) from error
        raise InputError(f"{path}: expected complete pixel data, got {reason}; copy or export it again") from error
    stored = 0 if syntax is not None and syntax.is_compressed else len(dataset.get("PixelData") or b"")
    padded = stored % _BLOCK == 0 and stored < pixels.nbytes + _BLOCK
    if stored > _MOST_PADDING * pixels.nbytes + 1 and not padded:
        raise InputError(
            f"{path}: expected {pixels.nbytes} bytes of pixel data as declared, got {stored} bytes; correct Rows, "
            "Columns and Number of Frames, or copy or export it again"
        )
    if pixels.dtype.kind in "iu":
        unused = 8 * pixels.dtype.itemsize - int(dataset.BitsStored)
        pixels = (pixels << unused) >> unused
    return pixels.reshape(-1, *pixels.shape[-2:])
