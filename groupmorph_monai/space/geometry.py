"""Grids and transforms in the patient's millimetres.

Points are ``(..., 3)``, RAS mm, float64. Images pull back, points push forward: a transform takes a point of the space
in which an image is resampled to the point where the image is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from .grid import full_precision, sample
from .lattice import gradient

__all__ = [
    "AffineTransform",
    "ComposedTransform",
    "DenseTransform",
    "Grid",
    "Transform",
    "interpolate",
    "jacobian_determinant",
    "triple_product",
]

_SLAB_VOXELS = 2**20


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of a volume lie.

    Args:
        shape: voxels along each axis.
        affine: ``(4, 4)``, voxel indices to RAS mm; converted to float64 on the CPU.
    """

    shape: tuple[int, ...]
    affine: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", torch.as_tensor(self.affine, dtype=torch.float64).cpu())

    @property
    def spacing_mm(self) -> Tensor:
        return self.affine[:3, :3].norm(dim=0)

    @cached_property
    def _to_voxels(self) -> Tensor:
        return torch.linalg.inv(self.affine)

    @property
    def centre(self) -> Tensor:
        """The centre of the volume, ``(3,)`` mm."""
        return _affine(self.affine, (torch.tensor(self.shape, dtype=torch.float64) - 1) / 2)

    @property
    def extent_mm(self) -> Tensor:
        """Lengths of the sides between the outer faces of the voxels, ``(3,)``."""
        return self.spacing_mm * torch.tensor(self.shape)

    def corners(self, beyond_voxels: float = 0.0) -> Tensor:
        """The eight corners of the volume, ``(8, 3)`` mm: centres of voxels, or so many voxels beyond them."""
        ends = ([-beyond_voxels, n - 1.0 + beyond_voxels] for n in self.shape)
        return _affine(self.affine, torch.cartesian_prod(*[torch.tensor(end, dtype=torch.float64) for end in ends]))

    def matches(self, other: "Grid", tolerance_mm: float = 1e-4) -> bool:
        """Whether both have the same voxels, to ``tolerance_mm`` at each corner."""
        if self.shape != other.shape:
            return False
        return bool((self.corners() - other.corners()).abs().max() <= tolerance_mm)

    def slabs(self) -> Iterator[slice]:
        """Slices of the first axis that together cover the volume, each of about a million voxels."""
        rows = max(1, _SLAB_VOXELS // (self.shape[1] * self.shape[2]))
        for start in range(0, self.shape[0], rows):
            yield slice(start, min(start + rows, self.shape[0]))

    def points(self, rows: slice = slice(None), every: int = 1) -> Tensor:
        """Voxel centres in mm, ``(*S, 3)``: of some ``rows`` of the first axis, and of every ``every``-th voxel."""
        axes = [torch.arange(n, dtype=torch.float64) for n in self.shape]
        axes = [axes[0][rows][::every], *(axis[::every] for axis in axes[1:])]
        columns = [axis[:, None] * column for axis, column in zip(axes, self.affine[:3, :3].T)]
        return columns[0][:, None, None] + columns[1][:, None] + columns[2] + self.affine[:3, 3]

    def voxels(self, points: Tensor) -> Tensor:
        """Voxel coordinates, ``(..., 3)``, of points in mm."""
        return _affine(self._to_voxels, points)

    def contains(self, points: Tensor) -> Tensor:
        """Whether points in mm lie within the outer faces of the voxels, ``(...)`` bool."""
        return self.covers(self.voxels(points))

    def covers(self, voxels: Tensor) -> Tensor:
        """Whether voxel coordinates ``(..., 3)`` lie within the outer faces of the voxels, ``(...)`` bool."""
        # A rounding error must not cut off a face.
        last = torch.tensor(self.shape, dtype=voxels.dtype) - 0.5 + 1e-6
        return ((voxels >= -0.5 - 1e-6) & (voxels <= last)).all(dim=-1)

    def at_spacing(self, spacing_mm: Tensor) -> "Grid":
        """The same axes and first voxel centre, at another spacing ``(3,)``; the last voxel centre is just covered."""
        ratio = torch.as_tensor(spacing_mm, dtype=torch.float64) / self.spacing_mm
        affine = self.affine.clone()
        affine[:3, :3] *= ratio
        # A rounding error must not add a voxel.
        size = ((torch.tensor(self.shape) - 1) / ratio - 1e-4).ceil().clamp_min(0).int() + 1
        return Grid(tuple(size.tolist()), affine)

    def over(self, volume: "Grid") -> "Grid":
        """The lattice of this grid, continued or cut so that it just covers ``volume`` up to the outer faces of its
        voxels. Where this grid's axes are not at right angles, the closest that are replace them; a node near the
        centre of ``volume`` stays where it is."""
        u, _, v = torch.linalg.svd(self.affine[:3, :3] / self.spacing_mm)
        affine, node = self.affine.clone(), self.voxels(volume.centre).round()
        affine[:3, :3] = u @ v * self.spacing_mm
        affine[:3, 3] += (self.affine - affine)[:3, :3] @ node
        corners = Grid(self.shape, affine).voxels(volume.corners(0.5))
        # A rounding error must not add a node.
        low, high = (corners.amin(0) + 1e-3).floor(), (corners.amax(0) - 1e-3).ceil()
        affine[:3, 3] += affine[:3, :3] @ low
        return Grid(tuple((high - low + 1).int().tolist()), affine)

    def canonical(self) -> "Grid":
        """The same voxels with their axes reordered and flipped to be the closest to right, anterior and superior."""
        cosines = self.affine[:3, :3] / self.spacing_mm
        best = max(_PERMUTATIONS, key=lambda axes: float(cosines[range(3), axes].abs().sum()))
        affine, shape = self.affine.clone(), [self.shape[axis] for axis in best]
        for world, axis in enumerate(best):
            column = self.affine[:3, axis]
            flipped = bool(column[world] < 0)
            affine[:3, world] = -column if flipped else column
            if flipped:
                affine[:3, 3] += (self.shape[axis] - 1) * column
        return Grid(tuple(shape), affine)


_PERMUTATIONS = ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])


@full_precision
def _affine(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply a ``(4, 4)`` matrix to points ``(..., 3)``."""
    matrix = matrix.to(points)
    return torch.addmm(matrix[:3, 3], points.reshape(-1, 3), matrix[:3, :3].T).view_as(points)


def interpolate(volume: Tensor, voxels: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample ``volume`` ``(C, *S)`` at voxel coordinates ``(..., 3)``; the border's value holds outside. Returns values
    ``(..., C)``, linearly interpolated, or the nearest voxel's with ``mode="nearest"``."""
    places = voxels.reshape(-1, 3).T[None, :, :, None, None].to(volume)
    return sample(volume[None], places, mode)[0, :, :, 0, 0].T.reshape(*voxels.shape[:-1], len(volume))


def triple_product(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a . (b x c)``, the determinant of three vectors whose components lie on axis 0."""
    return a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])


def jacobian_determinant(displacement: Tensor, affine: Tensor | None = None) -> Tensor:
    """Compute the determinant of the Jacobian of ``x + u(x)``, by central differences, one-sided at the border.

    Voxels and millimetres give the same. Above 1, tissue takes up more room where it is read than where it is shown;
    below 0 the map folds.

    Args:
        displacement: ``(K, 3, *S)``, at least 2 voxels along each axis.
        affine: ``(4, 4)``, voxels to the unit of the displacement; None where that is voxels.
    Returns: ``(K, *S)``.
    """
    grid = Grid(displacement.shape[2:], torch.eye(4) if affine is None else affine)
    axes = grid.affine[:3, :3].to(displacement)
    result = displacement.new_empty((displacement.shape[0], *grid.shape))  # a tuple: MetaTensor takes no other
    for u, determinant in zip(displacement, result):
        for rows in grid.slabs():
            # A layer more on either side, where there is one, for the central differences; two at the least.
            low, high = max(0, min(rows.start - 1, grid.shape[0] - 2)), min(grid.shape[0], rows.stop + 1)
            # With M the axes and G the derivative by voxel, the one by place is I + G M^-1: |M + G| / |M|.
            jacobian = gradient(u[None, :, low:high])[0] + axes[:, :, None, None, None]
            determinant[rows] = triple_product(*jacobian.unbind(1))[rows.start - low : rows.stop - low]
    return result / triple_product(*axes.unbind(1))


class Transform:
    """A map of points in mm, evaluated only where it is asked for."""

    @property
    def is_identity(self) -> bool:
        return False

    @property
    def lattice(self) -> Grid | None:
        """The grid between whose nodes the displacement is linear along each axis, within the field; None where it is
        linear everywhere."""
        return None

    def __call__(self, points: Tensor) -> Tensor:
        """Map points ``(..., 3)``."""
        raise NotImplementedError

    @property
    def inverse(self) -> "Transform":
        raise NotImplementedError

    def displacement(self, grid: Grid) -> Tensor:
        """``T(x) - x`` at the voxels of ``grid``: ``(3, *S)`` float32 mm."""
        result = torch.zeros(3, *grid.shape)
        if not self.is_identity:
            for rows in grid.slabs():
                points = grid.points(rows)
                result[:, rows] = (self(points) - points).movedim(-1, 0).float()
        return result


class AffineTransform(Transform):
    """An affine map, which stays a matrix.

    Args:
        matrix: ``(4, 4)``, RAS mm to RAS mm.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = torch.as_tensor(matrix, dtype=torch.float64).cpu()

    @cached_property
    def is_identity(self) -> bool:
        return torch.equal(self.matrix, torch.eye(4, dtype=torch.float64))

    def __call__(self, points: Tensor) -> Tensor:
        return _affine(self.matrix, points)

    @property
    def inverse(self) -> "AffineTransform":
        return self if self.is_identity else AffineTransform(torch.linalg.inv(self.matrix))


class DenseTransform(Transform):
    """``x + u(x)`` of a displacement field that is sampled on a grid, with the field of the inverse map beside it where
    that is known.

    Beyond the grid nothing is known of the field. There it fades from its border's value to 0, and leaves the place to
    the affine transform that it is composed with.

    Args:
        displacement, inverse_displacement: ``(3, *S)``, voxels of ``grid``; the second is None where it is not known.
        grid: where both are sampled.
        fade: distance over which the field fades, in multiples of its greatest length: 4 cannot fold, infinity holds
            the border's value.
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
        pieces = (field[:, rows].movedim(0, -1) for field in self._fields for rows in self.grid.slabs())
        return max(float(self._to_mm(piece).norm(dim=-1).max()) for piece in pieces)

    def _to_mm(self, voxels: Tensor) -> Tensor:
        linear = self.grid.affine.clone()
        linear[:3, 3] = 0
        return _affine(linear, voxels)

    def __call__(self, points: Tensor) -> Tensor:
        if self.is_identity:
            return points
        voxels = self.grid.voxels(points)
        moves = self._to_mm(interpolate(self.field, voxels.to(self.field.device)).to(points))
        last = torch.tensor(self.grid.shape, dtype=voxels.dtype) - 1
        beyond = voxels - voxels.clamp_min(0).minimum(last)
        if isfinite(self.fade) and beyond.any():
            distance = self._to_mm(beyond).norm(dim=-1, keepdim=True)
            moves = moves * (1 - distance / (self.fade * self._greatest_mm + 1e-9)).clamp_min(0)
        return points + moves

    @cached_property
    def inverse(self) -> "DenseTransform":
        """Raises ValueError where it is not known."""
        if self.inverse_field is None:
            raise ValueError(
                "inverse: expected a field with that of the inverse map beside it, got one alone; of a written "
                "registration, read inverse_ddf_KK to go back where ddf_KK leads, and the other way round"
            )
        return DenseTransform(self.inverse_field, self.field, self.grid, self.fade)


class ComposedTransform(Transform):
    """Transforms one after the other, the first one first."""

    def __init__(self, *transforms: Transform):
        parts = (p for t in transforms for p in (t.transforms if isinstance(t, ComposedTransform) else (t,)))
        self.transforms: tuple[Transform, ...] = tuple(t for t in parts if not t.is_identity)

    @property
    def is_identity(self) -> bool:
        return not self.transforms

    def __call__(self, points: Tensor) -> Tensor:
        for transform in self.transforms:
            points = transform(points)
        return points

    @property
    def lattice(self) -> Grid | None:
        """That of the first dense transform, carried to where the affine ones before it read it."""
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
