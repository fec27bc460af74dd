"""Voxel grids of volumes in patient coordinates. Points are ``(..., 3)``, RAS mm, float64; each component is contiguous
in memory, as most operations treat one after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .sampling import full_precision

SLAB_VOXELS = 2**18  # voxels processed at a time, which bounds memory; larger slabs leave the processor's cache
_PARALLEL_VOXELS = 1e-6  # maximum deviation of parallel axes over a whole volume, from rounding


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxel grid of a volume in patient coordinates.

    Args:
        shape: number of voxels along each axis.
        affine: voxel indices to RAS mm, ``(4, 4)``; converted to float64 on the CPU.
    """

    shape: tuple[int, ...]
    affine: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", torch.as_tensor(self.affine, dtype=torch.float64).cpu())

    @property
    def spacing_mm(self) -> Tensor:
        """Distance between voxel centres along each axis, ``(3,)``."""
        return self.affine[:3, :3].norm(dim=0)

    @cached_property
    def _to_voxels(self) -> Tensor:
        return torch.linalg.inv(self.affine)

    @property
    def centre(self) -> Tensor:
        """Centre of the volume, ``(3,)`` mm."""
        return transform_points(self.affine, (torch.tensor(self.shape, dtype=torch.float64) - 1) / 2)

    @property
    def extent_mm(self) -> Tensor:
        """Side lengths of the volume, up to the outer faces of its voxels, ``(3,)``."""
        return self.spacing_mm * torch.tensor(self.shape)

    def corners(self, beyond_voxels: float = 0.0) -> Tensor:
        """Return the centres of the eight corner voxels, or points that many voxels beyond them, ``(8, 3)`` mm."""
        ends = ([-beyond_voxels, n - 1.0 + beyond_voxels] for n in self.shape)
        voxels = torch.cartesian_prod(*[torch.tensor(end, dtype=torch.float64) for end in ends])
        return transform_points(self.affine, voxels)

    def matches(self, other: "Grid", tolerance_mm: float = 1e-4) -> bool:
        """Test whether both grids have the same shape, and the same corners to within ``tolerance_mm`` per axis."""
        if self.shape != other.shape:
            return False
        return bool((self.corners() - other.corners()).abs().max() <= tolerance_mm)

    def slabs(self) -> Iterator[slice]:
        """Yield slices of the first axis that cover the volume, with at most about 260,000 voxels each."""
        rows = max(1, SLAB_VOXELS // (self.shape[1] * self.shape[2]))
        for start in range(0, self.shape[0], rows):
            yield slice(start, min(start + rows, self.shape[0]))

    def points(self, rows: slice = slice(None), every: int = 1) -> Tensor:
        """Compute the voxel centres, ``(*S, 3)`` mm.

        Args:
            rows: slice of the first axis.
            every: step along each axis, in voxels.
        """
        axes = [torch.arange(n, dtype=torch.float64) for n in self.shape]
        axes = [axes[0][rows][::every], *(axis[::every] for axis in axes[1:])]
        i, j, k = (axis.view([-1 if d == n else 1 for d in range(3)]) for n, axis in enumerate(axes))
        components = [x * i + origin + y * j + z * k for x, y, z, origin in self.affine[:3]]
        return torch.stack(components).movedim(0, -1)

    def voxels(self, points: Tensor) -> Tensor:
        """Convert points in mm to voxel coordinates, ``(..., 3)``."""
        return transform_points(self._to_voxels, points)

    def coordinates_along_axes(self, other: "Grid") -> list[tuple[int, Tensor]] | None:
        """Compute the voxel coordinates of another grid with parallel axes.

        Returns:
            For each axis, the axis of ``other`` that is parallel to it, and the coordinates ``(n,)`` in voxels of this
            grid, of the n voxels of ``other`` along that axis. None if the axes are not parallel.
        """
        matrix = self._to_voxels @ other.affine
        axes = matrix[:3, :3].abs().argmax(dim=1).tolist()
        oblique = matrix[:3, :3].clone()
        oblique[range(3), axes] = 0
        most_oblique = (oblique.abs() @ torch.tensor(other.shape, dtype=oblique.dtype)).max()
        if sorted(axes) != [0, 1, 2] or most_oblique > _PARALLEL_VOXELS:
            return None
        counts = [torch.arange(other.shape[axis], dtype=torch.float64) for axis in axes]
        return [(axis, row[axis] * n + row[3]) for axis, row, n in zip(axes, matrix, counts)]

    def contains(self, points: Tensor) -> Tensor:
        """Test whether points in mm lie within the outer faces of the voxels, ``(...)`` bool."""
        return self.covers(self.voxels(points))

    def covers(self, voxels: Tensor) -> Tensor:
        """Test whether voxel coordinates ``(..., 3)`` lie within the outer faces of the voxels, ``(...)`` bool."""
        inside_mask = torch.ones(voxels.shape[:-1], dtype=torch.bool, device=voxels.device)
        for component, n in zip(voxels.unbind(-1), self.shape):
            # The tolerance keeps points on a face inside despite rounding errors.
            inside_mask &= (component >= -0.5 - 1e-6) & (component <= n - 0.5 + 1e-6)
        return inside_mask

    def at_spacing(self, spacing_mm: Tensor) -> "Grid":
        """Return the grid with the same axes and first voxel centre at another spacing ``(3,)``, just large enough to
        cover the last voxel centre."""
        ratio = torch.as_tensor(spacing_mm, dtype=torch.float64) / self.spacing_mm
        affine = self.affine.clone()
        affine[:3, :3] *= ratio
        # The tolerance keeps a rounding error from adding a voxel.
        size = ((torch.tensor(self.shape) - 1) / ratio - 1e-4).ceil().clamp_min(0).int() + 1
        return Grid(tuple(size.tolist()), affine)

    def of_blocks(self, sides: Tensor, shape: Sequence[int]) -> "Grid":
        """Return the grid of ``shape`` blocks of ``sides`` ``(3,)`` voxels each, from the first voxel's corner on."""
        affine = self.affine.clone()
        affine[:3, 3] += affine[:3, :3] @ ((sides.double() - 1) / 2)
        affine[:3, :3] *= sides
        return Grid(tuple(shape), affine)

    def over(self, volume: "Grid") -> "Grid":
        """Extend or crop the lattice of this grid to just cover ``volume``, up to the outer faces of its voxels.

        Axes that are not orthogonal are replaced by the closest orthogonal ones; a lattice node near the centre of
        ``volume`` keeps its position.
        """
        u, _, v = torch.linalg.svd(self.affine[:3, :3] / self.spacing_mm)
        affine, node = self.affine.clone(), self.voxels(volume.centre).round()
        affine[:3, :3] = u @ v * self.spacing_mm
        affine[:3, 3] += (self.affine - affine)[:3, :3] @ node
        corners = Grid(self.shape, affine).voxels(volume.corners(0.5))
        # The tolerance keeps a rounding error from adding a node.
        low, high = (corners.amin(0) + 1e-3).floor(), (corners.amax(0) - 1e-3).ceil()
        affine[:3, 3] += affine[:3, :3] @ low
        return Grid(tuple((high - low + 1).int().tolist()), affine)

    def canonical(self) -> "Grid":
        """Reorder and flip the axes to be as close as possible to RAS; the voxels stay the same.

        The result does not depend on the order and signs of the stored axes, even if several orders are equally close.
        """
        cosines = self.affine[:3, :3] / self.spacing_mm
        best = max(_PERMUTATIONS, key=lambda axes: _closeness(cosines[:, axes]))
        affine, shape = self.affine.clone(), [self.shape[axis] for axis in best]
        for world_axis, axis in enumerate(best):
            column = self.affine[:3, axis]
            flipped = bool(column[world_axis] < 0)
            affine[:3, world_axis] = -column if flipped else column
            if flipped:
                affine[:3, 3] += (self.shape[axis] - 1) * column
        return Grid(tuple(shape), affine)


def _closeness(cosines: Tensor) -> float:
    """Compute the sum of the cosines between the axes ``(3, 3)``, flipped to RAS, and RAS, plus a small tie-break."""
    flipped = cosines * torch.where(cosines.diagonal() < 0, -1, 1)
    return float(flipped.trace() + (_TIE_BREAK * flipped).sum())


# Distinct weights decide between orders that are equally close, as at 45 degrees; their effect exceeds the rounding of
# headers.
_TIE_BREAK = 1e-3 * torch.tensor([[0, -0.31, 0.17], [1, 0, -0.23], [-0.59, 0.73, 0]], dtype=torch.float64)
_PERMUTATIONS = ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])


@full_precision
def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply an affine ``matrix`` ``(4, 4)`` to ``points`` ``(..., 3)``, whose dtype the result has."""
    matrix = matrix.to(points)
    return torch.addmm(matrix[:3, 3:], matrix[:3, :3], points.reshape(-1, 3).T).T.view_as(points)


def vector_lengths(vectors: Tensor) -> Tensor:
    """Compute the lengths ``(...)`` of vectors ``(..., 3)``. Where each component is contiguous in memory, this takes a
    15th of the time of PyTorch's ``norm``."""
    return vectors.square().sum(dim=-1).sqrt()
