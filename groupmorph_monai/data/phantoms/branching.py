"""Vessel and airway trees that fill a volume, and the depth of voxels inside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FAR_MM = -1e3
_BRANCH_SHARE = 0.45  # length of a branch, as a share of the distance to the centre of its targets
_BENT_MM = 2.0  # maximum distance by which the transforms bend a straight tube out of the bounding box of its ends


@dataclass(frozen=True)
class Tree:
    """N straight tubes and their bifurcations.

    Args:
        starts, ends: ``(N, 3)`` mm.
        radii_mm: ``(N,)``.
        forks: ``(M, 3)`` mm, positions of the bifurcations.
        fork_radii_mm: ``(M,)``, radii of the tubes that end there.
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


def grow_tree(root: Tensor, targets: Tensor, radius_mm: float, least_targets: int) -> Tree:
    """Grow a tree from ``root`` ``(3,)`` that supplies ``targets`` ``(P, 3)``, mm.

    A branch covers 45 % of the way to the centre of its targets. A plane that contains the branch and is
    perpendicular to the widest spread of the targets then divides them between two branches, as in Tawhai et al. 2000
    (Ann Biomed Eng 28:793). The cubes of the two radii, proportional to the numbers of targets, add up to the cube of
    the parent's radius (Murray 1926, PNAS 12:207). A branch with fewer than ``2 * least_targets`` targets ends at their
    centre.
    """
    tubes, forks, waiting = [], [], [(root, targets, radius_mm)]
    while waiting:
        start, supplied, radius = waiting.pop()
        centre = supplied.mean(dim=0)
        last = len(supplied) < 2 * least_targets
        end = centre if last else start + _BRANCH_SHARE * (centre - start)
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
    positions = torch.stack([position for position, _ in forks]) if forks else torch.empty(0, 3)
    fork_radii = torch.tensor([radius for _, radius in forks])
    return Tree(torch.stack(starts), torch.stack(ends), torch.tensor(radii), positions, fork_radii)


def tube_depths_mm(
    tree: Tree,
    size: Sequence[int],
    to_voxels: Callable[[Tensor], Tensor],
    to_tree: Callable[[Tensor], Tensor],
    spacing_mm: Sequence[float],
    margin_mm: float,
) -> Tensor:
    """Compute the depth of every voxel inside the tubes, negative outside, ``(*S)``; `FAR_MM` for voxels farther than
    ``margin_mm`` from all tubes.

    Args:
        tree: the tubes.
        size: voxels along each axis.
        to_voxels: transform of points ``(3, P)`` from the tree's mm to voxels.
        to_tree: its inverse, for ``(3, *P)``; only voxels near a tube are transformed.
        spacing_mm: voxel size.
        margin_mm: margin around every tube, in addition to its bending by the transforms.
    """
    depths = torch.full(tuple(size), FAR_MM)
    ends = torch.stack([to_voxels(points.T).T for points in (tree.starts, tree.ends)])
    reach = (1.3 * tree.radii_mm + margin_mm + _BENT_MM)[:, None] / torch.tensor(spacing_mm)
    low, high = (ends.amin(dim=0) - reach).floor(), (ends.amax(dim=0) + reach).ceil() + 1
    firsts, stops = low.clamp_min(0).int().tolist(), torch.minimum(high, torch.tensor(size)).int().tolist()
    for start, end, radius, first, stop in zip(tree.starts, tree.ends, tree.radii_mm, firsts, stops):
        box = tuple(slice(a, max(a, b)) for a, b in zip(first, stop))
        axes = [torch.arange(part.start, part.stop, dtype=torch.float32) for part in box]
        away = to_tree(torch.stack(torch.meshgrid(*axes, indexing="ij"))) - start.view(3, 1, 1, 1)
        along = (end - start).view(3, 1, 1, 1)
        share = ((away * along).sum(dim=0) / along.square().sum().clamp_min(1e-6)).clamp(0, 1)
        depth = radius - (away - share * along).square().sum(dim=0).sqrt()
        torch.maximum(depths[box], depth, out=depths[box])
    return depths
