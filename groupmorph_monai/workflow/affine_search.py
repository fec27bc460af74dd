"""Exhaustive search for the position of a scan by its edges, over all shifts and a few rotations."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from ..space.filters import gradient, window_mean

# Minimum overlap, as a share of the smaller volume's measured voxels: small overlaps correlate by chance.
_LEAST_OVERLAP = 0.35
# Share of the smaller size along an axis: shifts with less overlap may alias, as they are rejected anyway.
_ALIASED_OVERLAP = 0.3
_MOST_VOXELS = 96**3  # maximum size of a scan in a search, on the coarse grid; of a larger one, the part nearby is used
_LEAST_VARIANCE = 0.1  # minimum variance, as a share of the features' mean variance, see `ShiftCorrelation`


class Agreement(NamedTuple):
    """Agreement of a scan with the other scans of a group.

    Args:
        correlation: correlation of its edges with the mean edges of the other scans.
        confidence: see `affine_alignment.GroupAffine`.
    """

    correlation: float
    confidence: float


class Candidate(NamedTuple):
    """A map ``(4, 4)`` of a scan, optimised from a result of the search, and its `Agreement`."""

    correlation: float
    confidence: float
    map: Tensor


def edge_features(values: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Compute features of edges that do not depend on which side is bright.

    They are the products ``n n^T`` of ``n = grad x / sqrt(|grad x|^2 + m^2)``, where m is the mean of ``|grad x|``. The
    inner product of two volumes' features is ``<n_1, n_2>^2``, as for the normalised gradient fields of Haber and
    Modersitzki (2006).

    Args:
        values: intensities, ``(K, *S)``.
        measured: 1 where they were measured, otherwise 0, ``(K, *S)``.

    Returns:
        Features, ``(K, 6, *S)``, 0 where a neighbour was not measured, and 1 where all were, ``(K, *S)``.
    """
    slope = gradient(values[:, None])[:, 0]
    valid = (window_mean(measured[:, None], 1)[:, 0] > 0.999).float()
    square = slope.square().sum(dim=1)
    mean = (square.sqrt() * valid).flatten(1).sum(dim=1) / valid.flatten(1).sum(dim=1).clamp_min(1)
    normal = slope * (square + mean.square().view(-1, 1, 1, 1) + 1e-12).rsqrt()[:, None]
    rows, columns = torch.triu_indices(3, 3)
    multiplicity = torch.where(rows == columns, 1.0, math.sqrt(2.0)).view(-1, 1, 1, 1)
    return normal[:, rows] * normal[:, columns] * multiplicity * valid[:, None], valid


class ShiftCorrelation:
    """Masked normalised cross-correlation of two volumes' features at all shifts (Padfield 2012, for several features).

    The variance of a volume within the overlap is at least a tenth of its mean variance per voxel, times the voxels of
    the smaller volume, because regions with little structure correlate with anything.

    Args:
        features: features of the first volume, ``(C, *S)``, 0 where not measured.
        measured: 1 where they were measured, otherwise 0, ``(*S)``.
        size: size of the second volume.
    """

    def __init__(self, features: Tensor, measured: Tensor, size: Sequence[int]):
        sums = [math.ceil(n + m - _ALIASED_OVERLAP * min(n, m)) for n, m in zip(measured.shape, size)]
        self.lengths = lengths = [next_fast_len(n, real=True) for n in sums]
        shifts = [torch.arange(length) for length in lengths]
        self.shifts = [torch.where(t < m, t, t - length) for t, m, length in zip(shifts, size, lengths)]
        self.spectra, self.voxels = self._spectra(features, measured), measured.sum()
        self.variance = _variance(features, measured)

    def _spectra(self, features: Tensor, measured: Tensor) -> Tensor:
        squares = features.square().sum(dim=0, keepdim=True)
        return torch.fft.rfftn(torch.cat([measured[None], squares, features]), s=self.lengths)

    def __call__(self, features: Tensor, measured: Tensor) -> Tensor:
        """Compute the correlation with the second volume at each of ``shifts`` t, at which voxel i of the first volume
        lies on voxel ``i + t`` of the second; -1 if the overlap is too small."""
        one, other = self.spectra.conj(), self._spectra(features, measured)
        product = (one[2:] * other[2:]).sum(dim=0, keepdim=True)
        sums = torch.cat([one[:1] * other[:1], product, one[1:] * other[:1], one[:1] * other[1:]])
        overlap, product, *sums = torch.fft.irfftn(sums, s=self.lengths)
        smaller = torch.minimum(self.voxels, measured.sum()).clamp_min(1)
        enough = overlap >= _LEAST_OVERLAP * smaller
        overlap = overlap.clamp_min(1)
        (square_1, *sum_1), (square_2, *sum_2) = sums[: len(sums) // 2], sums[len(sums) // 2 :]
        covariance = product - sum(a * b for a, b in zip(sum_1, sum_2)) / overlap
        variances = [
            (square - sum(a * a for a in sums) / overlap).clamp_min(_LEAST_VARIANCE * float(smaller * variance) + 1e-6)
            for square, sums, variance in (
                (square_1, sum_1, self.variance),
                (square_2, sum_2, _variance(features, measured)),
            )
        ]
        return torch.where(enough, covariance * (variances[0] * variances[1]).rsqrt(), -1.0)

    def within(self, shift: Sequence[int] | Tensor, radius: int) -> Tensor:
        """Mark the shifts within ``radius`` voxels of ``shift`` along each axis."""
        near = [(t - int(s)).abs() <= radius for t, s in zip(self.shifts, shift)]
        return near[0][:, None, None] & near[1][:, None] & near[2]


def _variance(features: Tensor, measured: Tensor) -> Tensor:
    voxels = measured.sum().clamp_min(1)
    return features.square().sum() / voxels - (features.flatten(1).sum(dim=1) / voxels).square().sum()


def cropped(first: Tensor, size: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """Crop a box of voxels to the size of a search, along its longest axes and as close to a point as possible.

    Args:
        first, size: index of the first voxel, and number of voxels along each axis, ``(3,)``.
        middle: the point, ``(3,)``, voxels.

    Returns:
        First voxel and size of the cropped box.
    """
    side = float(size.max())
    while float(size.clamp_max(side).prod()) > _MOST_VOXELS:
        side = math.floor(0.95 * side)
    shorter = size.clamp_max(side)
    return torch.minimum(torch.maximum((middle - shorter / 2).floor(), first), first + size - shorter), shorter


def best_shifts(correlation: ShiftCorrelation, scores: Tensor, number: int) -> list[tuple[float, list[int]]]:
    """Return the highest scores and their shifts, none within 2 voxels of a higher one."""
    scores, best = scores.clone(), []
    for _ in range(number):
        index = torch.unravel_index(scores.argmax(), scores.shape)
        shift = [int(t[i]) for t, i in zip(correlation.shifts, index)]
        best.append((float(scores[index]), shift))
        scores[correlation.within(shift, 2)] = -1
    return best


def search_rotations(degrees: float) -> Tensor:
    """Return the identity and the rotations by ``degrees`` about the 12 axes from the centre of an icosahedron to its
    vertices, ``(13, 3, 3)``."""
    golden = (1 + 5**0.5) / 2
    vertices = [(0.0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    axes = torch.tensor([v[n:] + v[:n] for v in vertices for n in range(3)], dtype=torch.float64)
    x, y, z = (math.radians(degrees) * axes / axes.norm(dim=1, keepdim=True)).T
    zero = torch.zeros_like(x)
    logarithms = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    return torch.cat([torch.eye(3, dtype=torch.float64)[None], torch.linalg.matrix_exp(logarithms)])
