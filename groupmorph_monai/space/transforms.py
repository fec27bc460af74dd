"""Transforms in patient coordinates.

Points are ``(..., 3)``, RAS mm, float64. Images pull back, points push forward: a transform maps a point of the space
in which an image is resampled to the point at which the image is sampled.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from ..errors import InputError
from .filters import gradient
from .grid import Grid, transform_points, vector_lengths
from .sampling import full_precision, multiply_axes, sample


def interpolate(volume: Tensor, voxels: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample ``volume`` at voxel coordinates, with border padding.

    Args:
        volume: ``(C, *S)``.
        voxels: ``(..., 3)``.
        mode: ``"bilinear"`` for linear interpolation, or ``"nearest"``.

    Returns:
        Values ``(..., C)``.
    """
    points = voxels.reshape(-1, 3).T[None, :, :, None, None].to(volume)
    return sample(volume[None], points, mode)[0, :, :, 0, 0].T.reshape(*voxels.shape[:-1], len(volume))


def triple_product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Compute ``a . (b x c)``, the determinant of three vectors with components on axis 0."""
    return a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def jacobian_determinant(displacement: Tensor, affine: Tensor | None = None) -> Tensor:
    """Compute the Jacobian determinant of ``x + u(x)`` by central differences, one-sided at the border.

    The determinant is the same in voxels and millimetres. Above 1, tissue has a larger volume in the sampled image than
    in the resampled one; below 0, the map folds.

    Args:
        displacement: u, ``(K, 3, *S)``, at least 2 voxels along each axis.
        affine: voxels to the unit of the displacement, ``(4, 4)``; None if the displacement is in voxels.

    Returns:
        ``(K, *S)``.
    """
    grid = Grid(displacement.shape[2:], torch.eye(4) if affine is None else affine)
    axes = grid.affine[:3, :3].to(displacement)
    result = displacement.new_empty((displacement.shape[0], *grid.shape))  # MetaTensor accepts only a tuple
    for u, determinant in zip(displacement, result):
        for rows in grid.slabs():
            # Central differences need a layer on either side, where there is one, and at least two layers in all.
            low, high = max(0, min(rows.start - 1, grid.shape[0] - 2)), min(grid.shape[0], rows.stop + 1)
            # With axes M and derivative G by voxel coordinates, the Jacobian is I + G M^-1: |M + G| / |M|.
            jacobian = gradient(u[None, :, low:high])[0] + axes[:, :, None, None, None]
            determinant[rows] = triple_product(*jacobian.unbind(1))[rows.start - low : rows.stop - low]
    return result / triple_product(*axes.unbind(1))


def _as_points(points: Tensor) -> Tensor:
    """Convert arrays and lists to tensors, and whole numbers, which could not hold the result, to float64.

    Raises:
        InputError: If they are not real numbers ``(..., 3)``.
    """
    try:
        points = torch.as_tensor(points)
        if points.is_nested:
            raise TypeError("a nested tensor")
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"points: expected real numbers, got {points!r:.60}; pass an array (..., 3)") from None
    if points.shape == (0,):  # an empty list
        points = points.reshape(0, 3)
    if points.is_complex() or points.ndim == 0 or points.shape[-1] != 3:
        raise InputError(
            f"points: expected real numbers (..., 3) in mm, got {points.dtype} of shape {tuple(points.shape)}; pass x, "
            "y, z along the last axis"
        )
    return points if points.is_floating_point() else points.double()


class Transform(ABC):
    """Map of points in mm, evaluated lazily."""

    @property
    def is_identity(self) -> bool:
        """Whether the transform is exactly the identity."""
        return False

    @property
    def lattice(self) -> Grid | None:
        """Grid between whose nodes the displacement is linear along each axis; None if it is linear everywhere."""
        return None

    @abstractmethod
    def __call__(self, points: Tensor) -> Tensor:
        """Transform points ``(..., 3)``."""

    @property
    @abstractmethod
    def inverse(self) -> "Transform":
        """Inverse transform."""

    def at_voxels(self, grid: Grid, rows: slice = slice(None)) -> Tensor:
        """Transform the voxel centres of ``grid``, or those in ``rows`` of its first axis, ``(*S, 3)``."""
        return self(grid.points(rows))

    def displacement(self, grid: Grid) -> Tensor:
        """Evaluate ``T(x) - x`` at the voxels of ``grid``, ``(3, *S)`` float32, mm."""
        result = torch.zeros(3, *grid.shape)
        if not self.is_identity:
            for rows in grid.slabs():
                result[:, rows] = (self.at_voxels(grid, rows) - grid.points(rows)).movedim(-1, 0).float()
        return result

    def jacobian_determinant(self, grid: Grid) -> Tensor:
        """Compute `jacobian_determinant` at the voxels of ``grid``, ``(*S)``."""
        return jacobian_determinant(self.displacement(grid)[None], grid.affine)[0]


class AffineTransform(Transform):
    """Affine transform, kept as a matrix.

    Args:
        matrix: RAS mm to RAS mm, ``(4, 4)``.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = torch.as_tensor(matrix, dtype=torch.float64).cpu()

    @cached_property
    def is_identity(self) -> bool:
        return torch.equal(self.matrix, torch.eye(4, dtype=torch.float64))

    def __call__(self, points: Tensor) -> Tensor:
        return transform_points(self.matrix, _as_points(points))

    @property
    def inverse(self) -> "AffineTransform":
        return self if self.is_identity else AffineTransform(torch.linalg.inv(self.matrix))


class DenseTransform(Transform):
    """Transform ``x + u(x)`` by a displacement field sampled on a grid, optionally with the field of the inverse map.

    The field is unknown beyond the grid: there it fades from its value at the border to 0, which leaves the affine
    transform that it is composed with.

    Args:
        displacement: u, ``(3, *S)``, voxels of ``grid``.
        inverse_displacement: field of the inverse map, ``(3, *S)``, voxels of ``grid``, or None if unknown.
        grid: grid on which both fields are sampled.
        fade: distance over which the field fades, as a multiple of its greatest displacement: 4 cannot fold, infinity
            keeps the border's value.
    """

    def __init__(self, displacement: Tensor, inverse_displacement: Tensor | None, grid: Grid, fade: float = 4.0):
        for name, field in (("displacement", displacement), ("inverse_displacement", inverse_displacement)):
            if field is not None and tuple(field.shape) != (3, *grid.shape):
                raise ValueError(f"{name}: expected shape {(3, *grid.shape)}, got {tuple(field.shape)}")
        self.field, self.inverse_field, self.grid, self.fade = displacement, inverse_displacement, grid, fade

    @property
    def lattice(self) -> Grid:
        return self.grid

    @property
    def _fields(self) -> list[Tensor]:
        return [field for field in (self.field, self.inverse_field) if field is not None]

    @cached_property
    def is_identity(self) -> bool:
        return not any(field.any() for field in self._fields)

    @cached_property
    def _greatest_mm(self) -> float:
        slabs = (field[:, rows].movedim(0, -1) for field in self._fields for rows in self.grid.slabs())
        return max(float(vector_lengths(self._to_mm(slab)).max()) for slab in slabs)

    def _to_mm(self, vectors: Tensor) -> Tensor:
        linear = self.grid.affine.clone()
        linear[:3, 3] = 0
        return transform_points(linear, vectors)

    def _share(self, outside_mm: Tensor) -> Tensor:
        """Compute the share of the border's displacement that is left at a distance from the grid."""
        return (1 - outside_mm / (self.fade * self._greatest_mm + 1e-9)).clamp_min(0)

    def __call__(self, points: Tensor) -> Tensor:
        points = _as_points(points)
        if self.is_identity:
            return points
        voxels = self.grid.voxels(points)
        displacements = self._to_mm(interpolate(self.field, voxels.to(self.field.device)).to(points))
        last = torch.tensor(self.grid.shape, dtype=voxels.dtype) - 1
        outside = voxels - voxels.clamp_min(0).minimum(last)
        if isfinite(self.fade) and outside.any():
            displacements = displacements * self._share(vector_lengths(self._to_mm(outside)).unsqueeze(-1))
        return points + displacements

    def at_voxels(self, grid: Grid, rows: slice = slice(None)) -> Tensor:
        displacements = None if self.is_identity else self._along_axes(grid, rows)
        points = grid.points(rows)
        return self(points) if displacements is None else points.add_(displacements.movedim(0, -1))

    def displacement(self, grid: Grid) -> Tensor:
        result = torch.empty(3, *grid.shape)
        for rows in grid.slabs():
            displacements = None if self.is_identity else self._along_axes(grid, rows)
            if displacements is None:
                return super().displacement(grid)
            result[:, rows] = displacements
        return result

    def _along_axes(self, grid: Grid, rows: slice) -> Tensor | None:
        """Compute the displacements at voxels of a grid, ``(3, *S)`` mm; None if its axes are not parallel."""
        parallel = self.grid.coordinates_along_axes(grid)
        if parallel is None:
            return None
        axes = [axis for axis, _ in parallel]
        displacements = self._between_nodes([c[rows] if axis == 0 else c for axis, c in parallel])
        return displacements.permute(0, *(1 + axes.index(axis) for axis in range(3)))

    @full_precision
    def _between_nodes(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Compute the displacements at the points that have these coordinates along the axes of the grid, in voxels,
        ``(3, *S)`` float32, mm: axis by axis, which is several times as fast as point by point."""
        inside = [c.clamp(0, n - 1) for c, n in zip(coordinates, self.grid.shape)]
        nodes = [slice(int(c.min()), int(c.max().ceil()) + 1) for c in inside]
        weights = [
            (1 - (c[:, None] - torch.arange(near.start, near.stop)).abs()).clamp_min(0).to(self.field)
            for c, near in zip(inside, nodes)
        ]
        near_mm = self._to_mm(self.field[:, nodes[0], nodes[1], nodes[2]].movedim(0, -1)).movedim(-1, 0)
        displacements = multiply_axes(near_mm.contiguous(), weights).cpu()
        outside = [c - i for c, i in zip(coordinates, inside)]
        if isfinite(self.fade) and any(o.any() for o in outside):
            vectors = torch.stack(torch.meshgrid(*(o.float() for o in outside), indexing="ij")).movedim(0, -1)
            displacements = displacements * self._share(vector_lengths(self._to_mm(vectors)))
        return displacements

    @cached_property
    def inverse(self) -> Transform:
        """Inverse transform.

        Raises:
            ValueError: If the field of the inverse map is unknown.
        """
        if self.inverse_field is None:
            raise ValueError(
                "inverse: expected a displacement field together with that of the inverse map, got a single field; to "
                "invert ddf_KK of a written registration, read inverse_ddf_KK, and vice versa"
            )
        return DenseTransform(self.inverse_field, self.field, self.grid, self.fade)


class ComposedTransform(Transform):
    """Composition of transforms, applied in order; identities are dropped.

    Args:
        transforms: the first is applied to a point first.
    """

    def __init__(self, *transforms: Transform):
        flat = (p for t in transforms for p in (t.transforms if isinstance(t, ComposedTransform) else (t,)))
        self.transforms: tuple[Transform, ...] = tuple(t for t in flat if not t.is_identity)

    @property
    def is_identity(self) -> bool:
        return not self.transforms

    def __call__(self, points: Tensor) -> Tensor:
        points = _as_points(points)
        for transform in self.transforms:
            points = transform(points)
        return points

    def at_voxels(self, grid: Grid, rows: slice = slice(None)) -> Tensor:
        if self.is_identity:
            return grid.points(rows)
        first, *rest = self.transforms
        return ComposedTransform(*rest)(first.at_voxels(grid, rows))

    @property
    def lattice(self) -> Grid | None:
        """Lattice of the first dense transform, mapped back through the affine transforms before it."""
        matrix = torch.eye(4, dtype=torch.float64)
        for transform in self.transforms:
            if transform.lattice is not None:
                return Grid(transform.lattice.shape, torch.linalg.inv(matrix) @ transform.lattice.affine)
            if isinstance(transform, AffineTransform):
                matrix = transform.matrix @ matrix
        return None

    @property
    def inverse(self) -> "ComposedTransform":
        return ComposedTransform(*(t.inverse for t in reversed(self.transforms)))
