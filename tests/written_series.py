"""Series with closed forms, and functions that write registrations of them."""

import numpy as np
import torch

from groupmorph_monai.data.preprocessing.resampling import working_grid
from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.data.series import Frame
from groupmorph_monai.data.writing.nifti import write_image
from groupmorph_monai.data.writing.registration import write_registration
from groupmorph_monai.space.transforms import DenseTransform

SIZE, SPACING = (20, 26, 15), np.array([1.5, 1.2, 2.5])

ROTATION, _ = np.linalg.qr(np.array([[1.0, -0.4, 0.2], [0.5, 1.0, -0.3], [-0.1, 0.4, 1.0]]))

AXES = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1]),
    "AIL": np.array([[0, 0, -1.0], [1, 0, 0], [0, -1, 0]]),
    "oblique": ROTATION,
}


def affine_of(axes="RAS", spacing=SPACING, size=SIZE, centre=(7.0, -30.0, 110.0)):
    """Make the affine of a grid centred at one world position, for any axes."""
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] * spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ ((np.array(size) - 1) / 2)
    return affine


def world_points(affine, size):
    voxels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    return np.einsum("de,eijk->dijk", affine[:3, :3], voxels) + affine[:3, 3].reshape(3, 1, 1, 1)


def smooth_frame(axes="RAS", size=SIZE, spacing=SPACING, phase=0.0, path="x"):
    """Make a smooth image that is a function of world coordinates."""
    affine = affine_of(axes, spacing, size)
    x, y, z = world_points(affine, size)
    data = 500 + 200 * np.sin(x / 6 + phase) + 150 * np.cos(y / 8 - z / 9) + 4 * x - 3 * y + 5 * z
    return Frame(data.astype(np.float32), affine, path)


def smooth_fields(count, size, amplitude=1.5):
    """Make smooth displacements that differ in every component and timepoint, ``(count, 3, *size)`` voxels."""
    i, j, k = np.meshgrid(*(np.linspace(0, 2, n) for n in size), indexing="ij")
    waves = [[np.sin(i + 2 * j + t + d) * np.cos(k * (d + 1) - t) for d in range(3)] for t in range(count)]
    return torch.tensor(amplitude * np.array(waves), dtype=torch.float32)


def save_frames(folder, frames):
    """Write frames to files and read them as a series."""
    folder.mkdir(exist_ok=True)
    files = [str(folder / f"{number}.nii") for number in range(len(frames))]
    for frame, file in zip(frames, files):
        write_image(frame, file)
    return read_series(files)


def working_grid_of(series, spacing_mm=2.0):
    return working_grid([frame.grid for frame in series.frames], spacing_mm, reference=0)


def dense_transforms(ddf, grid, inverse=None):
    """Make one transform per timepoint; the negative field approximates the inverse, which is not tested."""
    return [DenseTransform(u, w, grid) for u, w in zip(ddf, -ddf if inverse is None else inverse)]


def write_result(series, folder, ddf=None, grid=None, **options):
    grid = working_grid_of(series) if grid is None else grid
    ddf = smooth_fields(len(series.frames), grid.shape) if ddf is None else ddf
    return write_registration(series, dense_transforms(ddf, grid), folder, **options)


def constant_fields(count, size, voxels):
    return torch.tensor(voxels, dtype=torch.float32).view(1, 3, 1, 1, 1).expand(count, 3, *size)
