"""The numbers behind a verdict: what a registration's images and maps say of it, without a truth to compare with.

Measured on a coarse grid, whatever the size of the scans: what these numbers are to find, such as another patient's
scan or one that lies upside down, shows there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import binary_dilation, find_objects, label
from torch import Tensor

from ..data.resampling import resample, smoothed
from ..data.series import Series
from ..space.geometry import Grid, Transform, jacobian_determinant
from ..space.lattice import window_moments
from ..workflow.affine_steps import WINDOW_RADIUS, regress
from .metrics import nmi

__all__ = ["measure_quality"]

_LONGEST_VOXELS = 80
_LEAST_STRUCTURE = 0.05  # standard deviation in a window, intensities in [0, 1], of what can be compared
_NOISE_FACTOR = 5  # in such windows noise alone explains away a few percent
_PLAUSIBLE = (0.5, 2.0)  # volume after over volume before
_UPTAKE = 0.25  # least rise of the signal in an enhancing region, intensities in [0, 1]
_LEAST_REGION_VOXELS, _AROUND_VOXELS = 8, 2
_LEAST_CURVE = 4  # timepoints


@dataclass(frozen=True)
class _Images:
    """A series on one grid: ``values`` in the scans' unit and where they were ``seen``, each ``(K, *S)``."""

    values: Tensor
    seen: Tensor

    def scaled(self) -> Tensor:
        """Intensities in [0, 1], each timepoint's 1st and 99th percentiles at the ends."""
        return torch.stack([_scaled(v, v[s] if s.any() else v) for v, s in zip(self.values, self.seen)])


def _scaled(values: Tensor, sample: Tensor) -> Tensor:
    low, high = np.percentile(sample.numpy(), (1, 99)).tolist()
    return ((values - low) / max(high - low, 1e-6)).clamp(0, 1)


def measure_quality(series: Series, transforms: Sequence[Transform], home: int = 0) -> dict[str, object]:
    """Measure a registration.

    Args:
        series: K native volumes.
        transforms: K, from the common space to each timepoint.
        home: index of the scan whose grid the aligned series lies on.
    Returns: by the names of `verdict.CHECKS`, a number or a list with one for each timepoint. What cannot be measured,
        such as the curves of a pair, is left out.
    """
    grid = _coarse_grid(series.frames[home].grid)
    before, after = _images(series, grid), _images(series, grid, transforms)
    determinants = _determinants(transforms, grid)
    agreement = _agreement(after)
    values = {
        "overlap_percent": [100 * float(seen.float().mean()) for seen in after.seen],
        "agreement_percent": agreement,
        "agreement_gain_percent": [a - b for a, b in zip(agreement, _agreement(before))],
        "nmi_gain": _similarity(after) - _similarity(before),
        "implausible_volume_percent": [100 * float(_implausible(d).float().mean()) for d in determinants],
        "bending_mm": [_bending_mm(t, grid) for t in transforms],
    }
    if len(agreement) > 2:
        values["relative_agreement"] = _relative(agreement)
    if len(agreement) >= _LEAST_CURVE:
        values["curve_roughness_ratio"] = _roughness(after) / max(_roughness(before), 1e-9)
    change = _region_change_percent(after, determinants)
    if change is not None:
        values["region_volume_change_percent"] = change
    return values


def _coarse_grid(grid: Grid) -> Grid:
    """The same box with isotropic voxels."""
    grid = grid.canonical()
    spacing = max(float(grid.spacing_mm.median()), float(grid.extent_mm.max()) / _LONGEST_VOXELS)
    spacing = min(spacing, float((grid.spacing_mm * (torch.tensor(grid.shape) - 1).clamp_min(1)).min()) / 3)  # 4 voxels
    return grid.at_spacing(torch.full((3,), spacing, dtype=torch.float64))


def _images(series: Series, grid: Grid, transforms: Sequence[Transform] | None = None) -> _Images:
    transforms = transforms or [None] * len(series.frames)
    pairs = [resample(smoothed(frame, grid), grid, t) for frame, t in zip(series.frames, transforms)]
    values, seen = (torch.from_numpy(np.stack(part)) for part in zip(*pairs))
    return _Images(values, seen)


def _determinants(transforms: Sequence[Transform], grid: Grid) -> Tensor:
    """``(K, *S)``, of the whole maps."""
    return torch.cat([jacobian_determinant(t.displacement(grid)[None], grid.affine) for t in transforms])


def _implausible(determinant: Tensor) -> Tensor:
    return (determinant < _PLAUSIBLE[0]) | (determinant > _PLAUSIBLE[1])


def _agreement(images: _Images) -> list[float]:
    """Percent of each volume's local variance that the others explain, whatever their contrast: the mean squared
    correlation with the regression on the others, in windows of 5 voxels with structure well above the noise; NaN where
    there is none to compare."""
    scaled = images.scaled()
    values = regress(scaled, images.seen.float(), range(len(scaled))).value
    _, variance = window_moments(scaled[None], WINDOW_RADIUS)
    shares = []
    for volume, value, own, seen in zip(scaled, values, variance[0], images.seen):
        least = max(_LEAST_STRUCTURE, _NOISE_FACTOR * _noise(volume))
        structured = (own > least**2) & seen & (value != 0)
        shares.append(100 * float((1 - torch.exp(-2 * value[structured])).mean()))
    return shares


def _similarity(images: _Images) -> float:
    """Normalised mutual information where all scans have seen; NaN where none has."""
    seen = images.seen.all(dim=0)
    return nmi(images.values, mask=seen) if seen.any() else math.nan


def _relative(agreement: Sequence[float]) -> list[float]:
    """Each over the median of the others that are known; NaN where none is."""
    others = [[a for j, a in enumerate(agreement) if j != k and not math.isnan(a)] for k in range(len(agreement))]
    return [a / max(float(np.median(rest)), 1e-6) if rest else math.nan for a, rest in zip(agreement, others)]


def _noise(volume: Tensor) -> float:
    """Standard deviation of the noise, from the median of second differences along all three axes at once, which
    anatomy leaves small (after Immerkaer 1996, Comput Vis Image Underst 64:300)."""
    for axis in range(3):
        volume = volume.diff(n=2, dim=axis)
    return float(volume.abs().median()) / 0.6745 / 6**1.5


def _bending_mm(transform: Transform, grid: Grid) -> float:
    """95th percentile of how far points end from where the best affine map would put them."""
    points = grid.points(every=2).flatten(0, 2)
    moved = transform(points)
    columns = torch.cat([points - grid.centre, torch.ones(len(points), 1, dtype=points.dtype)], dim=1)
    fit = columns @ torch.linalg.lstsq(columns, moved).solution
    return float((moved - fit).norm(dim=1).quantile(0.95))


def _roughness(images: _Images) -> float:
    """Mean over the voxels that all scans have seen of the curves' second differences."""
    curves = images.values[:, images.seen.all(dim=0)]
    return float((curves[2:] - 2 * curves[1:-1] + curves[:-2]).abs().mean()) if curves.numel() else 0.0


def _region_change_percent(images: _Images, determinants: Tensor) -> list[float] | None:
    """How much each timepoint's map changes the volume of enhancing regions, against the first timepoint and beyond
    what it does around them: tissue keeps its volume when its signal rises. None where nothing enhances."""
    values = _scaled(images.values, images.values[images.seen] if images.seen.any() else images.values)
    rise = (values - values[:1]).amax(dim=0)
    enhancing = (rise > max(_UPTAKE, float(rise.quantile(0.97)))) & images.seen.all(dim=0)
    regions, _ = label(enhancing.numpy())
    voxels = np.bincount(regions.ravel())
    changes, weights = [], []
    for n, box in enumerate(find_objects(regions), start=1):
        if voxels[n] < _LEAST_REGION_VOXELS:  # noise makes thousands of these
            continue
        box = tuple(slice(max(0, side.start - _AROUND_VOXELS), side.stop + _AROUND_VOXELS) for side in box)
        inside = regions[box] == n
        around = binary_dilation(inside, iterations=_AROUND_VOXELS) & (regions[box] == 0)
        if around.any():
            local = determinants[(slice(None), *box)]
            ratio = local[:, inside].mean(dim=1) / local[:, around].mean(dim=1).clamp_min(1e-3)
            changes.append(ratio / ratio[0].clamp_min(1e-3) - 1)
            weights.append(float(voxels[n]))
    if not changes:
        return None
    shares = torch.tensor(weights).sqrt()
    return (100 * (torch.stack(changes).abs() * shares[:, None]).sum(dim=0) / shares.sum()).tolist()
