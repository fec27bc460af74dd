"""Signal that fades towards the ends of the excited slab, as in 3D MRI."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.transforms import Transform
from nibabel.orientations import apply_orientation, ornt_transform
from scipy import sparse
from torch import Tensor

from ...space.grid import Grid
from ...space.transforms import AffineTransform, interpolate
from ..series import Frame, Series
from ..storage import IN_MEMORY, Storage
from .resampling import FULLY_VALID, on_one_grid

logger = logging.getLogger(__name__)

_MOST_SCANS = 16  # maximum number of scans from which the gain is estimated, spread evenly over the series
_SAMPLES = 2**16  # samples in all scans together
_TISSUE = 0.2  # minimum intensity of tissue in at least one scan, as a share of the scan's 95th percentile
_DARKEST = 0.02  # share of that percentile below which there is no signal
_TOLERANCE = 0.3  # residual of a logarithm beyond which a sample counts less (Cauchy), such as at misaligned edges
_ROBUST_STEPS = 6  # number of iterations that reweight the samples
_RIDGE = 2e-3  # weight of gain 1 for each slice, relative to the mean number of samples per slice
_FADED = 0.5  # highest gain of the last slice of an end that fades
_FULL = 0.95  # gain at which the fading begins
_LONGEST_SHARE = 1 / 3  # maximum share of the slices over which an end fades
_LEAST_SAMPLES = 0.02  # minimum number of samples in the last slice, as a share of the median over the slices
_LEAST_GAIN = 0.2  # slices with a lower gain are not measured, as noise prevails in them


class CorrectFadingd(Transform):
    """Divide scans by the gain of slices that fade towards the ends of an axis, as at the ends of the slab excited in
    3D MRI. This gain is fixed to the scanner while the tissue moves, so that the end of the slab would be registered
    instead of the tissue. Slices with less than a fifth of the signal are marked as not measured.

    The item's ``image`` is a `Series`, and ``initial`` ``(K, 4, 4)`` are affine transforms that align its scans. Items
    without them and series without such slices are unchanged, see `end_gains`.

    Args:
        storage: where to keep the result.
    """

    def __init__(self, storage: Storage = IN_MEMORY):
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        if {"image", "initial"} <= item.keys():
            item["image"] = self._corrected(item["image"], item["initial"])
        return item

    def _corrected(self, series: Series, initial: Tensor) -> Series:
        gains = end_gains(series.frames, initial)
        fading = [axis for axis, gain in enumerate(gains) if gain.min() < 1]
        if not fading:
            return series
        for axis in fading:
            ends = [part.min() for part in np.array_split(gains[axis], 2)]
            logger.info(
                "Axis %d: the signal fades to %.2g and %.2g at its ends; corrected for registration", axis, *ends
            )
        volume, frames = np.einsum("i,j,k->ijk", *gains).astype(np.float32), []
        axes = nib.io_orientation(series.frames[0].affine)
        for frame in series.frames:
            to_own_axes = ornt_transform(axes, nib.io_orientation(frame.affine))
            gain = apply_orientation(volume, to_own_axes)
            enough = gain >= _LEAST_GAIN
            corrected = frame.data / np.maximum(gain, _LEAST_GAIN)
            valid = enough if frame.valid is None else enough & frame.valid
            frames.append(replace(frame, data=self.storage.keep(corrected), valid=self.storage.keep(valid)))
            self.storage.release()
        return replace(series, frames=tuple(frames))


def end_gains(frames: Sequence[Frame], initial: Tensor) -> list[np.ndarray]:
    """Estimate the gain of slices that fade towards the ends of an axis, from tissue that moved between the scans.

    Scan k shows a point x of the common space on slice ``s_k(x)`` of an axis, with the intensity ``I_k(x)``:

    ``log I_k(x) = log tissue(x) + offset_k + log gain(s_k(x)) + residual``.

    Subtracting the mean over the scans eliminates the tissue, so that anatomy has no influence. Gain and offsets are
    estimated by robust least squares with a weak preference for gain 1, and without motion along the axis the gain is
    1. As contrast agent may be confounded with it, a gain is accepted only where the scans themselves become darker.

    Args:
        frames: scans. The gain is 1 unless they have the same grid, up to the order and direction of its axes, and
            intensities of 0 or more.
        initial: ``(K, 4, 4)``, RAS mm, from the common space to each scan.

    Returns:
        Gain of each slice along the three axes of the first scan.
    """
    grid, gains = frames[0].grid, [np.ones(n) for n in frames[0].data.shape]
    if not on_one_grid([frame.grid for frame in frames]) or any(frame.data.min() < 0 for frame in frames):
        return gains
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), _MOST_SCANS)).round().astype(int))
    samples = _draw_samples([frames[k] for k in chosen], initial[chosen], grid)
    if not samples.measured.any(axis=1).all():
        return gains
    for axis, gain in enumerate(gains):
        slices = samples.voxels[:, :, axis].clip(0, len(gain) - 1)
        brightness, inwards, has_tissue = _profile(samples, slices, len(gain))
        ends = [end for end in (inwards, inwards[::-1]) if has_tissue[end[0]] and _darkens(brightness[end])]
        if ends:
            logarithms = np.log(np.maximum(samples.values, _DARKEST))
            estimate = np.exp(_log_gain(logarithms, samples.tissue, slices, len(gain)))
        for end in ends:
            fading = end[: _fading_slices(estimate[end], brightness[end])]
            gain[fading] = estimate[fading]
    return gains


class _Samples(NamedTuple):
    """Intensities of N points of the common space in K scans.

    Args:
        values: intensities, as a share of the scan's 95th percentile, ``(K, N)``.
        measured: whether the scan covers the point, ``(K, N)``.
        tissue: whether it also shows tissue there, ``(K, N)``.
        voxels: position of the point on the grid of the first scan, ``(K, N, 3)``.
    """

    values: np.ndarray
    measured: np.ndarray
    tissue: np.ndarray
    voxels: np.ndarray


def _draw_samples(scans: Sequence[Frame], initial: Tensor, grid: Grid) -> _Samples:
    common = _random_points(scans[0], _SAMPLES // len(scans))
    points = [AffineTransform(matrix)(common) for matrix in initial]
    stored = [scan.grid.voxels(p) for scan, p in zip(scans, points)]
    measured = np.stack([_measured(scan, v) for scan, v in zip(scans, stored)])
    values = np.stack([_sampled(scan.data, v) for scan, v in zip(scans, stored)])
    scales = [max(np.percentile(v[m], 95), 1e-30) if m.any() else 1.0 for v, m in zip(values, measured)]
    values /= np.array(scales)[:, None]
    # Exclude points with air in any scan, as the misaligned edge of an object looks like fading.
    shown = ((values > _DARKEST) | ~measured).all(axis=0)
    tissue = measured & (measured.sum(axis=0) > 1) & ((values * measured).max(axis=0) > _TISSUE) & shown
    return _Samples(values, measured, tissue, np.stack([grid.voxels(p).numpy() for p in points]))


def _profile(samples: _Samples, slices: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean intensity of each slice, the indices of the slices with samples, and whether slices have enough
    samples of tissue.

    Args:
        slices: slice of each sample, ``(K, N)``.
        number: number of slices.
    """
    index, measured = slices.round().astype(int), samples.measured
    count = np.bincount(index[measured], minlength=number)
    total = np.bincount(index[measured], samples.values[measured], number)
    tissue_count = np.bincount(index[samples.tissue], minlength=number)
    has_tissue = tissue_count > _LEAST_SAMPLES * np.median(tissue_count)
    return total / np.maximum(count, 1), np.flatnonzero(count), has_tissue


def _darkens(brightness: np.ndarray) -> bool:
    """Check whether the slices, from the last one inwards, may fade."""
    outer = brightness[: int(len(brightness) * _LONGEST_SHARE)]
    return len(outer) > 1 and outer[0] < np.sqrt(_FADED) * outer.max()


def _fading_slices(gain: np.ndarray, brightness: np.ndarray) -> int:
    """Count the slices that fade, from the last one inwards: those before the gain is full, or 0 if the last one is not
    darker by at least half of the logarithm of its gain."""
    full = np.flatnonzero(gain[: int(len(gain) * _LONGEST_SHARE)] >= _FULL)
    if not len(full) or gain[0] > _FADED or brightness[0] > np.sqrt(gain[0]) * brightness[full[0]]:
        return 0
    return int(full[0])


def _random_points(frame: Frame, number: int) -> Tensor:
    """Draw points in the field of view, ``(number, 3)`` mm, independent of how the scan is stored."""
    grid, generator = frame.grid.canonical(), torch.Generator().manual_seed(0)
    voxels = torch.rand(number, 3, generator=generator, dtype=torch.float64) * (torch.tensor(grid.shape) - 1)
    return AffineTransform(grid.affine)(voxels)


def _sampled(volume: np.ndarray, voxels: Tensor) -> np.ndarray:
    return interpolate(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None], voxels)[..., 0].numpy()


def _measured(frame: Frame, voxels: Tensor) -> np.ndarray:
    inside_mask = frame.grid.covers(voxels).numpy()
    return inside_mask if frame.valid is None else inside_mask & (_sampled(frame.valid, voxels) > FULLY_VALID)


def _log_gain(logarithms: np.ndarray, inside: np.ndarray, slices: np.ndarray, number: int) -> np.ndarray:
    """Fit the logarithm of the gain of ``number`` slices; its median over the middle half of the slices is 0.

    Args:
        logarithms, inside, slices: ``(K, N)``, logarithm of the intensity of N points in K scans, whether it was
            measured, and the position of the point along the axis, in slices.
    """
    scans, points = slices.shape
    share = inside / np.maximum(inside.sum(axis=0), 1)
    below = np.clip(np.floor(slices), 0, number - 2).astype(int)
    fraction = slices - below
    rows = np.arange(points)
    # Row x interpolates the gain at the slice that shows point x.
    at_points = [
        sparse.csr_matrix((np.r_[1 - f, f], (np.r_[rows, rows], np.r_[b, b + 1])), shape=(points, number))
        for b, f in zip(below, fraction)
    ]
    mean_gain = sum(sparse.diags(s) @ a for s, a in zip(share, at_points))
    design = sparse.vstack([(a - mean_gain)[m] for a, m in zip(at_points, inside)])
    offsets = sparse.csr_matrix((np.ones(inside.sum()), (np.arange(inside.sum()), np.nonzero(inside)[0])))
    design = sparse.hstack([design, offsets]).tocsr()
    target = (logarithms - (share * logarithms).sum(axis=0))[inside]
    ridge = _RIDGE * len(target) / number * sparse.eye(design.shape[1])
    fit, weights = np.zeros(design.shape[1]), np.ones(len(target))
    for _ in range(_ROBUST_STEPS):
        normal = design.T @ sparse.diags(weights) @ design + ridge
        fit = np.linalg.solve(normal.toarray(), design.T @ (weights * target))
        weights = 1 / (1 + ((target - design @ fit) / _TOLERANCE) ** 2)
    return fit[:number] - np.median(fit[number // 4 : number - number // 4])
