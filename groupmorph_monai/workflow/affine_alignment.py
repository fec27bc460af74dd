"""Affine alignment of K scans from far apart, whatever their contrasts.

The maps lead from a common space, their mean, to each scan, RAS mm. No scan is first, and how one is stored does not
count. Only voxels that the scans have measured do.
"""

import math
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import logm
from torch import Tensor

from ..data.preprocessing.resampling import working_grid
from ..data.series import Frame
from ..data.storage import IN_MEMORY, Storage
from ..space.geometry import Grid
from .affine_scan import CoarseScan, coarse_scan
from .affine_search import ShiftCorrelation, best_shifts, edge_features, search_rotations
from .affine_steps import WINDOW_RADIUS, affine_generators, affine_steps, regress

__all__ = ["AffineAlignment", "GroupAffine", "LEAST_CONFIDENCE", "centred_maps"]

LEAST_CONFIDENCE = 0.25  # see GroupAffine
_SEARCH_DEGREES = 15.0
_LEAST_STEP = 0.02  # voxels
_MOST_TOGETHER = 16  # scans that are aligned with one another, in time that grows with their number's square
_MOST_COMPARED = 6  # of these, with each further scan
_CLEAR_CONFIDENCE = 0.4  # from where on nothing better is searched for


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
       of `regress`.
    2. The confidence of a scan is the correlation of its edges with the mean of the others', less half of the highest
       that it has when it is shifted by more than 3 voxels of the coarse grid. Measured: below 0.15 for scans that show
       different things, up to 0.22 for scans of the same thing that are not aligned, 0.4 to 0.9 where they are.
    3. Scans that are not clearly aligned are searched for: every shift at thirteen rotations. The best few climb, and
       the highest correlation wins. What stays below `LEAST_CONFIDENCE` is not found; its file's coordinates hold.
    4. All climb on a finer grid.
    5. Scans whose files agree with one another, as far as the images can tell, keep their files' coordinates.

    Of more than 16 scans these steps are for as many at most, evenly spread over the series; each of the others is
    then aligned with the nearest 6 of those, in time and memory that do not depend on how many there are.

    Args:
        kind: ``"affine"`` (12 parameters) or ``"rigid"`` (6).
        voxels: along the longest side of the coarse and of the fine grid.
        iterations: most steps on each.
        candidates: of the search that climb.
        storage: of the volumes.
    """

    def __init__(
        self,
        kind: str = "affine",
        voxels: tuple[int, int] = (24, 48),
        iterations: int = 12,
        candidates: int = 3,
        storage: Storage = IN_MEMORY,
    ):
        self.kind, self.voxels, self.iterations, self.candidates = kind, voxels, iterations, candidates
        self.storage = storage

    def __call__(self, frames: Sequence[Frame], masks: Sequence[Frame | None] | None = None) -> AffineAlignment:
        """Align K volumes.

        Args:
            frames: K volumes on any grids.
            masks: of each scan, what is above 0 counts. Where one scan alone has a mask, nothing outside of it counts
                in any comparison with that scan.
        """
        masks = masks or [None] * len(frames)
        if len(frames) <= _MOST_TOGETHER:
            return _Group(self, frames, masks).align()
        every = math.ceil(len(frames) / _MOST_TOGETHER)
        masked = [k for k, mask in enumerate(masks) if mask is not None]
        first = sorted({*range(0, len(frames), every), *(masked if len(masked) == 1 else [])})
        group = _Group(self, [frames[k] for k in first], [masks[k] for k in first])
        together = group.align()
        parts = dict(zip(first, zip(*together)))
        for k in range(len(frames)):
            if k not in parts:
                nearest = sorted(range(len(first)), key=lambda n: abs(first[n] - k))
                parts[k] = group.with_scan(frames[k], masks[k]).join(together, nearest)
            self.storage.release()
        maps, confidence, polarity = (torch.stack(part) for part in zip(*(parts[k] for k in range(len(frames)))))
        return AffineAlignment(centred_maps(maps), confidence, polarity)

    def judge(
        self, maps: Tensor, frames: Sequence[Frame], masks: Sequence[Frame | None] | None = None
    ) -> AffineAlignment:
        """What is to be said of ``maps`` ``(K, 4, 4)`` that another method found; arguments as in `__call__`."""
        return _Group(self, frames, masks or [None] * len(frames)).judged(maps, range(len(frames)))


class _Group:
    """The scans of one alignment."""

    def __init__(self, settings: GroupAffine, frames: Sequence[Frame], masks: Sequence[Frame | None]):
        self.settings, self.grids = settings, [frame.grid for frame in frames]
        self.extent = float(working_grid(self.grids, None).extent_mm.max())
        coarse, fine = (self.extent / n for n in settings.voxels)
        self.fine = [coarse_scan(frame, mask, fine) for frame, mask in zip(frames, masks)]
        self.coarse = [scan.coarsened(coarse) for scan in self.fine]
        masked = [k for k, mask in enumerate(masks) if mask is not None]
        self.masked = masked[0] if len(masked) == 1 else None

    def with_scan(self, frame: Frame, mask: Frame | None) -> "_Group":
        """The same scans and one more."""
        group = copy(self)
        scan = coarse_scan(frame, mask, self.extent / self.settings.voxels[1])
        group.grids, group.fine = [*self.grids, frame.grid], [*self.fine, scan]
        group.coarse = [*self.coarse, scan.coarsened(self.extent / self.settings.voxels[0])]
        return group

    def join(self, others: AffineAlignment, nearest: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Map, confidence and polarity of the last scan, from the alignment of the others, which stay. It is compared
        with a few that were placed, those ``nearest`` in time."""
        k, kind = len(others.maps), self.settings.kind
        placed = [j for j in nearest if others.confidence[j] >= LEAST_CONFIDENCE] or nearest
        group = sorted(placed[:_MOST_COMPARED])
        # Files that agree with one another have one map, from which this scan's file may not differ either.
        same = [sum(torch.equal(m, other) for other in others.maps) for m in others.maps]
        common = others.maps[int(np.argmax(same))] if max(same) > 1 else torch.eye(4, dtype=torch.float64)
        header = torch.cat([others.maps, common[None]])
        maps = self.climb(header, 0, "rigid", [*group, k], alone=k)
        if self.agreement(maps, k, group)[1] < _CLEAR_CONFIDENCE:
            _, confidence, matrix = max(self.candidates(maps, k, group), key=lambda candidate: candidate[0])
            maps = torch.cat([others.maps, (matrix if confidence >= LEAST_CONFIDENCE else common)[None]])
        if self.agreement(maps, k, group)[1] >= LEAST_CONFIDENCE:
            for level in (0, 1):
                maps = self.climb(maps, level, kind, [*group, k], alone=k)
            if max(same) > 1 and not self.worse(maps, header, [*group, k], [k]):
                maps = header
        confidence = torch.tensor(self.agreement(maps, k, group)[1])
        volumes = self.on(self.fine, self.grid(maps, 1, group), maps, [*group, k])
        sign = (regress(*volumes, [len(group)]).correlation[0, :-1] * others.polarity[group]).sum()
        return maps[k], confidence, torch.where(sign < 0, -1.0, 1.0)

    def worse(self, maps: Tensor, others: Tensor, chosen: Sequence[int], scans: Sequence[int]) -> list[int]:
        """Which of the ``scans`` lose more likelihood by ``others`` in place of ``maps`` than the parameters cost
        (Bayesian information criterion, one independent voxel a window)."""
        grid, moving = self.grid(maps, 1, chosen), [chosen.index(k) for k in scans]
        ours, theirs = (regress(*self.on(self.fine, grid, m, chosen), moving).value for m in (maps, others))
        compared = (ours != 0) & (theirs != 0)
        voxels = compared.flatten(1).sum(dim=1) / (2 * WINDOW_RADIUS + 1) ** 3
        gain = ((ours - theirs) * compared).flatten(1).sum(dim=1) / (2 * WINDOW_RADIUS + 1) ** 3
        cost = len(affine_generators(self.settings.kind)) / 2 * voxels.clamp_min(1).log()
        return [k for n, k in enumerate(scans) if gain[n] > cost[n]]

    def grid(self, maps: Tensor, level: int, chosen: Sequence[int]) -> Grid:
        """Where the chosen scans lie in the common space."""
        middle = working_grid(
            [Grid(self.grids[k].shape, maps[k].inverse() @ self.grids[k].affine) for k in chosen], None
        )
        return middle.at_spacing(torch.full((3,), self.extent / self.settings.voxels[level], dtype=torch.float64))

    def on(self, scans: Sequence[CoarseScan], grid: Grid, maps: Tensor, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Intensities and where they were measured, each ``(len(chosen), *S)``."""
        return self.together({k: scans[k].on(grid, maps[k]) for k in chosen})

    def together(self, volumes: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """As `on` returns, from each scan's own."""
        values, measured = (torch.stack(x) for x in zip(*volumes.values()))
        if self.masked in volumes:
            measured = measured * volumes[self.masked][1]
        return values, measured

    def climb(self, maps: Tensor, level: int, kind: str, chosen: Sequence[int], alone: int | None = None) -> Tensor:
        """The maps after steps of all the chosen, whose mean does not move, or of one ``alone``."""
        scans, grid = (self.coarse, self.fine)[level], self.grid(maps, level, [k for k in chosen if k != alone])
        moving = range(len(chosen)) if alone is None else [chosen.index(alone)]
        maps, corners = maps.clone(), _corners(grid)
        volumes = {k: scans[k].on(grid, maps[k]) for k in chosen}
        for _ in range(self.settings.iterations):
            steps = affine_steps(*self.together(volumes), grid, kind, moving)
            if alone is None:  # each aims at where the others are, and these move too
                steps = (steps - steps.mean(dim=0)) * (len(chosen) - 1) / len(chosen)
            for n, move in zip(moving, torch.linalg.matrix_exp(steps)):
                k = chosen[n]
                maps[k] = maps[k] @ move
                volumes[k] = scans[k].on(grid, maps[k])
            moved = (steps @ corners)[:, :3].norm(dim=1).max()
            if moved < _LEAST_STEP * grid.spacing_mm[0]:
                break
        return maps

    def features(self, maps: Tensor, grid: Grid, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean over the chosen scans of their edges, and where any has seen some."""
        edges, known = edge_features(*self.on(self.coarse, grid, maps, chosen))
        number = known.sum(dim=0)
        return edges.sum(dim=0) / number.clamp_min(1), (number > 0).float()

    def whole(self, k: int, matrix: Tensor, grid: Grid) -> tuple[Grid, Tensor]:
        """All of scan k under a map, on the lattice of ``grid``; and its first voxel's indices there, ``(3,)``."""
        box = self.coarse[k].grid
        into = torch.linalg.inv(matrix @ grid.affine) @ box.affine
        half = into[:3, :3].abs() @ torch.tensor(box.shape).double() / 2
        centre = into[:3, :3] @ ((torch.tensor(box.shape).double() - 1) / 2) + into[:3, 3]
        first = (centre - half).floor()
        affine = grid.affine.clone()
        affine[:3, 3] += affine[:3, :3] @ first
        return Grid((2 * half).ceil().int() + 2, affine), first.int()

    def agreement(self, maps: Tensor, k: int, group: Sequence[int]) -> tuple[float, float]:
        """Of scan ``k`` beside the others of a group: the correlation of its edges with their mean, and the confidence,
        see `GroupAffine`."""
        others = [j for j in group if j != k]
        grid = self.grid(maps, 0, others)
        own, first = self.whole(k, maps[k], grid)
        correlation = ShiftCorrelation(*self.features(maps, grid, others), own.shape)
        scores = correlation(*self.features(maps, own, [k]))
        near, elsewhere = correlation.within(-first, 1), ~correlation.within(-first, 3)
        here = float(scores[near].max().clamp_min(0)) if near.any() else 0.0
        return here, here - 0.5 * float(scores[elsewhere].max().clamp_min(0))

    def align(self) -> AffineAlignment:
        """The steps that `GroupAffine` lists."""
        everyone = list(range(len(self.grids)))
        headers = torch.eye(4, dtype=torch.float64).repeat(len(everyone), 1, 1)
        maps = self.climb(headers, 0, "rigid", everyone)
        placed = [k for k in everyone if self.agreement(maps, k, everyone)[1] >= _CLEAR_CONFIDENCE]
        if len(placed) < len(everyone):
            maps, placed = self.search(maps, placed)
        if len(placed) > 1:
            for level in (0, 1):
                maps = self.climb(maps, level, self.settings.kind, placed)
            maps = self.keep_headers(maps, placed)
        else:
            maps, placed = headers, everyone
        return self.judged(maps, placed)

    def judged(self, maps: Tensor, placed: Sequence[int]) -> AffineAlignment:
        """The maps, centred, with the confidence of each scan among those that are ``placed``."""
        confidence = torch.tensor([self.agreement(maps, k, placed)[1] for k in range(len(maps))])
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
                    _, confidence, matrix = max(candidates, key=lambda candidate: candidate[0])
                    if confidence >= LEAST_CONFIDENCE:
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

    def candidates(self, maps: Tensor, k: int, group: list[int]) -> list[tuple[float, float, Tensor]]:
        """Agreement and map of one scan after a climb from the likeliest places of a wide search, and from where it is,
        until one is clear."""
        grid, box = self.grid(maps, 0, group), self.coarse[k].grid
        template, found = self.features(maps, grid, group), []
        for rotation in search_rotations(_SEARCH_DEGREES):
            turned = maps.clone()
            turned[k] = torch.eye(4, dtype=torch.float64)
            turned[k, :3, :3], turned[k, :3, 3] = rotation, box.centre - rotation @ box.centre
            own, first = self.whole(k, turned[k], grid)
            correlation = ShiftCorrelation(*template, own.shape)
            for score, shift in best_shifts(correlation, correlation(*self.features(turned, own, [k])), 2):
                move = torch.eye(4, dtype=torch.float64)
                move[:3, 3] = grid.affine[:3, :3] @ (torch.tensor(shift) + first).double()
                found.append((score, turned[k] @ move))
        found.sort(key=lambda pair: pair[0], reverse=True)
        result = []
        for matrix in [*(matrix for _, matrix in found[: self.settings.candidates]), maps[k]]:
            start = maps.clone()
            start[k] = matrix
            climbed = self.climb(start, 0, "rigid", [*group, k], alone=k)
            result.append((*self.agreement(climbed, k, group), climbed[k]))
            if result[-1][1] >= _CLEAR_CONFIDENCE:
                break
        return result

    def keep_headers(self, maps: Tensor, placed: list[int]) -> Tensor:
        """One map for all scans whose files agree with one another, as far as the images can tell: those whose
        likelihood does not fall by more than what their parameters cost, see `worse`. The map is the median of the
        maps found, and that of all that was not found."""
        logarithms = _logarithms(maps[placed])
        middle = logarithms.mean(dim=0)
        grid = self.grid(maps, 1, placed)
        places = _corners(grid)
        for _ in range(50):  # Weiszfeld's steps
            distances = ((logarithms - middle) @ places).norm(dim=1).mean(dim=1)
            weights = 1 / distances.clamp_min(1e-3)
            middle = (weights.view(-1, 1, 1) * logarithms).sum(dim=0) / weights.sum()
        common = torch.linalg.matrix_exp(middle)
        maps = torch.stack([m if k in placed else common for k, m in enumerate(maps)])
        near = ((logarithms - middle) @ places).norm(dim=1).mean(dim=1) < 2 * grid.spacing_mm[0]
        kept = [k for k, close in zip(placed, near) if close]
        while len(kept) > 1:
            together = maps.clone()
            together[kept] = common
            worse = self.worse(maps, together, placed, kept)
            if not worse:
                return together
            kept = [k for k in kept if k not in worse]
        return maps

    def polarity(self, maps: Tensor) -> Tensor:
        """The signs of the first eigenvector of the scans' mean local correlations."""
        everyone = range(len(maps))
        regression = regress(*self.on(self.fine, self.grid(maps, 1, everyone), maps, everyone), everyone)
        first = torch.linalg.eigh(regression.correlation + regression.correlation.T).eigenvectors[:, -1]
        majority = (first * torch.tensor([self.structure(k) for k in everyone])).sum()
        return torch.where(first * majority < 0, -1.0, 1.0)


def _corners(grid: Grid) -> Tensor:
    """``(4, 8)``, mm, with 1 below."""
    return torch.cat([grid.corners(), torch.ones(8, 1)], dim=1).T
