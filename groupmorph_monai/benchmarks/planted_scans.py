"""Pairs of scans with planted failures, made of one scan each of several patients."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from ..data.phantoms.phantom import add_rician_noise, random_motion, uniform
from ..data.preprocessing.intensities import intensity_range
from ..data.reading.readers import read_image
from ..data.series import Frame, Series
from ..errors import InputError
from ..space.sampling import voxel_grid
from .planted import PlantedCase, turn, with_last_frame, with_last_header

_MOTION_MM = 3.0
_NOISE = 0.03  # standard deviation, intensities in [0, 1]
_PERCENTILES = (1, 99)


def _centred(frame: Frame) -> Frame:
    """Move a scan to 0 mm, so that scans of different patients overlap."""
    affine = np.array(frame.affine)
    affine[:3, 3] -= frame.grid.centre.numpy()
    return replace(frame, affine=affine)


def _second_scan(frame: Frame, generator: torch.Generator) -> Frame:
    """Simulate a second scan of the patient: motion of up to 3 mm, another contrast, and noise."""
    size = frame.data.shape
    motion = random_motion(generator, size, _MOTION_MM / float(frame.grid.spacing_mm.max()))
    warped = map_coordinates(
        frame.data.astype(np.float32), (voxel_grid(size, motion) + motion).numpy(), order=1, mode="nearest"
    )
    low, high = intensity_range(frame.data.ravel(), _PERCENTILES)
    contrast = float(uniform(generator, 0.8, 1.25))
    values = torch.from_numpy((warped - low) / max(high - low, 1e-6)).clamp_min(0) ** contrast
    return replace(frame, data=add_rician_noise(generator, values, _NOISE).numpy())


def patient_cases(files: Sequence[str | Path], seeds: Sequence[int]) -> Iterator[PlantedCase]:
    """Yield four pairs per patient and seed: a good one, one with another patient, and two with a wrong header.

    Args:
        files: one 3D scan per patient, at least two, of the same body part.
        seeds: random seeds of the simulated second scan.

    Raises:
        InputError: If a file is not a 3D scan, or there is only one.
    """
    if len(files) < 2:
        raise InputError(f"--patients: expected at least two files, one scan per patient, got {len(files)}")
    scans = [_centred(read_image(file)) for file in files]
    for seed in seeds:
        for number, (first, other) in enumerate(zip(scans, scans[1:] + scans[:1])):
            second = _second_scan(first, torch.Generator().manual_seed(1000 * seed + number))
            good = PlantedCase(f"{first.path}, seed {seed}", None, Series((first, second)))
            signs = torch.ones(4, dtype=torch.float64)
            signs[number % 3] = -1
            yield good
            yield with_last_frame(good, other, "another patient")
            yield with_last_header(good, torch.diag(signs), "mirrored header")
            yield with_last_header(good, turn(number, 90), "header rotated by 90 degrees")
