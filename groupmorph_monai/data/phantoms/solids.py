"""Shapes and textures as functions of position in mm, to render anatomy at arbitrary points."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...space.chunks import total
from ...space.filters import gaussian_filter
from ...space.sampling import sample


@dataclass
class Lattice:
    """A function of position, linearly interpolated from its values on a lattice.

    Args:
        values: ``(C, *L)``.
        origin_mm: position of the first value, ``(3,)``.
        step_mm: spacing of the lattice.
    """

    values: Tensor
    origin_mm: Tensor
    step_mm: float

    def __call__(self, points: Tensor) -> Tensor:
        """Sample values, ``(C, P)``, at ``points`` ``(3, P)``, mm; outside the lattice, its border values."""
        indices = (points - self.origin_mm[:, None]) / self.step_mm
        return sample(self.values[None], indices[None, :, :, None, None])[0, :, :, 0, 0]


def noise_lattice(rng: torch.Generator, cell_mm: float, channels: int, reach_mm: Sequence[float]) -> Lattice:
    """Draw smooth unit-variance noise with patches of about ``cell_mm``, up to ``reach_mm`` from the centre."""
    step = cell_mm / 2
    size = [int(2 * r / step) + 2 for r in reach_mm]
    values = gaussian_filter(torch.randn(1, channels, *size, generator=rng), 1.0)[0]
    return Lattice(values / values.std(), -torch.tensor(reach_mm), step)


def ellipsoid_depth(points: Tensor, centre: Sequence[float], radii: Sequence[float] | Tensor) -> Tensor:
    """Compute the depth below the surface of an ellipsoid, mm, positive inside, exact to first order near the surface,
    ``(3, *P)`` mm to ``(*P)``. An infinite radius makes a cylinder."""
    scaled = [(x - float(c)) / float(r) for x, c, r in zip(points, centre, radii)]
    norm = total(x.square() for x in scaled).sqrt()
    slope = total((x / float(r)).square() for x, r in zip(scaled, radii)).sqrt()
    return norm * (1 - norm) / slope.clamp_min(1e-6)


def ramp(x: Tensor, half_width: float) -> Tensor:
    """Evaluate a smoothstep from 0 at ``-half_width`` to 1 at ``half_width``."""
    t = (x * (0.5 / half_width) + 0.5).clamp(0, 1)
    return t * t * (3 - 2 * t)
