"""Vessels and airways as trees that fill a volume, and how deep voxels lie in them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FAR_MM", "Tree", "grow_tree", "tube_depths_mm"]

FAR_MM = -1e3
_BENT_MM = 2.0  # by which the maps may bend a straight tube out of the box of its ends


@dataclass(frozen=True)
class Tree:
    """N straight tubes, and the points where one becomes two.

    Args:
        starts, ends: ``(N, 3)`` mm.
        radii_mm: ``(N,)``.
        forks: ``(M, 3)`` mm.
        fork_radii_mm: ``(M,)``, of the tubes that part there.
    """

    starts: Tensor
    ends: Tensor
    radii_mm: Tensor
    forks: Tensor
    fork_radii_mm: Tensor

    @classmethod
    def join(cls, trees: Sequence["Tree"]) -> "Tree":
        return cls(*[torch.cat(part) for part in zip(*[vars(tree).values() for tree in trees])])

    def thicker_than(self, radius_mm: float) -> "Tree":
        tubes, forks = self.radii_mm > radius_mm, self.fork_radii_mm > radius_mm
        kept = self.starts[tubes], self.ends[tubes], self.radii_mm[tubes]
        return Tree(*kept, self.forks[forks], self.fork_radii_mm[forks])


def grow_tree(root: Tensor, targets: Tensor, radius_mm: float, least_targets: int, share: float = 0.45) -> Tree:
    """Grow a tree from ``root`` ``(3,)`` that supplies ``targets`` ``(P, 3)``, mm.

    A branch goes a ``share`` of the way to the centre of what it supplies; there a plane along the branch, across the
    targets' widest spread, parts them for two branches, as in Tawhai et al. 2000 (Ann Biomed Eng 28:793). The cubes of
    the two radii add up to that of their parent (Murray 1926, PNAS 12:207), shared by the number of targets. A branch
    of fewer than ``2 * least_targets`` targets is the last one and ends in their centre.
    """
    tubes, forks, waiting = [], [], [(root, targets, radius_mm)]
    while waiting:
        start, supplied, radius = waiting.pop()
        centre = supplied.mean(dim=0)
        last = len(supplied) < 2 * least_targets
        end = centre if last else start + share * (centre - start)
        tubes.append((start, end, radius))
        if last:
            continue
        forks.append((end, radius))
        along = (end - start) / (end - start).norm().clamp_min(1e-6)
        spread = supplied - centre
        across = spread - (spread @ along)[:, None] * along
        widest = torch.linalg.eigh(across.T @ across)[1][:, -1]
        right = across @ widest > 0
        for part in (supplied[right], supplied[~right]):
            waiting.append((end, part, radius * (len(part) / len(supplied)) ** (1 / 3)))
    starts, ends, radii = zip(*tubes)
    places = torch.stack([place for place, _ in forks]) if forks else torch.empty(0, 3)
    thick = torch.tensor([radius for _, radius in forks])
    return Tree(torch.stack(starts), torch.stack(ends), torch.tensor(radii), places, thick)


def tube_depths_mm(
    tree: Tree,
    size: Sequence[int],
    to_voxels: Callable[[Tensor], Tensor],
    to_tree: Callable[[Tensor], Tensor],
    spacing_mm: Sequence[float],
    margin_mm: float,
) -> Tensor:
    """Measure how deep every voxel lies in the tubes, below 0 outside, ``(*S)``; `FAR_MM` further than ``margin_mm``
    from all.

    Args:
        tree: the tubes.
        size: voxels.
        to_voxels: map of ``(3, P)``, from mm of the tree to voxels.
        to_tree: the inverse, of ``(3, *P)``; only voxels beside a tube are mapped.
        spacing_mm: of the voxels.
        margin_mm: around every tube, beyond what the maps bend it by.
    """
    depths = torch.full(tuple(size), FAR_MM)
    ends = torch.stack([to_voxels(points.T).T for points in (tree.starts, tree.ends)])
    reach = (1.3 * tree.radii_mm + margin_mm + _BENT_MM)[:, None] / torch.tensor(spacing_mm)
    low, high = (ends.amin(dim=0) - reach).floor(), (ends.amax(dim=0) + reach).ceil() + 1
    low, high = low.clamp_min(0).int().tolist(), torch.minimum(high, torch.tensor(size)).int().tolist()
    for start, end, radius, first, stop in zip(tree.starts, tree.ends, tree.radii_mm, low, high):
        box = tuple(slice(a, max(a, b)) for a, b in zip(first, stop))
        axes = [torch.arange(part.start, part.stop, dtype=torch.float32) for part in box]
        away = to_tree(torch.stack(torch.meshgrid(*axes, indexing="ij"))) - start.view(3, 1, 1, 1)
        along = (end - start).view(3, 1, 1, 1)
        share = ((away * along).sum(dim=0) / along.square().sum().clamp_min(1e-6)).clamp(0, 1)
        depth = radius - (away - share * along).square().sum(dim=0).sqrt()
        torch.maximum(depths[box], depth, out=depths[box])
    return depths
