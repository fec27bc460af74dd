"""Series for comparisons of methods: phantoms, and scans warped with known fields."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor
from torch.nn.functional import interpolate

from ..data.phantoms.phantom import follow, make_phantom, random_motion
from ..data.preprocessing.transforms import LoadSeriesd
from ..data.reading.readers import read_series
from ..data.series import Frame, Series
from ..errors import InputError
from ..space.grid import transform_points
from ..space.sampling import voxel_grid

_TIMES_AS_FINE = 3  # factor of upsampling, as generating a phantom at full size takes longer than its registration


def synthetic_cases(
    seeds: Iterable[int], size: Sequence[int] = (96, 96, 64), timepoints: int = 6
) -> list[dict[str, Any]]:
    """Generate phantom series with known motion and 2000 landmarks each."""
    return [{"name": f"phantom {seed}", **make_phantom(seed, size, timepoints, landmarks=2000)} for seed in seeds]


def make_series(images: Tensor, affine: Tensor, name: str) -> Series:
    """Make a series of volumes ``(K, *S)`` on the grid with ``affine`` ``(4, 4)``, named after their numbers."""
    matrix = affine.double().numpy()
    return Series(tuple(Frame(volume.numpy(), matrix, f"{name} {k}") for k, volume in enumerate(images)))


def upsampled_phantom(size: Sequence[int], timepoints: int) -> tuple[Series, Tensor]:
    """Generate a phantom on every third voxel of 1 mm and interpolate it: scans and landmarks ``(K, P, 3)``."""
    thinned = [max(16, round(n / _TIMES_AS_FINE)) for n in size]
    phantom = make_phantom(5, thinned, timepoints, max_motion_voxels=2.0, landmarks=500)
    volumes = interpolate(phantom["image"][None], list(size), mode="trilinear", align_corners=True)[0]
    landmarks = phantom["landmarks"] * torch.tensor([(n - 1) / (m - 1) for n, m in zip(size, thinned)])
    return make_series(volumes, torch.eye(4), "scan"), landmarks


def with_landmarks_mm(phantom: Mapping[str, Any]) -> dict[str, Any]:
    """Add ``landmarks_mm`` ``(K, P, 3)``, RAS, to a phantom."""
    return {**phantom, "landmarks_mm": transform_points(phantom["affine"], phantom["landmarks"].double())}


def warped_cases(
    series: str | Sequence[str],
    seeds: Iterable[int],
    max_motion_voxels: float = 5.0,
    spacing_mm: float | None = None,
    mask: str | None = None,
) -> list[dict[str, Any]]:
    """Warp each timepoint of an aligned series with a known field, once per seed, for an exact ground truth on real
    images.

    Landmarks are 2000 voxels inside ``mask``, a file on the grid of the first timepoint, or else in the bright region,
    where the smoothed first timepoint is above its mean. Volumes are cropped to the bright region with a margin of 8
    voxels.

    Raises:
        InputError: If no voxel is farther from the volume's borders than the largest displacement.
    """
    item = LoadSeriesd(spacing_mm=spacing_mm)({"image": read_series(series), "mask": mask})
    volumes = item["image"].numpy()
    smooth = gaussian_filter(volumes[0], 2)
    bright = smooth > smooth.mean()
    box = tuple(slice(max(0, int(i.min()) - 8), int(i.max()) + 9) for i in np.nonzero(bright))
    evaluated = bright if mask is None else item["mask"][0].numpy() > 0
    volumes, evaluated = volumes[(slice(None), *box)], evaluated[box]
    size, cases = evaluated.shape, []
    candidates, margin = torch.from_numpy(np.argwhere(evaluated)).float(), max_motion_voxels + 2
    candidates = candidates[((candidates > margin) & (candidates < torch.tensor(size) - 1 - margin)).all(dim=1)]
    if len(candidates) == 0:
        raise InputError(
            f"--series: expected bright voxels (or voxels of --mask) more than {margin:g} voxels from each border, as "
            f"scans are warped by up to {max_motion_voxels:g}, got none in {size} voxels; use scans with more slices, "
            "or a smaller --spacing-mm"
        )
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        fields = [random_motion(rng, size, max_motion_voxels) for _ in volumes]
        coordinates = [(voxel_grid(size, u) + u).numpy() for u in fields]
        warped = [map_coordinates(v, c, order=3, mode="nearest") for v, c in zip(volumes, coordinates)]
        points = candidates[torch.randperm(len(candidates), generator=rng)[:2000]]
        cases.append(
            {
                "name": f"warped {seed}",
                "image": torch.from_numpy(np.stack(warped)).float(),
                "landmarks": torch.stack([follow(u, points) for u in fields]),
                "motion": torch.stack(fields),
            }
        )
    return cases
