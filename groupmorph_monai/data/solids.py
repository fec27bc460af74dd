"""Shapes and textures as functions of place in mm, from which anatomy is drawn at any points."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..space.grid import sample
from ..space.lattice import gaussian_filter

__all__ = ["Lattice", "ellipsoid_depth", "noise_lattice", "ramp"]


@dataclass
class Lattice:
    """A function of place by its values on a lattice, linear in between.

    Args:
        values: ``(C, *L)``.
        origin_mm: place of the first value, ``(3,)``.
        step_mm: between values.
    """

    values: Tensor
    origin_mm: Tensor
    step_mm: float

    def __call__(self, points: Tensor) -> Tensor:
        """Values, ``(C, P)``, at ``points`` ``(3, P)``, mm; beyond the lattice those of its border."""
        places = (points - self.origin_mm[:, None]) / self.step_mm
        return sample(self.values[None], places[None, :, :, None, None])[0, :, :, 0, 0]


def noise_lattice(rng: torch.Generator, cell_mm: float, channels: int, reach_mm: Sequence[float]) -> Lattice:
    """Smooth noise of unit variance whose patches are about ``cell_mm`` wide, as far as ``reach_mm`` from the middle
    along each axis."""
    step = cell_mm / 2
    size = [int(2 * r / step) + 2 for r in reach_mm]
    values = gaussian_filter(torch.randn(1, channels, *size, generator=rng), 1.0)[0]
    return Lattice(values / values.std(), -torch.tensor(reach_mm), step)


def ellipsoid_depth(points: Tensor, centre: Sequence[float], radii: Sequence[float]) -> Tensor:
    """Depth below an ellipsoid's surface, mm, above 0 inside, exact to first order near the surface; an infinite radius
    makes a cylinder. ``(3, *P)`` mm to ``(*P)``."""
    norm = slope = 0.0
    for x, c, r in zip(points, centre, radii):
        scaled = (x - float(c)) / float(r)
        norm = norm + scaled.square()
        slope = slope + (scaled / float(r)).square()
    norm = norm.sqrt()
    return norm * (1 - norm) / slope.sqrt().clamp_min(1e-6)


def ramp(x: Tensor, half_width: float) -> Tensor:
    """0 below ``-half_width``, 1 above ``half_width``, and a smooth rise in between."""
    t = (x * (0.5 / half_width) + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)
