"""Quality measures behind the verdict, computed from the images and transforms alone, without ground truth.

All are computed on a coarse grid, which is enough to detect gross failures such as a scan of another patient or an
upside-down scan.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_dilation, find_objects, label
from torch import Tensor

from ..data.preprocessing.intensities import intensity_range, scaled_to_range
from ..data.preprocessing.resampling import relative_spacing, resample, smoothed
from ..data.series import Frame, Series
from ..data.storage import IN_MEMORY, Storage
from ..space.filters import window_moments
from ..space.grid import Grid, vector_lengths
from ..space.transforms import Transform
from ..workflow.affine_steps import WINDOW_RADIUS, regress
from ..workflow.processor_time import QUALITY_SCANS, QUALITY_VOXELS
from .metrics import nmi

_LEAST_STRUCTURE = 0.05  # minimum standard deviation in a window, intensities in [0, 1]
_NOISE_FACTOR = 5  # minimum standard deviation over the noise's, so that noise costs only a few percent of agreement
_PERCENTILES = (1, 99)  # scaled to 0 and 1
_NOT_BRIGHTEST = 90  # percentile above which voxels are the brightest tenth
_PLAUSIBLE = (0.5, 2.0)  # plausible range of volume ratios, after over before
_UPTAKE = 0.25  # minimum signal increase in an enhancing region, intensities in [0, 1]
_LEAST_REGION_VOXELS, _AROUND_VOXELS = 8, 2  # minimum size of an enhancing region; thickness of the shell around it
_LEAST_CURVE = 4  # minimum number of timepoints of a curve whose roughness can be measured
_TINY = 1e-30  # avoids a division by zero for intensities of any unit


@dataclass(frozen=True)
class _Images:
    """A series on one grid: ``values`` in the scans' unit and field-of-view masks ``covered``, each ``(K, *S)``."""

    values: Tensor
    covered: Tensor

    def scaled(self) -> Tensor:
        """Scale each timepoint to [0, 1] between the 1st and 99th percentiles of its `intensity_range`."""
        return torch.stack(
            [scaled_to_range(v, v[s] if s.any() else v, _PERCENTILES) for v, s in zip(self.values, self.covered)]
        )


def measure_quality(
    series: Series, transforms: Sequence[Transform], home: int = 0, storage: Storage = IN_MEMORY
) -> dict[str, Any]:
    """Measure the quality of a registration. More than 16 timepoints are measured in groups, each of which spans the
    whole series; measures of the series are then means over the groups.

    Args:
        series: K native volumes.
        transforms: K, from the common space to each timepoint.
        home: index of the scan that defines the output grid.
        storage: where the volumes are kept.

    Returns:
        A number, or a list with one number per timepoint, for the names of `verdict.CHECKS`. Measures that do not
        apply, such as curve roughness for a pair, are omitted.
    """
    frames = series.frames
    grid, resolution = _coarse_grids(frames, home)
    groups = math.ceil(len(frames) / QUALITY_SCANS)
    numbers: dict[str, list[float]] = {}
    lists: dict[str, list[float]] = {}
    for first in range(groups):
        chosen = slice(first, None, groups)
        for name, value in _measured(frames[chosen], transforms[chosen], grid, resolution).items():
            if isinstance(value, list):
                lists.setdefault(name, [math.nan] * len(frames))[chosen] = value
            else:
                numbers.setdefault(name, []).append(value)
        storage.release()
    return {name: _mean_without_nan(values) for name, values in numbers.items()} | lists


def _mean_without_nan(values: Sequence[float]) -> float:
    """Compute the mean of the values that are not NaN; NaN if there are none."""
    finite = [value for value in values if not math.isnan(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _measured(
    frames: Sequence[Frame], transforms: Sequence[Transform], grid: Grid, resolution: Grid
) -> dict[str, float | list[float]]:
    """Do the same as `measure_quality` for timepoints that are all compared with each other."""
    before, after = _images_before_and_after(frames, transforms, grid, resolution)
    determinants = torch.stack([t.jacobian_determinant(grid) for t in transforms])
    implausible = (determinants < _PLAUSIBLE[0]) | (determinants > _PLAUSIBLE[1])
    agreement, compared = _agreement(after)
    values: dict[str, float | list[float]] = {
        "hidden_structure_percent": _hidden_percent(after),
        "overlap_percent": _overlap(after),
        "compared_percent": compared,
        "agreement_percent": agreement,
        "agreement_gain_percent": [a - b for a, b in zip(agreement, _agreement(before)[0])],
        "nmi_gain": _similarity(after) - _similarity(before),
        "implausible_volume_percent": [100 * float(share) for share in implausible.float().mean(dim=(1, 2, 3))],
        "bending_mm": [_bending_mm(t, grid) for t in transforms],
    }
    if len(agreement) > 2:
        values["relative_agreement"] = _relative(agreement)
    if len(agreement) >= _LEAST_CURVE:
        values["curve_roughness_ratio"] = _roughness(after) / max(_roughness(before), _TINY)
    change = _region_change_percent(after, determinants)
    if change is not None:
        values["region_volume_change_percent"] = change
    return values


def _coarse_grids(frames: Sequence[Frame], home: int) -> tuple[Grid, Grid]:
    """Choose the coarse isotropic grid of all measures, over the field of view of the scan ``home``, and a grid with
    the same axes whose voxels have the size to which all scans are smoothed: the largest along each axis. Otherwise
    the sharper scans would show structure that the other scans cannot explain."""
    grid = frames[home].grid.canonical()
    axes = grid.affine[:3, :3] / grid.spacing_mm
    # An oblique voxel extends along an axis as the root sum of squares of its projected edges.
    coarsest_mm = torch.stack([(axes.T @ frame.grid.affine[:3, :3]).norm(dim=1) for frame in frames]).amax(dim=0)
    spacing = max(float(coarsest_mm.median()), float(grid.extent_mm.max()) / QUALITY_VOXELS)
    spacing = min(spacing, float((grid.spacing_mm * (torch.tensor(grid.shape) - 1).clamp_min(1)).min()) / 3)  # 4 voxels
    coarse = grid.at_spacing(torch.full((3,), spacing, dtype=torch.float64))
    return coarse, grid.at_spacing(coarsest_mm.clamp_min(spacing))


def _images_before_and_after(
    frames: Sequence[Frame], transforms: Sequence[Transform], grid: Grid, resolution: Grid
) -> tuple[_Images, _Images]:
    """Resample the volumes before and after registration, smoothed to the ``resolution`` of another grid; one smoothed
    volume at a time is in memory."""
    before, after = [], []
    for frame, transform in zip(frames, transforms):
        smooth = smoothed(frame, relative_spacing(frame.grid, resolution))
        before.append(resample(smooth, grid))
        after.append(resample(smooth, grid, transform))
    return _stacked(before), _stacked(after)


def _stacked(volumes: Sequence[tuple[np.ndarray, np.ndarray]]) -> _Images:
    values, covered = (torch.from_numpy(np.stack(part)) for part in zip(*volumes))
    return _Images(values, covered)


def _overlap(images: _Images) -> list[float]:
    """Compute the percentage of the voxels measured by any timepoint that each of them measured; 0 without any."""
    measured = images.covered.flatten(1).sum(dim=1)
    return (100 * measured / images.covered.any(dim=0).sum().clamp_min(1)).tolist()


def _agreement(images: _Images) -> tuple[list[float], list[float]]:
    """Compare each volume with the other volumes, independent of contrast, in windows of 5 voxels with structure well
    above the noise.

    Returns:
        The percentage of its local variance that the other volumes explain: the mean squared correlation with the
        regression on them, NaN if no window can be compared; and the percentage of the windows with structure in any
        volume in which it is compared, as both it and another volume vary there, NaN if it has no structure.
    """
    scaled = images.scaled()
    values = regress(scaled, images.covered.float(), range(len(scaled))).value
    _, variance = window_moments(scaled[None], WINDOW_RADIUS)
    parts = zip(scaled, variance[0], images.covered)
    structured = torch.stack([_structured(volume, own, covered) for volume, own, covered in parts])
    compared = structured.any(dim=0) & (values != 0)
    agreement = [
        100 * float((1 - torch.exp(-2 * value[windows])).mean())
        for value, windows in zip(values, structured & compared)
    ]
    shares = 100 * compared.flatten(1).sum(dim=1) / structured.any(dim=0).sum()
    return agreement, torch.where(structured.flatten(1).any(dim=1), shares, math.nan).tolist()


def _structured(volume: Tensor, variance: Tensor, valid: Tensor, scale: float = 1.0) -> Tensor:
    """Mark the windows with structure well above the noise, which is visible in the ``volume`` times ``scale``."""
    least = max(_LEAST_STRUCTURE / scale, _NOISE_FACTOR * _noise(volume))
    return (variance > least**2) & valid


def _hidden_percent(images: _Images) -> list[float]:
    """Compute the percentage of each volume's structure that only the brightest tenth of its voxels, such as a metal
    implant, makes too faint to be compared; NaN without structure."""
    shares = []
    for volume, covered in zip(images.scaled(), images.covered):
        _, variance = window_moments(volume[None, None], WINDOW_RADIUS)
        low, high = intensity_range((volume[covered] if covered.any() else volume).numpy(), (1, _NOT_BRIGHTEST))
        scale = 1 / (high - low) if high > low else 1.0
        visible, without_brightest = (_structured(volume, variance[0, 0], covered, s) for s in (1.0, scale))
        number = int(without_brightest.sum())
        shares.append(100 * int((without_brightest & ~visible).sum()) / number if number else math.nan)
    return shares


def _similarity(images: _Images) -> float:
    """Compute the normalised mutual information over the common field of view; NaN if it is empty."""
    covered = images.covered.all(dim=0)
    return nmi(images.values, mask=covered) if covered.any() else math.nan


def _relative(agreement: Sequence[float]) -> list[float]:
    """Divide each agreement by the median over the other timepoints, ignoring NaN; NaN if no values remain."""
    rests = [[a for j, a in enumerate(agreement) if j != k and not math.isnan(a)] for k in range(len(agreement))]
    return [a / max(float(np.median(rest)), 1e-6) if rest else math.nan for a, rest in zip(agreement, rests)]


def _noise(volume: Tensor) -> float:
    """Estimate the standard deviation of the noise, from the median of combined second differences along all three
    axes, to which anatomy contributes little (after Immerkaer 1996, Comput Vis Image Underst 64:300)."""
    for axis in range(3):
        volume = volume.diff(n=2, dim=axis)
    return float(volume.abs().median()) / 0.6745 / 6**1.5


def _bending_mm(transform: Transform, grid: Grid) -> float:
    """Compute the 95th percentile of the residuals of the best affine fit to the transform."""
    points = grid.points(every=2).flatten(0, 2)
    transformed = transform(points)
    columns = torch.cat([points - grid.centre, torch.ones(len(points), 1, dtype=points.dtype)], dim=1)
    fit = columns @ torch.linalg.lstsq(columns, transformed).solution
    return float(vector_lengths(transformed - fit).quantile(0.95))


def _roughness(images: _Images) -> float:
    """Compute the mean absolute second difference of the signal curves over the common field of view."""
    curves = images.values[:, images.covered.all(dim=0)]
    return float((curves[2:] - 2 * curves[1:-1] + curves[:-2]).abs().mean()) if curves.numel() else 0.0


def _region_change_percent(images: _Images, determinants: Tensor) -> list[float] | None:
    """Compute the volume change of enhancing regions per timepoint, relative to the first timepoint and to the
    surrounding tissue: enhancement must not change the volume of tissue. None if nothing enhances."""
    sample = images.values[images.covered] if images.covered.any() else images.values
    values = scaled_to_range(images.values, sample, _PERCENTILES)
    rise = (values - values[:1]).amax(dim=0)
    # At most the 3 % of voxels that rise most are enhancing regions, so that these keep surroundings to compare with.
    enhancing = (rise > max(_UPTAKE, float(rise.quantile(0.97)))) & images.covered.all(dim=0)
    regions, _ = label(enhancing.numpy())
    voxels = np.bincount(regions.ravel())
    changes, weights = [], []
    for n, box in enumerate(find_objects(regions), start=1):
        if voxels[n] < _LEAST_REGION_VOXELS:  # noise causes thousands of these
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
