"""Vessels, airways and tumours of both lungs, in mm in the template of `chest`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .branching import FAR_MM, Tree, grow_tree
from .chest_tissues import Tissues
from .phantom import uniform

_CARINA = (0.0, -10.0, 22.0)
_HILA = {1: (32.0, -8.0, 2.0), -1: (-36.0, -10.0, 0.0)}  # positions of the right and the left hilum, mm


class Lungs:
    """Arteries, veins and airways of both lungs with radii above ``least_mm``, and lesions."""

    def __init__(self, rng: torch.Generator, tissues: Tissues, lesions: int, least_mm: float):
        vessels, airways = [], [_tubes((9.0, (0, -8, 150), _CARINA))]
        for side, hilum in _HILA.items():
            root = torch.tensor(hilum)
            before, below = torch.tensor([0.0, 8.0, 6.0]), torch.tensor([0.0, 8.0, -14.0])
            vessels.append(grow_tree(root + before, _within(rng, tissues, side, 2400), 8.0, 5))
            vessels.append(grow_tree(root + below, _within(rng, tissues, side, 1200), 7.0, 5))
            airways.append(_tubes((7.0, _CARINA, hilum)))
            airways.append(grow_tree(root, _within(rng, tissues, side, 600), 5.0, 12))
        self.vessels, self.airways = (Tree.join(trees).thicker_than(least_mm) for trees in (vessels, airways))
        self.lesions = [
            (_within(rng, tissues, (1, -1)[n % 2], 1, 16.0)[0], float(uniform(rng, 6, 12))) for n in range(lesions)
        ]

    def lesion_mm(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the depth inside the nearest lesion, negative outside, and its number from 1, each ``(*P)``."""
        nowhere = torch.full(points.shape[1:], FAR_MM)
        depths = [r - (points - c.view(3, 1, 1, 1)).square().sum(dim=0).sqrt() for c, r in self.lesions]
        depth, number = torch.stack([nowhere, *depths]).max(dim=0)
        return depth, number

    def forks(self, tissues: Tissues) -> Tensor:
        """Select the bifurcations of vessels and airways inside a lung, ``(M, 3)`` mm."""
        forks = torch.cat([self.vessels.forks, self.airways.forks])
        points = forks.T[:, :, None, None]
        deep = torch.minimum(tissues.lung_mm(points), tissues.cavity.depth_mm(points))
        return forks[deep[:, 0, 0] > 3]


def _tubes(*tubes: tuple[float, Sequence[float], Sequence[float]]) -> Tree:
    radii, starts, ends = (torch.tensor(column, dtype=torch.float32) for column in zip(*tubes))
    return Tree(starts, ends, radii, torch.empty(0, 3), torch.empty(0))


def _within(rng: torch.Generator, tissues: Tissues, side: int, number: int, margin_mm: float = 5.0) -> Tensor:
    """Draw points at least ``margin_mm`` inside one lung of the template, ``(number, 3)``."""
    accepted = torch.empty(0, 3)
    while len(accepted) < number:
        points = uniform(rng, -1, 1, (4000, 3)) * torch.tensor([125.0, 80.0, 115.0])
        shaped = points.T[:, :, None, None]
        deep = torch.minimum(tissues.lung_mm(shaped), tissues.cavity.depth_mm(shaped))[:, 0, 0]
        accepted = torch.cat([accepted, points[(deep > margin_mm) & (side * points[:, 0] > 0)]])
    return accepted[:number]
