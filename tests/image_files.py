"""Image files with known content, written by other libraries."""

import itk
import nibabel as nib
import numpy as np
import pytest

from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.errors import InputError

SIZE = (9, 12, 7)

SHEARED = np.array([[1.2, -0.6, 0.3, -20], [0.5, 1.6, -0.4, 5], [-0.1, 0.5, 2.8, 40], [0, 0, 0, 1]])


def orthogonal_affine(spacing=(1.5, 2.0, 3.0)):
    """Make a rotated anisotropic affine that ITK accepts."""
    rotation, _ = np.linalg.qr(SHEARED[:3, :3])
    affine = SHEARED.copy()
    affine[:3, :3] = rotation * spacing
    return affine


OBLIQUE = orthogonal_affine()


def make_volume(size=SIZE, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def write_nifti(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, OBLIQUE if affine is None else affine), path)
    return str(path)


def write_by_itk(path, data, affine):
    """Write a file by ITK alone: LPS direction, origin and spacing."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(data.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    itk.imwrite(image, str(path))
    return str(path)


def affine_by_itk(path):
    """Return the affine that ITK reads from a file, for the first three axes, in RAS."""
    image = itk.imread(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection())[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = np.array(image.GetOrigin())[:3]
    return np.diag([-1, -1, 1, 1]) @ affine


def error_of(series):
    with pytest.raises(InputError) as caught:
        read_series(series)
    message = str(caught.value)
    assert "\n" not in message and "; " in message and len(message) < 700
    return message


def patch_header(path, field, value, code=None):
    """Write a NIfTI file without qform and sform, and set one field of its header that nibabel would not write."""
    image = nib.Nifti1Image(make_volume().astype(np.int16), None)
    header = nib.Nifti1Header.from_header(image.header, check=False)
    header["magic"], header["vox_offset"], header["sform_code"], header["qform_code"] = b"n+1", 352, 0, 0
    header[field] = value
    if code:
        header[code] = 1
    with nib.openers.Opener(str(path), "wb") as file:
        file.write(header.binaryblock + bytes(4) + image.get_fdata().astype(np.int16).tobytes(order="F"))
