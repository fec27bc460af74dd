"""Gauss-Newton steps of affine maps towards volumes that predict one another, whatever their contrasts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..space.geometry import Grid
from ..space.lattice import gradient, window_mean

__all__ = ["Regression", "WINDOW_RADIUS", "affine_generators", "affine_steps", "regress"]

WINDOW_RADIUS = 2  # voxels
_NOISE = 0.02**2  # variance of intensities in [0, 1] that shows nothing
_LONGEST_STEP = 3.0  # voxels


def affine_generators(kind: str) -> Tensor:
    """The matrices ``(P, 3, 4)`` along which a map may move: 3 rotations and 3 translations, or all 12."""
    if kind == "affine":
        return torch.eye(12, dtype=torch.float64).view(12, 3, 4)
    rotations = torch.zeros(3, 3, 4, dtype=torch.float64)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        rotations[axis, a, b], rotations[axis, b, a] = -1, 1
    translations = torch.zeros(3, 3, 4, dtype=torch.float64)
    translations[range(3), range(3), 3] = 1
    return torch.cat([rotations, translations])


class Regression(NamedTuple):
    """As `Likelihood.linearise` returns, each ``(K, *S)``, 0 where nothing can be compared; and the ``correlation`` of
    each volume with each other, a mean over the windows, ``(K, K)``."""

    value: Tensor
    guide: Tensor
    score: Tensor
    weight: Tensor
    correlation: Tensor


def regress(volumes: Tensor, measured: Tensor, moving: Sequence[int]) -> Regression:
    """Predict volumes from the others, in the window around every voxel.

    The prediction is the sum of the others, each brought to zero mean and unit variance and multiplied by its
    correlation with the volume there, so that it may be of either sign. The volume is a gain times it plus noise, both
    by least squares, as for `LocalCorrelation`.

    Args:
        volumes, measured: ``(K, *S)``.
        moving: of which volumes.
    """

    def mean(x: Tensor) -> Tensor:
        return window_mean(x[None], WINDOW_RADIUS)[0]

    share = mean(measured).clamp_min(1e-3)
    middle = mean(volumes * measured) / share
    variance = (mean(volumes.square() * measured) / share - middle.square()).clamp_min(0) + _NOISE
    normal = (volumes - middle) * variance.rsqrt() * measured
    parts, correlations, pairs, later = [], [], {}, set(moving)
    for k in moving:
        others = [j for j in range(len(volumes)) if j != k]
        later.discard(k)
        agreements = []
        for j in others:
            agreement = pairs.pop((j, k), None)
            if agreement is None:
                products = mean(torch.stack([normal[k] * normal[j], measured[k] * measured[j]]))
                agreement = products[0] / products[1].clamp_min(1e-3)
            if j in later:  # kept until then
                pairs[k, j] = agreement
            agreements.append(agreement)
        agreement = torch.stack(agreements)
        guide = (agreement * normal[others]).sum(dim=0)
        counts = measured[k] * measured[others].amax(dim=0)
        moments = mean(torch.stack([counts, normal[k].square() * counts, guide.square(), guide * normal[k]]))
        own, explained, both = moments[1:] / moments[:1].clamp_min(1e-3)
        counts = counts * (moments[0] > 0.5)
        noise = _NOISE / variance[k]
        gain = both / (explained + 1e-3)
        rest = (own - gain * both).clamp_min(0) + noise
        value = -0.5 * torch.log(rest / (own + noise))
        score = -gain / rest * (normal[k] - gain * guide)
        parts.append(torch.stack([value * counts, guide, score * counts, gain.square() / rest * counts]))
        shared = counts * measured[others]
        means = (shared * agreement).flatten(1).sum(dim=1) / shared.flatten(1).sum(dim=1).clamp_min(1)
        correlations.append(torch.cat([means[:k], torch.ones(1), means[k:]]))
    return Regression(*torch.stack(parts, dim=1), torch.stack(correlations))


def affine_steps(volumes: Tensor, measured: Tensor, grid: Grid, kind: str, moving: Sequence[int]) -> Tensor:
    """One Gauss-Newton step of each moving volume, the logarithm ``(4, 4)`` of what comes before its map."""
    _, guides, scores, weights, _ = (x.double() for x in regress(volumes, measured, moving))
    # Coordinates in half sides of the volume about its centre keep the equations well scaled.
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
        # No corner goes farther than a few voxels: the linear model does not reach beyond.
        longest = (step.view(3, 4) @ corners.T).norm(dim=0).max() * scale / grid.spacing_mm[0]
        step = step.view(3, 4) * (_LONGEST_STEP / longest.clamp_min(1e-9)).clamp_max(1)
        steps.append(torch.cat([step, torch.zeros(1, 4, dtype=torch.float64)]))
    return torch.linalg.inv(to_scaled) @ torch.stack(steps) @ to_scaled
