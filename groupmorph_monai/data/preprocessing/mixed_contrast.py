"""Scans whose contrast is inverted in a part of the body, such as T2 among T1."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor
from torch.nn.functional import avg_pool3d

from ...space.chunks import total
from ...space.filters import valid_mean, window_moments, window_normalise
from ..storage import IN_MEMORY, Storage
from .intensities import NOISE_VARIANCE

logger = logging.getLogger(__name__)

_LONGEST_SIDE = 64  # voxels of the coarse grid on which contrasts are compared
_RADIUS = 2  # voxels of the coarse grid; windows in which contrasts are compared
_LEAST_STRUCTURE = 0.05  # minimum standard deviation in a window
_MIXED = 0.2  # share of inverted structure above which contrasts differ: up to 0.07 in one contrast, 0.35 if mixed
_MOST_COMPARED = 16  # maximum number of timepoints compared in pairs, spread evenly over the series
_BINS = 32  # of intensities in [0, 1]
_LEAST_VOXELS = 8  # minimum number of voxels in a bin; the curve is interpolated over bins with fewer


class MatchContrastd(Transform):
    """Map intensities of timepoints to the contrast of the majority if theirs is inverted in a part of the body, such
    as T2 among T1, where fluid is inverted but air is not. Written images keep their intensities.

    The timepoints of the item's ``image`` ``(K, *S)``, intensities in [0, 1], are affinely aligned; ``coverage``
    ``(K, *S)`` marks the voxels that count.

    A likelihood that compares volumes with a common template needs one contrast. The curve of a timepoint is the mean
    intensity of the majority at each of its intensities. `MatchPolarityd` inverts whole volumes exactly; this transform
    changes nothing afterwards if no contrast is mixed.

    Args:
        storage: where to keep the result.
    """

    def __init__(self, storage: Storage = IN_MEMORY):
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        series, coverage = item["image"], item.get("coverage")
        curves = intensity_curves(partial(self._coarse, series, coverage), len(series))
        if curves:
            logger.info(
                "The contrast of timepoints %s is partly inverted; their intensities are mapped to the contrast "
                "of the others to estimate the motion",
                ", ".join(map(str, curves)),
            )
            table = torch.full((len(series), _BINS + 1), torch.nan)
            for k, curve in curves.items():
                table[k] = curve
            item["image"] = self.storage.map(_mapped, table, series, dim=0)
        return item

    def _coarse(self, series: Tensor, coverage: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """Average volume k over blocks, and mark the blocks that are covered: ``(1, 1, *s)`` each."""
        factor = -(-max(series.shape[1:]) // _LONGEST_SIDE)
        block = [min(factor, n) for n in series.shape[1:]]
        values = avg_pool3d(torch.as_tensor(series[k])[None, None].float(), block)
        measured = torch.ones_like(values)
        if coverage is not None:
            measured = (avg_pool3d(torch.as_tensor(coverage[k])[None, None].float(), block) > 0.99).float()
        self.storage.release()
        return values, measured


def intensity_curves(volume: Callable[[int], tuple[Tensor, Tensor]], timepoints: int) -> dict[int, Tensor]:
    """Estimate the curves that map timepoints of mixed contrast to the contrast of the majority; where two contrasts
    are equally frequent, to that of the scan with the strongest edges.

    Args:
        volume: returns an aligned volume, intensities in [0, 1], and 1 where it was measured, otherwise 0, ``(1, 1,
            *S)`` each, by the index of the timepoint.
        timepoints: K.

    Returns:
        Intensities ``(33,)`` at 0, 1/32, ..., 1, by the index of the timepoint. A timepoint that still differs from the
        majority after the mapping is omitted.
    """
    compared = range(0, timepoints, -(-timepoints // _MOST_COMPARED))
    coarse = {k: volume(k) for k in compared}
    values, masks = (torch.cat(part) for part in zip(*coarse.values()))
    normalised = window_normalise(values, _RADIUS, NOISE_VARIANCE, masks) * masks
    majority = _majority(values, normalised, masks)
    curves = {}
    for k in range(timepoints):
        rest = [i for i in majority if compared[i] != k]
        if not rest:
            continue
        value, mask = coarse[k] if k in coarse else volume(k)
        guide, covered = normalised[rest].sum(dim=0, keepdim=True), masks[rest].amax(dim=0, keepdim=True)
        inverted = _inverted_share(value, guide, mask * covered)
        if inverted <= _MIXED:
            continue
        curve = _curve(value, values[rest].mean(dim=0, keepdim=True), mask * masks[rest].amin(dim=0))
        left = _inverted_share(_mapped(curve[None], value[0])[None], guide, mask * covered)
        if left < min(_MIXED, inverted / 2):
            curves[k] = curve
    return curves


def _majority(values: Tensor, normalised: Tensor, masks: Tensor) -> list[int]:
    """Choose the largest group of volumes that have the contrast of one of them."""
    indices = range(len(values))
    share = torch.zeros(len(values), len(values))
    for j in indices:
        for k in indices[j + 1 :]:
            both = masks[j, None] * masks[k, None]
            share[j, k] = share[k, j] = _inverted_share(values[k, None], normalised[j, None], both)
    alike = share < _MIXED
    edges = total(values.diff(dim=axis).square().flatten(1).sum(dim=1) for axis in (2, 3, 4))
    centre = max(indices, key=lambda k: (int(alike[k].sum()), float(edges[k])))
    return [k for k in indices if alike[centre, k]]


def _inverted_share(volume: Tensor, guide: Tensor, both: Tensor) -> float:
    """Compute the share of the structure common to a volume and a guide, normalised volumes, at which their local
    correlation rho is negative, weighted by ``-log(1 - rho^2) / 2``; 0 without common structure."""
    (mean, variance), (guide_mean, guide_variance) = (window_moments(x, _RADIUS, both) for x in (volume, guide))
    covariance = valid_mean(volume * guide, _RADIUS, both) - mean * guide_mean
    correlation = covariance * ((variance + NOISE_VARIANCE) * (guide_variance + 1e-3)).rsqrt()
    nats = -0.5 * torch.log1p(-correlation.square().clamp_max(0.999)) * both * (variance > _LEAST_STRUCTURE**2)
    return float(nats[correlation < 0].sum() / nats.sum().clamp_min(1e-6))


def _curve(volume: Tensor, template: Tensor, both: Tensor) -> Tensor:
    """Compute the mean of a template, where ``both`` were measured, at the intensities of a volume; scaled to [0, 1].

    Returns:
        ``(33,)``.
    """
    chosen = both > 0.5
    x, y = volume[chosen], template[chosen]
    bins = (x * _BINS).long().clamp(0, _BINS - 1)
    count, sum_x, sum_y = (torch.zeros(_BINS).index_add(0, bins, v) for v in (torch.ones_like(x), x, y))
    filled = count >= min(_LEAST_VOXELS, float(count.max()))
    centres, means = sum_x[filled] / count[filled], sum_y[filled] / count[filled]
    means = (means - means.min()) / (means.max() - means.min()).clamp_min(1e-6)
    return torch.from_numpy(np.interp(np.linspace(0, 1, _BINS + 1), centres, means)).float()


def _mapped(curves: Tensor, volumes: Tensor) -> Tensor:
    """Map intensities of ``(k, *S)`` by curves ``(k, 33)``; volumes whose curve is NaN are unchanged."""
    result = []
    for curve, volume in zip(curves, volumes):
        position = volume.clamp(0, 1) * _BINS
        lower = position.long().clamp_max(_BINS - 1)
        mapped = curve[lower] + (position - lower) * (curve[lower + 1] - curve[lower])
        result.append(volume if curve.isnan().any() else mapped)
    return torch.stack(result)
