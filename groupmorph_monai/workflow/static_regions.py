"""Static tissue next to tissue that slides along it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from scipy.ndimage import label
from torch import Tensor

from ..space.field import VelocityField
from ..space.filters import gaussian_filter
from .evidence import Level
from .precision import INDEPENDENT_SHARE

# Minimum share of a window's weight on voxels with evidence, so that a few voxels do not decide.
_LEAST_NEIGHBOURHOOD_SHARE = 0.1
# Tissue slides along a static hypothesis if it moved by more than this distance, in voxels of the images, and if it is
# at least this share of the tissue. At 2.5 voxels, 32 % or more slide in breaths of 15 to 30 mm, at most 1.2 % in a
# patient who moved as a whole by 3 mm; at 2 voxels, some breaths of 10 mm slide too. Over shorter distances a smooth
# update suffices, and a hypothesis is likelier by chance.
_SLIDING_VOXELS, _LEAST_SLIDING_SHARE = 2.0, 0.05


@dataclass(frozen=True)
class StaticRegions:
    """Replace z with a static hypothesis wherever that is clearly more likely (fusion moves, Lempitsky et al. 2010),
    because a smooth update cannot restore static tissue next to tissue that slides along it.

    Args:
        window_voxels: standard deviation of the Gaussian window over which log likelihoods are compared, in voxels of
            a level.
        nats: difference of log likelihood per voxel and timepoint above which a hypothesis is clearly more likely than
            z, and than unrelated volumes.
        least_share: share of all voxels that must be static; fewer occur by chance.
    """

    window_voxels: float
    nats: float
    least_share: float

    def fuse(
        self,
        z: VelocityField,
        hypotheses: Sequence[VelocityField],
        values: Tensor,
        counts: Tensor,
        level: Level,
        unrelated: float = -math.inf,
    ) -> tuple[VelocityField, bool]:
        """Take each region from z or from one of N hypotheses on the same lattice.

        Args:
            z: ``(1, K, D, *C)``.
            hypotheses: N fields like z.
            values: log likelihood per voxel and timepoint under z and under each hypothesis, ``(1, 1 + N, *S)``.
            counts: 1 where at least two timepoints can be compared, otherwise 0, ``(1, 1, *S)``.
            level: level of the values and z.
            unrelated: value of unrelated volumes, which a hypothesis must exceed as clearly: around a body that moved
                far, air matches neither under z nor under a hypothesis.

        Returns:
            z, and whether any region is static.
        """
        dimensions, has_static = len(z.lattice.size), False
        lattice = (slice(None), slice(None), *[slice(None, None, level.stride)] * dimensions)
        highest, *rest = self._neighbourhood_mean(values, counts)[lattice].split(1, dim=1)
        for hypothesis, value in zip(hypotheses, rest):
            gain = value - highest.clamp_min(unrelated)
            is_static = (gain > self.nats).to(value)
            if not math.isinf(unrelated):
                weight = z.timepoint_count * level.stride**dimensions * counts[lattice]
                is_static *= self._in_evident_region(is_static, weight * gain)
            is_tissue = torch.maximum(value, highest) - unrelated > self.nats
            slides = is_tissue & (_distance_voxels(z, hypothesis, level) > _SLIDING_VOXELS)
            # Likelihoods without values per voxel do not tell where there is tissue, and compare whole volumes.
            is_sliding = math.isinf(unrelated) or slides.sum() >= _LEAST_SLIDING_SHARE * is_tissue.sum()
            if is_static.mean() < self.least_share or not is_sliding:
                continue
            # Smoothed by half a voxel of the lattice, because a discontinuous velocity cannot be integrated.
            share = gaussian_filter(is_static, 0.5).unsqueeze(2)
            blended = level.storage.map(lambda v, h, s=share: v + s * (h - v), z.values, hypothesis.values)
            z = z.with_values(blended)
            highest, has_static = torch.where(is_static > 0, value, highest), True
        return z, has_static

    def _in_evident_region(self, is_static: Tensor, nats: Tensor) -> Tensor:
        """Test which voxels ``(1, 1, *C)`` lie in a connected static region whose gain in log likelihood, the sum of
        ``nats``, exceeds the logarithm of the number of places where such a region may occur by chance: where z is not
        refined yet, some hypothesis is likelier somewhere."""
        regions, number = label(is_static[0, 0].cpu().numpy())
        gains = INDEPENDENT_SHARE * np.bincount(regions.ravel(), nats.flatten().cpu().numpy(), number + 1)
        return torch.from_numpy(gains[regions] > math.log(regions.size)).to(is_static.device)

    def _neighbourhood_mean(self, values: Tensor, counts: Tensor) -> Tensor:
        """Average ``values`` ``(1, N, *S)`` in a Gaussian window over the voxels where ``counts`` ``(1, 1, *S)`` is 1.

        The window is widened where few voxels count, so that regions without evidence take the values next to them.
        """
        width, mean = self.window_voxels, torch.zeros_like(values)
        enough = torch.zeros_like(counts, dtype=torch.bool)
        while not enough.all() and width < 2 * max(values.shape[2:]):
            share = gaussian_filter(counts, width)
            mean = torch.where(enough, mean, gaussian_filter(values, width) / share.clamp_min(1e-6))
            enough, width = enough | (share > _LEAST_NEIGHBOURHOOD_SHARE), 2 * width
        return mean


def _distance_voxels(z: VelocityField, hypothesis: VelocityField, level: Level) -> Tensor:
    """Compute the greatest distance over K between two fields, in voxels of the images, ``(1, 1, *C)``."""
    chunks = level.storage.chunks(z.timepoint_count)
    differences = (hypothesis.values[:, c] - z.values[:, c] for c in chunks)
    return z.lattice.step * reduce(torch.maximum, (part.norm(dim=2).amax(dim=1, keepdim=True) for part in differences))
