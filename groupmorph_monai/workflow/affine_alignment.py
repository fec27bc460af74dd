"""Affine alignment of K scans from far apart, whatever their contrasts.

The maps lead from a common space, their mean, to each scan, RAS mm. No scan is first, and how one is stored does not
count. Only voxels that the scans have measured do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import logm
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from ..data.readers import Frame
from ..data.resampling import resample, working_grid
from ..space.geometry import AffineTransform, Grid, interpolate
from ..space.lattice import gradient, window_mean
from .affine_search import ShiftCorrelation, best_shifts, edge_features, search_rotations

__all__ = ["AffineAlignment", "GroupAffine", "LEAST_CONFIDENCE", "affine_generators", "centred_maps"]

LEAST_CONFIDENCE = 0.15  # see GroupAffine
_RADIUS = 2  # voxels, of the windows of the local correlation
_NOISE = 0.02**2  # variance of intensities in [0, 1] that shows nothing
_LONGEST_STEP = 3.0  # voxels
_SEARCH_DEGREES = 15.0


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


def _logarithms(maps: Tensor) -> Tensor:
    return torch.stack([torch.from_numpy(np.real(logm(m.numpy()))) for m in maps])


def centred_maps(maps: Tensor) -> Tensor:
    """Move the common space of ``(K, 4, 4)`` maps to where the mean of their logarithms is 0, their Karcher mean."""
    if all(torch.equal(m, maps[0]) for m in maps):
        return torch.eye(4, dtype=torch.float64).repeat(len(maps), 1, 1)
    for _ in range(50):
        mean = _logarithms(maps).mean(dim=0)
        maps = maps @ torch.linalg.matrix_exp(-mean)
        if mean.abs().max() < 1e-11:
            break
    return maps


@dataclass(frozen=True, eq=False)
class _Scan:
    """A scan, coarsened: ``content`` ``(2, *S)``, the intensities in [0, 1] and the share of each voxel that was
    measured."""

    content: Tensor
    grid: Grid

    def on(self, grid: Grid, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Intensities and, 1 or 0, whether they were measured, each ``(*S)``."""
        points = AffineTransform(matrix)(grid.points())
        values, measured = interpolate(self.content, self.grid.voxels(points)).unbind(-1)
        return values, (self.grid.contains(points) & (measured > 0.5)).float()

    def coarsened(self, spacing_mm: float) -> "_Scan":
        """Means over blocks that are at most ``spacing_mm`` long."""
        factor = (spacing_mm / self.grid.spacing_mm + 1e-6).int().clamp_min(1)
        padding = [p for n, f in zip(self.grid.shape[::-1], factor.tolist()[::-1]) for p in (0, -n % f)]
        values, measured = self.content
        sums = avg_pool3d(pad(torch.stack([values * measured, measured]), padding)[None], factor.tolist())[0]
        affine = self.grid.affine.clone()
        affine[:3, 3] += affine[:3, :3] @ ((factor.double() - 1) / 2)
        affine[:3, :3] *= factor
        content = torch.stack([sums[0] / sums[1].clamp_min(1e-6), sums[1]])
        return _Scan(content, Grid(content.shape[1:], affine))


def _scan(frame: Frame, mask: Frame | None, spacing_mm: float) -> _Scan:
    """A file's volume, stored along right, anterior and superior, its 1st and 99.5th percentiles at 0 and 1."""
    grid = frame.grid.canonical()
    # Steps of the file's voxels along each axis of the grid: one of them 1 or -1, the others 0.
    steps = (torch.linalg.inv(frame.grid.affine) @ grid.affine)[:3, :3].round().int()
    axes = steps.abs().argmax(dim=0).tolist()
    backwards = [d + 1 for d, axis in enumerate(axes) if steps[axis, d] < 0]
    measured = np.ones(frame.data.shape, dtype=bool) if frame.valid is None else frame.valid
    if mask is not None:
        inside, covered = resample(mask, frame.grid, nearest=True)
        measured = measured & covered & (inside > 0)
    both = [torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)) for x in (frame.data, measured)]
    content = torch.stack(both).permute(0, *[axis + 1 for axis in axes]).flip(backwards)
    scan = _Scan(content, grid).coarsened(spacing_mm)
    values, measured = scan.content
    known = values[measured > 0.5] if (measured > 0.5).any() else values
    low, high = np.percentile(known.numpy(), (1, 99.5))
    scaled = ((values - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1)
    return _Scan(torch.stack([scaled, measured]), scan.grid)


class _Regression(NamedTuple):
    """As `Likelihood.linearise` returns, each ``(K, *S)``, 0 where nothing can be compared; and the ``correlation`` of
    each volume with each other, a mean over the windows, ``(K, K)``."""

    value: Tensor
    guide: Tensor
    score: Tensor
    weight: Tensor
    correlation: Tensor


def _regress(volumes: Tensor, measured: Tensor, moving: Sequence[int]) -> _Regression:
    """Predict volumes from the others, in the window around every voxel.

    The prediction is the sum of the others, each brought to zero mean and unit variance and multiplied by its
    correlation with the volume there, so that it may be of either sign. The volume is a gain times it plus noise, both
    by least squares, as for `LocalCorrelation`.

    Args:
        volumes, measured: ``(K, *S)``.
        moving: of which volumes.
    """

    def mean(x: Tensor) -> Tensor:
        return window_mean(x[None], _RADIUS)[0]

    share = mean(measured).clamp_min(1e-3)
    middle = mean(volumes * measured) / share
    variance = (mean(volumes.square() * measured) / share - middle.square()).clamp_min(0) + _NOISE
    normal = (volumes - middle) * variance.rsqrt() * measured
    parts, correlations = [], []
    for k in moving:
        others = [j for j in range(len(volumes)) if j != k]
        agreement = mean(normal[others] * normal[k]) / mean(measured[others] * measured[k]).clamp_min(1e-3)
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
        together = (counts * agreement).flatten(1).sum(dim=1) / counts.sum().clamp_min(1)
        correlations.append(torch.cat([together[:k], torch.ones(1), together[k:]]))
    return _Regression(*torch.stack(parts, dim=1), torch.stack(correlations))


def _steps(volumes: Tensor, measured: Tensor, grid: Grid, kind: str, moving: Sequence[int]) -> Tensor:
    """One Gauss-Newton step of each moving volume, the logarithm ``(4, 4)`` of what comes before its map."""
    _, guides, scores, weights, _ = (x.double() for x in _regress(volumes, measured, moving))
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


class AffineAlignment(NamedTuple):
    """What `GroupAffine` returns.

    ``maps`` ``(K, 4, 4)``, float64, lead from the common space to each scan, RAS mm. ``confidence`` ``(K,)`` is below
    `LEAST_CONFIDENCE` where no alignment was found. ``polarity`` ``(K,)`` is -1 for scans that are dark where most are
    bright, 1 for the others.
    """

    maps: Tensor
    confidence: Tensor
    polarity: Tensor


class GroupAffine:
    """Align K scans by affine or rigid maps.

    1. From the files' own coordinates all maps climb together, by Gauss-Newton steps on a coarse grid, the likelihood
       of `_regress`.
    2. The confidence of a scan is the correlation of its edges with the mean of the others', less the highest that it
       has when it is shifted by more than 3 voxels: about 0 for scans that do not belong together, 0.2 to 0.9 for such
       that do and are aligned.
    3. Scans below `LEAST_CONFIDENCE` are searched for: every shift at thirteen rotations, the best few of which climb.
       What is not found stays where its file puts it.
    4. All climb on a finer grid.
    5. Scans whose files agree with one another, as far as the images can tell, keep their files' coordinates.

    Args:
        kind: ``"affine"`` (12 parameters) or ``"rigid"`` (6).
        voxels: along the longest side of the coarse and of the fine grid.
        iterations: most steps on each.
        candidates: of the search that climb.
    """

    def __init__(
        self, kind: str = "affine", voxels: tuple[int, int] = (24, 48), iterations: int = 12, candidates: int = 3
    ):
        self.kind, self.voxels, self.iterations, self.candidates = kind, voxels, iterations, candidates

    def __call__(self, frames: Sequence[Frame], masks: Sequence[Frame | None] | None = None) -> AffineAlignment:
        """
        Args:
            frames: K volumes on any grids.
            masks: of each scan, what is above 0 counts. Where one scan alone has a mask, nothing outside of it counts
                in any comparison with that scan.
        """
        return _Group(self, frames, masks or [None] * len(frames)).align()


class _Group:
    """The scans of one alignment."""

    def __init__(self, settings: GroupAffine, frames: Sequence[Frame], masks: Sequence[Frame | None]):
        self.settings, self.grids = settings, [frame.grid for frame in frames]
        self.extent = float(working_grid(self.grids, None).extent_mm.max())
        coarse, fine = (self.extent / n for n in settings.voxels)
        self.fine = [_scan(frame, mask, fine) for frame, mask in zip(frames, masks)]
        self.coarse = [scan.coarsened(coarse) for scan in self.fine]
        masked = [k for k, mask in enumerate(masks) if mask is not None]
        self.masked = masked[0] if len(masked) == 1 else None

    def grid(self, maps: Tensor, level: int, chosen: Sequence[int]) -> Grid:
        middle = working_grid([self.grids[k] for k in chosen], None, None, maps[chosen])
        return middle.at_spacing(torch.full((3,), self.extent / self.settings.voxels[level], dtype=torch.float64))

    def on(self, scans: Sequence[_Scan], grid: Grid, maps: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Intensities and where they were measured, each ``(len(chosen), *S)``."""
        values, measured = (torch.stack(x) for x in zip(*(scans[k].on(grid, maps[k]) for k in chosen)))
        if self.masked in chosen:
            measured = measured * measured[list(chosen).index(self.masked)]
        return values, measured

    def climb(self, maps: Tensor, level: int, kind: str, chosen: Sequence[int], alone: int | None = None) -> Tensor:
        """The maps after steps of all the chosen, whose mean does not move, or of one ``alone``."""
        scans, grid = (self.coarse, self.fine)[level], self.grid(maps, level, [k for k in chosen if k != alone])
        moving = range(len(chosen)) if alone is None else [chosen.index(alone)]
        maps = maps.clone()
        for _ in range(self.settings.iterations):
            steps = _steps(*self.on(scans, grid, maps, chosen), grid, kind, moving)
            if alone is None:  # each aims at where the others are, and these move too
                steps = (steps - steps.mean(dim=0)) * (len(chosen) - 1) / len(chosen)
            for n, move in zip(moving, torch.linalg.matrix_exp(steps)):
                maps[chosen[n]] = maps[chosen[n]] @ move
            if steps.abs().max() < 1e-5:
                break
        return maps

    def confidence(self, maps: Tensor, k: int, group: Sequence[int]) -> float:
        """See `GroupAffine`; of scan ``k`` beside the others of a group."""
        group = [j for j in group if j != k]
        grid = self.grid(maps, 0, group)
        features, known = edge_features(*self.on(self.coarse, grid, maps, [*group, k]))
        correlation = ShiftCorrelation(*_mean_features(features[:-1], known[:-1]), grid.shape)
        scores = correlation(features[-1], known[-1])
        near, elsewhere = correlation.within((0, 0, 0), 1), ~correlation.within((0, 0, 0), 3)
        return float(scores[near].max().clamp_min(0) - scores[elsewhere].max().clamp_min(0))

    def align(self) -> AffineAlignment:
        everyone = list(range(len(self.grids)))
        headers = torch.eye(4, dtype=torch.float64).repeat(len(everyone), 1, 1)
        maps = self.climb(headers, 0, "rigid", everyone)
        placed = [k for k in everyone if self.confidence(maps, k, everyone) >= LEAST_CONFIDENCE]
        if len(placed) < len(everyone):
            maps, placed = self.search(maps, placed)
        if len(placed) > 1:
            for level in (0, 1):
                maps = self.climb(maps, level, self.settings.kind, placed)
            maps = self.keep_headers(maps, placed)
        else:
            maps, placed = headers, everyone
        confidence = torch.tensor([self.confidence(maps, k, placed) for k in everyone])
        return AffineAlignment(centred_maps(maps), confidence, self.polarity(maps))

    def search(self, maps: Tensor, placed: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Place further scans beside those that are placed, or where none are beside one that shows much."""
        everyone = range(len(maps))
        first = sorted(everyone, key=lambda k: (k == self.masked, self.structure(k)), reverse=True)
        starts = [[k] for k in first]
        if len(placed) > 1 and (self.masked is None or self.masked in placed):
            starts = [list(placed)]
        for group in starts:
            pending = [k for k in everyone if k not in group]
            while pending:
                found = {}
                for k in pending:
                    candidates = self.candidates(maps, k, group)
                    best, matrix = max(candidates, key=lambda pair: pair[0])
                    if best >= LEAST_CONFIDENCE:
                        found[k] = matrix
                maps = torch.stack([found.get(k, m) for k, m in enumerate(maps)])
                group, pending = sorted([*group, *found]), [k for k in pending if k not in found]
                if not found:
                    break
            if len(group) > 1:
                break
        return maps, group

    def structure(self, k: int) -> float:
        """How much a scan shows, whatever its intensities."""
        values, measured = self.coarse[k].content[:, None]
        return float(edge_features(values, (measured > 0.5).float())[0].square().sum())

    def candidates(self, maps: Tensor, k: int, group: list[int]) -> list[tuple[float, Tensor]]:
        """Confidence and map of what a wide search finds for one scan, after a climb from there."""
        grid, scan = self.grid(maps, 0, group), self.coarse[k]
        box = scan.grid
        axes, centre = grid.affine[:3, :3], box.centre
        # A grid with the same axes about the scan's centre, which holds the scan.
        half = (torch.linalg.inv(axes) @ box.affine[:3, :3]).abs() @ torch.tensor(box.shape).double() / 2
        size = (2 * half).ceil().int()
        affine = grid.affine.clone()
        affine[:3, 3] = centre - axes @ ((size.double() - 1) / 2)
        own = Grid(tuple(size.tolist()), affine)
        features, known = edge_features(*self.on(self.coarse, grid, maps, group))
        correlation = ShiftCorrelation(*_mean_features(features, known), own.shape)
        found = []
        for rotation in search_rotations(_SEARCH_DEGREES):
            turn = torch.eye(4, dtype=torch.float64)
            turn[:3, :3], turn[:3, 3] = rotation, centre - rotation @ centre
            features, known = edge_features(*(x[None] for x in scan.on(own, turn)))
            scores = correlation(features[0], known[0])
            for score, shift in best_shifts(correlation, scores, 2):
                move = torch.eye(4, dtype=torch.float64)
                move[:3, 3] = affine[:3, 3] + axes @ torch.tensor(shift).double() - grid.affine[:3, 3]
                found.append((score, turn @ move))
        found.sort(key=lambda pair: pair[0], reverse=True)
        result = []
        for _, matrix in found[: self.settings.candidates]:
            start = maps.clone()
            start[k] = matrix
            climbed = self.climb(start, 0, "rigid", [*group, k], alone=k)
            result.append((self.confidence(climbed, k, group), climbed[k]))
        return result

    def keep_headers(self, maps: Tensor, placed: list[int]) -> Tensor:
        """One map for all scans whose files agree with one another, as far as the images can tell: those whose
        likelihood does not fall by more than what their parameters cost (Bayesian information criterion, one
        independent voxel a window). The map is the median of the maps found, and that of all that was not found."""
        logarithms = _logarithms(maps[placed])
        middle = logarithms.mean(dim=0)
        grid = self.grid(maps, 1, placed)
        corners = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3).double() * grid.extent_mm
        places = torch.cat([corners + grid.centre, torch.ones(8, 1, dtype=torch.float64)], dim=1).T
        for _ in range(50):  # Weiszfeld's steps
            distances = ((logarithms - middle) @ places).norm(dim=1).mean(dim=1)
            weights = 1 / distances.clamp_min(1e-3)
            middle = (weights.view(-1, 1, 1) * logarithms).sum(dim=0) / weights.sum()
        common = torch.linalg.matrix_exp(middle)
        maps = torch.stack([m if k in placed else common for k, m in enumerate(maps)])
        near = ((logarithms - middle) @ places).norm(dim=1).mean(dim=1) < 2 * grid.spacing_mm[0]
        kept = [k for k, close in zip(placed, near) if close]
        values = _regress(*self.on(self.fine, grid, maps, placed), range(len(placed))).value
        while len(kept) > 1:
            together = maps.clone()
            together[kept] = common
            others = _regress(*self.on(self.fine, grid, together, placed), range(len(placed))).value
            compared = (values != 0) & (others != 0)
            voxels = compared.flatten(1).sum(dim=1) / (2 * _RADIUS + 1) ** 3
            gain = ((values - others) * compared).flatten(1).sum(dim=1) / (2 * _RADIUS + 1) ** 3
            cost = len(affine_generators(self.settings.kind)) / 2 * voxels.clamp_min(1).log()
            worse = [k for k in kept if gain[placed.index(k)] > cost[placed.index(k)]]
            if not worse:
                return together
            kept = [k for k in kept if k not in worse]
        return maps

    def polarity(self, maps: Tensor) -> Tensor:
        """The signs of the first eigenvector of the scans' mean local correlations."""
        everyone = range(len(maps))
        regression = _regress(*self.on(self.fine, self.grid(maps, 1, everyone), maps, everyone), everyone)
        first = torch.linalg.eigh(regression.correlation + regression.correlation.T).eigenvectors[:, -1]
        majority = (first * torch.tensor([self.structure(k) for k in everyone])).sum()
        return torch.where(first * majority < 0, -1.0, 1.0)


def _mean_features(features: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    number = known.sum(dim=0)
    return features.sum(dim=0) / number.clamp_min(1), (number > 0).float()
