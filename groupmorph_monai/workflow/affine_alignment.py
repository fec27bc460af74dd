"""Affine alignment of K scans with large displacements and any contrasts.

The maps lead from a common space, their mean, to each scan, RAS mm. The scans are treated symmetrically, regardless
of the orientation in which they are stored, and only measured voxels count.
"""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.preprocessing.resampling import working_grid
from ..data.series import Frame
from ..data.storage import IN_MEMORY, Storage
from ..space.grid import Grid
from .affine_scan import CoarseScan, check_memory, coarse_and_fine
from .affine_search import Agreement, Candidate, ShiftCorrelation, best_shifts, cropped, edge_features, search_rotations
from .affine_steps import WINDOW_RADIUS, affine_generators, affine_steps, centred_maps, logarithms, regress

# Confidence of a scan, see GroupAffine: below 0.15 for unrelated scans, up to 0.22 for unaligned scans of one object,
# up to 0.9 for aligned scans. From the first of these on a scan counts as aligned; from the second on, clearly.
LEAST_CONFIDENCE, CLEAR_CONFIDENCE = 0.25, 0.4
_SEARCH_DEGREES = 15.0  # angle of the search rotations
_CANDIDATES = 3  # number of candidates of the search that are optimised
_LEAST_STEP = 0.02  # voxels; the optimisation has converged when no corner of the grid moves farther
_WEISZFELD_STEPS = 50  # number of steps of Weiszfeld's algorithm to the geometric median of maps
_MOST_TOGETHER = 16  # maximum number of scans aligned jointly, in time quadratic in their number
_MOST_COMPARED = 6  # number of jointly aligned scans with which each further scan is compared


class AffineAlignment(NamedTuple):
    """Result of `GroupAffine`.

    Args:
        maps: affine maps from the common space to each scan, RAS mm, ``(K, 4, 4)``, float64.
        confidence: confidence of each scan, below `LEAST_CONFIDENCE` where the alignment failed, ``(K,)``.
        polarity: -1 for scans that are dark where most are bright, otherwise 1, ``(K,)``.
    """

    maps: Tensor
    confidence: Tensor
    polarity: Tensor


@dataclass(frozen=True)
class AffineSchedule:
    """Grids and steps of an affine alignment.

    Args:
        voxels: number of voxels along the longest side of the coarse and the fine grid.
        iterations: maximum number of steps on each grid.
    """

    voxels: Sequence[int] = (24, 48)
    iterations: int = 12


def jointly_aligned(scans: int) -> range:
    """List the scans that are aligned jointly, evenly spread over the series."""
    return range(0, scans, math.ceil(scans / _MOST_TOGETHER))


class GroupAffine:
    """Align K scans by affine or rigid maps.

    1. Starting from the files' coordinates, all maps are optimised jointly on a coarse grid, by Gauss-Newton steps on
       the likelihood of `regress`.
    2. The confidence of a scan is the correlation of its edges with the mean edges of the other scans, minus half of
       the highest correlation at shifts of more than 3 voxels of the coarse grid.
    3. Scans that are not clearly aligned are searched for, at all shifts and thirteen rotations. The best candidates
       are optimised, and the one with the highest correlation is used. A scan that remains below `LEAST_CONFIDENCE`
       keeps its file's coordinates.
    4. All maps are optimised on a finer grid.
    5. Scans whose files are consistent with each other, as far as the images show, keep their files' coordinates.

    With more than 16 scans, these steps are applied to at most 16, evenly spread over the series. Each remaining scan
    is then aligned with the nearest 6 of them, in time and memory independent of the number of scans.

    Args:
        kind: ``"affine"`` (12 parameters) or ``"rigid"`` (6).
        schedule: grids and steps; None for the defaults.
        storage: where the volumes are kept.
    """

    def __init__(self, kind: str = "affine", schedule: AffineSchedule | None = None, storage: Storage = IN_MEMORY):
        self.kind, self.schedule, self.storage = kind, schedule or AffineSchedule(), storage

    def __call__(self, frames: Sequence[Frame], masks: Sequence[Frame | None] | None = None) -> AffineAlignment:
        """Align K volumes.

        Args:
            frames: K volumes on any grids.
            masks: a mask for each scan, or None; voxels where it is above 0 count. If only one scan has a mask, it
                applies to all comparisons with that scan.
        """
        masks = masks or [None] * len(frames)
        if len(frames) <= _MOST_TOGETHER:
            return _Group(self, frames, masks).align()
        masked = [k for k, mask in enumerate(masks) if mask is not None]
        joint = sorted({*jointly_aligned(len(frames)), *(masked if len(masked) == 1 else [])})
        group = _Group(self, [frames[k] for k in joint], [masks[k] for k in joint])
        alignment = group.align()
        parts = dict(zip(joint, zip(*alignment)))
        for k in range(len(frames)):
            if k not in parts:
                nearest = sorted(range(len(joint)), key=lambda n: abs(joint[n] - k))
                parts[k] = group.with_scan(frames[k], masks[k]).align_last(alignment, nearest)
            self.storage.release()
        maps, confidence, polarity = (torch.stack(part) for part in zip(*(parts[k] for k in range(len(frames)))))
        return AffineAlignment(centred_maps(maps), confidence, polarity)

    def assess(
        self, maps: Tensor, frames: Sequence[Frame], masks: Sequence[Frame | None] | None = None
    ) -> AffineAlignment:
        """Centre the maps of another method, and compute confidence and polarity.

        Args:
            maps: ``(K, 4, 4)``, from a common space to each scan, RAS mm.
            frames, masks: as for a call.
        """
        return _Group(self, frames, masks or [None] * len(frames)).assessed(maps, range(len(frames)))


class _Group:
    """Scans that are aligned jointly."""

    def __init__(self, settings: GroupAffine, frames: Sequence[Frame], masks: Sequence[Frame | None]):
        self.settings, self.grids = settings, [frame.grid for frame in frames]
        extent_mm = working_grid(self.grids, None).extent_mm
        self.spacings_mm = coarse, fine = [float(extent_mm.max()) / n for n in settings.schedule.voxels]
        check_memory(len(frames), extent_mm / min(coarse, fine), settings.schedule.voxels)
        self.coarse, self.fine = zip(*(coarse_and_fine(*scan, self.spacings_mm) for scan in zip(frames, masks)))
        masked = [k for k, scan in enumerate(self.fine) if scan.masked]
        self.masked = masked[0] if len(masked) == 1 else None

    def with_scan(self, frame: Frame, mask: Frame | None) -> "_Group":
        """Return a group with one more scan, the last."""
        group, (coarse, fine) = copy(self), coarse_and_fine(frame, mask, self.spacings_mm)
        group.grids = [*self.grids, frame.grid]
        group.coarse, group.fine = (*self.coarse, coarse), (*self.fine, fine)
        return group

    def align_last(self, alignment: AffineAlignment, nearest: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Align the last scan with some of the other scans, whose ``alignment`` is fixed.

        Args:
            alignment: alignment of the other scans.
            nearest: indices of the other scans by increasing distance in time.

        Returns:
            Map ``(4, 4)``, confidence and polarity of the last scan.
        """
        k, kind = len(alignment.maps), self.settings.kind
        placed = [j for j in nearest if alignment.confidence[j] >= LEAST_CONFIDENCE] or nearest
        group = sorted(placed[:_MOST_COMPARED])
        # Scans with consistent files share one map, which may hold for this scan's file, too.
        counts = [sum(torch.equal(m, n) for n in alignment.maps) for m in alignment.maps]
        common = alignment.maps[int(np.argmax(counts))] if max(counts) > 1 else torch.eye(4, dtype=torch.float64)
        header = torch.cat([alignment.maps, common[None]])
        maps = self.optimise(header, 0, "rigid", [*group, k], only=k)
        if self.agreement(maps, k, group).confidence < CLEAR_CONFIDENCE:
            best = max(self.candidates(maps, k, group), key=lambda candidate: candidate.correlation)
            maps = torch.cat([alignment.maps, (best.map if best.confidence >= LEAST_CONFIDENCE else common)[None]])
        if self.agreement(maps, k, group).confidence >= LEAST_CONFIDENCE:
            for level in (0, 1):
                maps = self.optimise(maps, level, kind, [*group, k], only=k)
            if max(counts) > 1 and not self.less_likely(maps, header, [*group, k], [k]):
                maps = header
        confidence = torch.tensor(self.agreement(maps, k, group).confidence)
        volumes = self.resampled(self.fine, self.grid(maps, 1, group), maps, [*group, k])
        sign = (regress(*volumes, [len(group)]).correlation[0, :-1] * alignment.polarity[group]).sum()
        return maps[k], confidence, torch.where(sign < 0, -1.0, 1.0)

    def less_likely(self, maps: Tensor, simpler: Tensor, chosen: Sequence[int], scans: Sequence[int]) -> list[int]:
        """Return those of the ``scans`` for which ``simpler`` maps lose more log likelihood than the parameters of
        ``maps`` cost (Bayesian information criterion, with one independent voxel per window)."""
        grid, predicted = self.grid(maps, 1, chosen), [chosen.index(k) for k in scans]
        values, simpler_values = (
            regress(*self.resampled(self.fine, grid, m, chosen), predicted).value for m in (maps, simpler)
        )
        compared = (values != 0) & (simpler_values != 0)
        voxels = compared.flatten(1).sum(dim=1) / (2 * WINDOW_RADIUS + 1) ** 3
        gain = ((values - simpler_values) * compared).flatten(1).sum(dim=1) / (2 * WINDOW_RADIUS + 1) ** 3
        cost = len(affine_generators(self.settings.kind)) / 2 * voxels.clamp_min(1).log()
        return [k for n, k in enumerate(scans) if gain[n] > cost[n]]

    def grid(self, maps: Tensor, level: int, chosen: Sequence[int]) -> Grid:
        """Compute a grid of the common space that covers the chosen scans; level 0 is coarse, 1 is fine."""
        placed = [Grid(self.grids[k].shape, maps[k].inverse() @ self.grids[k].affine) for k in chosen]
        return working_grid(placed, None).at_spacing(torch.full((3,), self.spacings_mm[level], dtype=torch.float64))

    def resampled(
        self, scans: Sequence[CoarseScan], grid: Grid, maps: Tensor, chosen: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Resample the chosen scans: intensities, and 1 where they were measured, each ``(len(chosen), *S)``."""
        return self.stacked({k: scans[k].resampled(grid, maps[k]) for k in chosen})

    def stacked(self, volumes: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Stack intensities and measured voxels, and apply the mask if only one scan has one."""
        values, measured = (torch.stack(x) for x in zip(*volumes.values()))
        if self.masked in volumes:
            measured = measured * volumes[self.masked][1]
        return values, measured

    def optimise(self, maps: Tensor, level: int, kind: str, chosen: Sequence[int], only: int | None = None) -> Tensor:
        """Take Gauss-Newton steps of all the chosen scans, whose mean is fixed, or of one of them ``only``."""
        scans, grid = (self.coarse, self.fine)[level], self.grid(maps, level, [k for k in chosen if k != only])
        updated = range(len(chosen)) if only is None else [chosen.index(only)]
        maps, corners = maps.clone(), _corners(grid)
        volumes = {k: scans[k].resampled(grid, maps[k]) for k in chosen}
        for _ in range(self.settings.schedule.iterations):
            steps = affine_steps(*self.stacked(volumes), grid, kind, updated)
            if only is None:  # shortened, as each step is computed with the other scans fixed, but these move, too
                steps = (steps - steps.mean(dim=0)) * (len(chosen) - 1) / len(chosen)
            for n, move in zip(updated, torch.linalg.matrix_exp(steps)):
                k = chosen[n]
                maps[k] = maps[k] @ move
                volumes[k] = scans[k].resampled(grid, maps[k])
            longest = (steps @ corners)[:, :3].norm(dim=1).max()
            if longest < _LEAST_STEP * grid.spacing_mm[0]:
                break
        return maps

    def features(self, maps: Tensor, grid: Grid, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Compute the mean edge features of the chosen scans, ``(6, *S)``, and 1 where any was measured, ``(*S)``."""
        edges, valid = edge_features(*self.resampled(self.coarse, grid, maps, chosen))
        count = valid.sum(dim=0)
        return edges.sum(dim=0) / count.clamp_min(1), (count > 0).float()

    def bounding_grid(self, k: int, matrix: Tensor, grid: Grid) -> tuple[Grid, Tensor]:
        """Extend the lattice of ``grid`` to scan k under a map, to all of it unless it is much larger; also compute the
        indices ``(3,)`` of the first voxel of the result on ``grid``."""
        box = self.coarse[k].grid
        into = torch.linalg.inv(matrix @ grid.affine) @ box.affine
        half = into[:3, :3].abs() @ torch.tensor(box.shape).double() / 2
        centre = into[:3, :3] @ ((torch.tensor(box.shape).double() - 1) / 2) + into[:3, 3]
        first, size = cropped((centre - half).floor(), (2 * half).ceil() + 2, torch.tensor(grid.shape).double() / 2)
        affine = grid.affine.clone()
        affine[:3, 3] += affine[:3, :3] @ first
        return Grid(tuple(size.int().tolist()), affine), first.int()

    def agreement(self, maps: Tensor, k: int, group: Sequence[int]) -> Agreement:
        """Compare scan ``k`` with the others of a group."""
        rest = [j for j in group if j != k]
        grid = self.grid(maps, 0, rest)
        own_grid, first = self.bounding_grid(k, maps[k], grid)
        correlation = ShiftCorrelation(*self.features(maps, grid, rest), own_grid.shape)
        scores = correlation(*self.features(maps, own_grid, [k]))
        near, far = correlation.within(-first, 1), ~correlation.within(-first, 3)
        peak = float(scores[near].max().clamp_min(0)) if near.any() else 0.0
        return Agreement(peak, peak - 0.5 * float(scores[far].max().clamp_min(0)))

    def align(self) -> AffineAlignment:
        """Align the scans by the steps that `GroupAffine` lists."""
        all_scans = list(range(len(self.grids)))
        headers = torch.eye(4, dtype=torch.float64).repeat(len(all_scans), 1, 1)
        maps = self.optimise(headers, 0, "rigid", all_scans)
        placed = [k for k in all_scans if self.agreement(maps, k, all_scans).confidence >= CLEAR_CONFIDENCE]
        if len(placed) < len(all_scans):
            maps, placed = self.search(maps, placed)
        if len(placed) > 1:
            for level in (0, 1):
                maps = self.optimise(maps, level, self.settings.kind, placed)
            placed = self.without_failed(maps, placed)
            maps = self.keep_headers(maps, placed)
        else:
            maps, placed = headers, all_scans
        return self.assessed(maps, placed)

    def without_failed(self, maps: Tensor, placed: Sequence[int]) -> list[int]:
        """Leave out scans whose alignment failed, the least confident first, as it lowers the confidence of others."""
        placed = list(placed)
        while len(placed) > 2:
            confidence, worst = min((self.agreement(maps, k, placed).confidence, k) for k in placed)
            if confidence >= LEAST_CONFIDENCE:
                break
            placed.remove(worst)
        return placed

    def assessed(self, maps: Tensor, placed: Sequence[int]) -> AffineAlignment:
        """Centre the maps, and compute polarities and the confidence of each scan compared with those ``placed``."""
        confidence = torch.tensor([self.agreement(maps, k, placed).confidence for k in range(len(maps))])
        return AffineAlignment(centred_maps(maps), confidence, self.polarity(maps))

    def search(self, maps: Tensor, placed: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Align the remaining scans with those ``placed``. If these are fewer than two, or lack the only scan with a
        mask, start from a single scan: that with the mask, then those with the strongest edges.

        Returns:
            The maps, and the scans placed.
        """
        all_scans = range(len(maps))
        seeds = sorted(all_scans, key=lambda k: (k == self.masked, self.edge_strength(k)), reverse=True)
        starts = [[k] for k in seeds]
        if len(placed) > 1 and (self.masked is None or self.masked in placed):
            starts = [list(placed)]
        for start in starts:
            maps, group = self.grown(maps, start)
            if len(group) > 1:
                break
        return maps, group

    def grown(self, maps: Tensor, group: list[int]) -> tuple[Tensor, list[int]]:
        """Align scans with a group until none of those left can be.

        Returns:
            The maps, and the group with these scans.
        """
        while pending := [k for k in range(len(maps)) if k not in group]:
            best = {k: max(self.candidates(maps, k, group), key=lambda each: each.correlation) for k in pending}
            aligned = {k: candidate.map for k, candidate in best.items() if candidate.confidence >= LEAST_CONFIDENCE}
            if not aligned:
                break
            maps = torch.stack([aligned.get(k, m) for k, m in enumerate(maps)])
            group = sorted([*group, *aligned])
        return maps, group

    def edge_strength(self, k: int) -> float:
        """Sum the squared edge features of a scan, which do not depend on its intensity scale."""
        values, measured = self.coarse[k].content[:, None]
        return float(edge_features(values, (measured > 0.5).float())[0].square().sum())

    def candidates(self, maps: Tensor, k: int, group: list[int]) -> list[Candidate]:
        """Optimise scan k from the best maps of a search over shifts and rotations, then from its present map, until
        one is clearly aligned."""
        grid, box = self.grid(maps, 0, group), self.coarse[k].grid
        template, scored_maps = self.features(maps, grid, group), []
        for rotation in search_rotations(_SEARCH_DEGREES):
            rotated = maps.clone()
            rotated[k] = torch.eye(4, dtype=torch.float64)
            rotated[k, :3, :3], rotated[k, :3, 3] = rotation, box.centre - rotation @ box.centre
            own_grid, first = self.bounding_grid(k, rotated[k], grid)
            correlation = ShiftCorrelation(*template, own_grid.shape)
            for score, shift in best_shifts(correlation, correlation(*self.features(rotated, own_grid, [k])), 2):
                translation = torch.eye(4, dtype=torch.float64)
                translation[:3, 3] = grid.affine[:3, :3] @ (torch.tensor(shift) + first).double()
                scored_maps.append((score, rotated[k] @ translation))
        scored_maps.sort(key=lambda pair: pair[0], reverse=True)
        result = []
        for matrix in [*(matrix for _, matrix in scored_maps[:_CANDIDATES]), maps[k]]:
            start = maps.clone()
            start[k] = matrix
            optimised = self.optimise(start, 0, "rigid", [*group, k], only=k)
            result.append(Candidate(*self.agreement(optimised, k, group), optimised[k]))
            if result[-1].confidence >= CLEAR_CONFIDENCE:
                break
        return result

    def keep_headers(self, maps: Tensor, placed: list[int]) -> Tensor:
        """Replace the maps of scans whose files are consistent with each other, as far as the images show, by one map.

        These are the scans for which it costs less likelihood than their parameters, see `less_likely`. The map is the
        geometric median of the maps of the scans ``placed``, and is also taken for all scans that are not.
        """
        parts = logarithms(maps[placed])
        median = parts.mean(dim=0)
        grid = self.grid(maps, 1, placed)
        corners = _corners(grid)
        for _ in range(_WEISZFELD_STEPS):
            distances = ((parts - median) @ corners).norm(dim=1).mean(dim=1)
            weights = 1 / distances.clamp_min(1e-3)
            median = (weights.view(-1, 1, 1) * parts).sum(dim=0) / weights.sum()
        common = torch.linalg.matrix_exp(median)
        maps = torch.stack([m if k in placed else common for k, m in enumerate(maps)])
        near = ((parts - median) @ corners).norm(dim=1).mean(dim=1) < 2 * grid.spacing_mm[0]
        consistent = [k for k, close in zip(placed, near) if close]
        while len(consistent) > 1:
            shared = maps.clone()
            shared[consistent] = common
            less_likely = self.less_likely(maps, shared, placed, consistent)
            if not less_likely:
                return shared
            consistent = [k for k in consistent if k not in less_likely]
        return maps

    def polarity(self, maps: Tensor) -> Tensor:
        """Compute the signs of the first eigenvector of the scans' mean local correlations."""
        all_scans = range(len(maps))
        regression = regress(*self.resampled(self.fine, self.grid(maps, 1, all_scans), maps, all_scans), all_scans)
        first = torch.linalg.eigh(regression.correlation + regression.correlation.T).eigenvectors[:, -1]
        majority = (first * torch.tensor([self.edge_strength(k) for k in all_scans])).sum()
        return torch.where(first * majority < 0, -1.0, 1.0)


def _corners(grid: Grid) -> Tensor:
    """Return the homogeneous coordinates of the corners, mm, ``(4, 8)``."""
    return torch.cat([grid.corners(), torch.ones(8, 1)], dim=1).T
