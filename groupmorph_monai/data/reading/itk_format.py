"""Read MetaImage and NRRD files by ITK, whose coordinates are LPS mm."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import itk
import numpy as np

from ...errors import InputError
from ..series import LPS_TO_RAS
from ..storage import Storage
from .image_file import ImageFile, ImageFormat
from .signature import check_itk_path
from .text_headers import check_text_header


class ItkFormat(ImageFormat):
    """MetaImage and NRRD."""

    parallel = False  # as standard error is silenced for the whole process

    def read(self, path: str, labels: bool, storage: Storage) -> ImageFile:
        check_itk_path(path)
        check_text_header(path)
        with _silence():
            if _reader(path).GetNumberOfComponents() > 1:
                raise InputError(
                    f"{path}: expected one number per voxel, got several (RGB or vectors, or a 3D Slicer sequence); "
                    "convert it to a grey-value image, or save every volume of the sequence as a file"
                )
            image = itk.imread(path) if labels else itk.imread(path, itk.F)
        data = itk.array_from_image(image).T
        spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
        affine, n, direction = np.eye(4), min(3, data.ndim), np.asarray(image.GetDirection())
        if not np.allclose(direction[:n, n:], 0) or not np.allclose(direction[n:, :n], 0):
            raise InputError(
                f"{path}: expected time as an axis of its own, the last, got directions that mix space and time, "
                f"{direction.tolist()}; correct the header"
            )
        affine[:n, :n] = direction[:n, :n] * spacing[:n]
        affine[:n, 3] = origin[:n]
        return ImageFile(data, LPS_TO_RAS @ affine, path, _frame_time_s(spacing.tolist()))

    def frame_time_s(self, path: str) -> float | None:
        check_text_header(path, voxels=False)
        with _silence():
            reader = _reader(path)
        return _frame_time_s([reader.GetSpacing(d) for d in range(reader.GetNumberOfDimensions())])

    def header(self, path: str) -> tuple[tuple[int, ...], np.ndarray]:
        check_text_header(path, voxels=False)
        with _silence():
            reader = _reader(path)
        axes, affine = range(reader.GetNumberOfDimensions()), np.eye(4)
        for d in axes[:3]:
            affine[:3, d] = np.array(reader.GetDirection(d))[:3] * reader.GetSpacing(d)
            affine[d, 3] = reader.GetOrigin(d)
        return tuple(reader.GetDimensions(d) for d in axes), LPS_TO_RAS @ affine


def _frame_time_s(spacing: Sequence[float]) -> float | None:
    """Return the spacing along the fourth axis; None for 1, which ITK also returns if the file has no frame time."""
    return float(spacing[3]) if len(spacing) > 3 and spacing[3] != 1 else None


def _reader(path: str) -> "itk.ImageIOBase":
    """Return ITK's reader of a file, with the header."""
    reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None:
        raise InputError(f"{path}: expected an ending of its format, got {Path(path).name!r}; rename it to .nrrd")
    reader.SetFileName(path)
    reader.ReadImageInformation()
    return reader


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence file descriptor 2, to which MetaIO writes messages, bypassing Python, before ITK raises."""
    try:
        stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # the process has no standard error
        yield
        return
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)
