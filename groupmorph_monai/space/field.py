"""Vector fields with their lattice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Self, TypeVar

import torch
from torch import Tensor

from .lattice import Lattice, coarsen
from .sampling import full_precision, multiply_axes, placed_once


@dataclass(frozen=True, eq=False)
class Field:
    """K vector fields on a lattice, in voxels of the lattice. Arithmetic is that of the values, which broadcast over
    batch and timepoints; both fields must be of one kind and on one lattice.

    Args:
        values: ``(B, K, D, *C)``, float32 or float64; half precision is converted to float32. C is the lattice's shape.
        lattice: lattice in the image.

    Raises:
        ValueError: If the values are not on the lattice.
    """

    values: Tensor
    lattice: Lattice

    def __post_init__(self) -> None:
        if tuple(self.values.shape[3:]) != self.lattice.shape:
            raise ValueError(
                f"values: expected spatial shape {self.lattice.shape} for size {self.lattice.size} and step "
                f"{self.lattice.step}, got {tuple(self.values.shape[3:])}"
            )
        if self.values.dtype in (torch.float16, torch.bfloat16):
            object.__setattr__(self, "values", self.values.float())

    @classmethod
    def on_voxels(cls, values: Tensor) -> Self:
        """Return the field whose values ``(B, K, D, *S)`` lie on every voxel of an image of size S."""
        return cls(values, Lattice(tuple(values.shape[3:])))

    @property
    def timepoint_count(self) -> int:
        """Number of timepoints, K."""
        return self.values.shape[1]

    def with_values(self, values: Tensor) -> Self:
        """Return a field of the same kind with other values on the same lattice."""
        return replace(self, values=values)

    def timepoints(self, chunk: slice) -> Self:
        """Return the fields of a chunk of timepoints."""
        return self.with_values(self.values[:, chunk])

    def _values_of(self, other: Self) -> Tensor:
        if other.lattice != self.lattice:
            raise ValueError(f"lattice: expected that of the other field, {self.lattice}, got {other.lattice}")
        return other.values

    def __add__(self, other: Self) -> Self:
        return self.with_values(self.values + self._values_of(other))

    def __sub__(self, other: Self) -> Self:
        return self.with_values(self.values - self._values_of(other))

    def __neg__(self) -> Self:
        return self.with_values(-self.values)

    def __mul__(self, factor: float) -> Self:
        return self.with_values(self.values * factor)

    def __truediv__(self, divisor: float) -> Self:
        return self.with_values(self.values / divisor)

    def at(self, step: int) -> Self:
        """Resample the field to every ``step``-th voxel: linear interpolation, or smoothing and subsampling.

        Vectors are rescaled to voxels of the new lattice. Voxels beyond the last one of the lattice take its value.
        """
        own, lattice = self.lattice.step, self.lattice.at(step)
        if step == own:
            return self
        if own % step == 0:
            return replace(self, values=_interpolated(self.values, own // step, lattice.shape), lattice=lattice)
        if step % own:
            return self.at(gcd(step, own)).at(step)
        factor = step // own
        coarse = coarsen(self.values.flatten(1, 2), factor).unflatten(1, self.values.shape[1:3])
        return replace(self, values=coarse / factor, lattice=lattice)

    def on_image(self, every: int = 1) -> Tensor:
        """Return the values on every ``every``-th voxel of the image, ``(B, K, D, *ceil(size / every))``, in image
        voxels."""
        return _interpolated(self.values, self.lattice.step, self.lattice.size, every)


class VelocityField(Field):
    """Stationary velocities, per unit of time. T velocities whose flows are composed are ``(B, K, T * D, *C)``."""


class DisplacementField(Field):
    """Displacements ``(B, K, D, *C)``, one component for each axis: point x of the lattice is mapped to ``x + ddf(x)``.

    Raises:
        ValueError: If there is another number of components.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        components, axes = self.values.shape[2], len(self.lattice.size)
        if components != axes:
            raise ValueError(f"values: expected displacements with {axes} components, got {components}")


AnyField = TypeVar("AnyField", bound=Field)


@full_precision
def _interpolated(values: Tensor, factor: int, size: Sequence[int], every: int = 1) -> Tensor:
    """Interpolate vectors linearly from a lattice, whose voxel i lies on voxel ``factor * i`` of a grid of ``size``, to
    every ``every``-th voxel of the grid, in whose voxels the result is."""
    if factor == 1:
        thinned = [slice(None)] * 3 + [slice(None, None, every)] * len(size)
        return values[tuple(thinned)]
    # Products with narrow matrices are several times as fast on a CPU as F.interpolate.
    coarse = values.shape[3:]
    matrices = [placed_once(_interpolation, n, c, factor, like=values)[::every] for n, c in zip(size, coarse)]
    return multiply_axes(factor * values, matrices)


def _interpolation(size: int, coarse: int, factor: int) -> Tensor:
    """Return the matrix of linear interpolation along an axis, ``(size, coarse)`` float64; coarse voxel i lies on voxel
    ``factor * i``."""
    position = (torch.arange(size, dtype=torch.float64) / factor).clamp_max(coarse - 1)
    return (1 - (position[:, None] - torch.arange(coarse)).abs()).clamp_min(0)
