"""Gauss-Newton steps that align volumes of any contrasts by affine maps."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import logm
from torch import Tensor

from ..data.preprocessing.intensities import NOISE_VARIANCE
from ..space.filters import gradient, window_mean
from ..space.grid import Grid

WINDOW_RADIUS = 2  # voxels; 5 x 5 x 5 voxels determine the correlations between scans
_LONGEST_STEP = 3.0  # voxels; maximum motion of a corner, up to which the linear model holds
_KARCHER_STEPS = 50  # maximum number of steps to the mean of maps; a few suffice


def affine_generators(kind: str) -> Tensor:
    """Return the generators of rigid maps, 3 rotations and 3 translations, or of affine maps, ``(6 or 12, 3, 4)``."""
    if kind == "affine":
        return torch.eye(12, dtype=torch.float64).view(12, 3, 4)
    rotations = torch.zeros(3, 3, 4, dtype=torch.float64)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        rotations[axis, a, b], rotations[axis, b, a] = -1, 1
    translations = torch.zeros(3, 3, 4, dtype=torch.float64)
    translations[range(3), range(3), 3] = 1
    return torch.cat([rotations, translations])


class Regression(NamedTuple):
    """Result of `regress` for M predicted volumes.

    Args:
        value, guide, score, weight: as for `Linearised`, but a value for each volume, ``(M, *S)``; value, score and
            weight are 0 where volumes cannot be compared.
        correlation: correlation of each predicted volume with each of the K volumes, averaged over the windows,
            ``(M, K)``.
    """

    value: Tensor
    guide: Tensor
    score: Tensor
    weight: Tensor
    correlation: Tensor


def regress(volumes: Tensor, measured: Tensor, predicted: Sequence[int]) -> Regression:
    """Predict volumes from the other volumes in the window around every voxel.

    The prediction is the sum of the other volumes, each normalised to zero mean and unit variance and multiplied by its
    local correlation with the volume, so that inverted contrasts count, too. The volume is modelled as a gain times the
    prediction plus noise, both estimated by least squares, as for `LocalCorrelation`.

    Args:
        volumes: intensities in [0, 1], ``(K, *S)``.
        measured: 1 where they were measured, otherwise 0, ``(K, *S)``.
        predicted: indices of the volumes to predict.
    """
    share = _mean(measured).clamp_min(1e-3)
    local_mean = _mean(volumes * measured) / share
    variance = (_mean(volumes.square() * measured) / share - local_mean.square()).clamp_min(0) + NOISE_VARIANCE
    normal = (volumes - local_mean) * variance.rsqrt() * measured
    parts, correlations = [], []
    for k, correlation in zip(predicted, _local_correlations(normal, measured, predicted)):
        rest = [j for j in range(len(volumes)) if j != k]
        guide = (correlation * normal[rest]).sum(dim=0)
        counts = measured[k] * measured[rest].amax(dim=0)
        moments = _mean(torch.stack([counts, normal[k].square() * counts, guide.square(), guide * normal[k]]))
        own_variance, guide_variance, covariance = moments[1:] / moments[:1].clamp_min(1e-3)
        counts = counts * (moments[0] > 0.5)
        noise = NOISE_VARIANCE / variance[k]
        gain = covariance / (guide_variance + 1e-3)
        unexplained = (own_variance - gain * covariance).clamp_min(0) + noise
        value = -0.5 * torch.log(unexplained / (own_variance + noise))
        score = -gain / unexplained * (normal[k] - gain * guide)
        parts.append(torch.stack([value * counts, guide, score * counts, gain.square() / unexplained * counts]))
        shared = counts * measured[rest]
        means = (shared * correlation).flatten(1).sum(dim=1) / shared.flatten(1).sum(dim=1).clamp_min(1)
        correlations.append(torch.cat([means[:k], torch.ones(1), means[k:]]))
    value, guide, score, weight = torch.stack(parts, dim=1)
    return Regression(value, guide, score, weight, torch.stack(correlations))


def _mean(x: Tensor) -> Tensor:
    return window_mean(x[None], WINDOW_RADIUS)[0]


def _local_correlations(normal: Tensor, measured: Tensor, predicted: Sequence[int]) -> Iterator[Tensor]:
    """Yield the local correlations of each predicted volume with the other volumes, ``(K - 1, *S)``."""
    pairs: dict[tuple[int, int], Tensor] = {}  # computed with one volume of a pair, for the other one
    for n, k in enumerate(predicted):
        correlations = []
        for j in (j for j in range(len(normal)) if j != k):
            correlation = pairs.pop((j, k), None)
            if correlation is None:
                products = _mean(torch.stack([normal[k] * normal[j], measured[k] * measured[j]]))
                correlation = products[0] / products[1].clamp_min(1e-3)
            if j in predicted[n + 1 :]:
                pairs[k, j] = correlation
            correlations.append(correlation)
        yield torch.stack(correlations)


def affine_steps(volumes: Tensor, measured: Tensor, grid: Grid, kind: str, predicted: Sequence[int]) -> Tensor:
    """Compute one Gauss-Newton step of each predicted volume: the logarithm ``(4, 4)`` of a map to apply before its
    map.

    Args:
        volumes, measured, predicted: as for `regress`.
        grid: grid of the volumes.
        kind: ``"affine"`` or ``"rigid"``.
    """
    _, guides, scores, weights, _ = (x.double() for x in regress(volumes, measured, predicted))
    # Coordinates about the centre, in units of half the longest side, keep the equations well conditioned.
    scale = float(grid.extent_mm.max()) / 2
    points = (grid.points() - grid.centre).flatten(0, 2).T / scale
    scaled = torch.cat([points, torch.ones_like(points[:1])])
    to_scaled = torch.eye(4, dtype=torch.float64)
    to_scaled[:3, :3] /= scale
    to_scaled[:3, 3] = -grid.centre / scale
    generators = affine_generators(kind).flatten(1)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3, torch.ones(1)).double()
    steps = []
    for guide, score, weight in zip(guides, scores, weights):
        slope = torch.linalg.inv(grid.affine[:3, :3]).T @ gradient(guide[None, None])[0, 0].flatten(1) * scale
        effect = (slope[:, None] * scaled).flatten(0, 1)
        force = generators @ (effect @ score.flatten())
        curvature = generators @ ((effect * weight.flatten()) @ effect.T) @ generators.T
        damping = 1e-3 * curvature.trace() / len(curvature) + 1e-9
        step = torch.linalg.solve(curvature + damping * torch.eye(len(curvature)), force) @ generators
        longest = (step.view(3, 4) @ corners.T).norm(dim=0).max() * scale / grid.spacing_mm[0]
        step = step.view(3, 4) * (_LONGEST_STEP / longest.clamp_min(1e-9)).clamp_max(1)
        steps.append(torch.cat([step, torch.zeros(1, 4, dtype=torch.float64)]))
    return torch.linalg.inv(to_scaled) @ torch.stack(steps) @ to_scaled


def logarithms(maps: Tensor) -> Tensor:
    """Compute the matrix logarithms of maps ``(K, 4, 4)``."""
    return torch.stack([torch.from_numpy(np.real(logm(m.numpy()))) for m in maps])


def centred_maps(maps: Tensor) -> Tensor:
    """Move the common space of maps ``(K, 4, 4)`` to their Karcher mean, where their logarithms have mean 0."""
    if all(torch.equal(m, maps[0]) for m in maps):
        return torch.eye(4, dtype=torch.float64).repeat(len(maps), 1, 1)
    for _ in range(_KARCHER_STEPS):
        mean = logarithms(maps).mean(dim=0)
        maps = maps @ torch.linalg.matrix_exp(-mean)
        if mean.abs().max() < 1e-11:
            break
    return maps
