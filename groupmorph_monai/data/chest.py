"""The shape of a chest cavity and how it breathes, in closed form.

Points are ``(3, *P)`` mm from the centre of the field of view: to the right, to the front, upwards. At height z the
cavity is one outline, ``scale(z)`` times as large as at its base. With u = x / scale(z) and v = y / scale(z), a motion
that changes z alone and keeps (u, v) carries the cavity's surface onto itself: its contents slide along a wall that
does not follow, without a gap and without an overlap.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .phantom import uniform

__all__ = ["SPINE_MM", "Breath", "Cavity"]

_APEX_MM, _BASE_MM = 112.0, -100.0  # heights between which the displacement grows from nothing to that of the diaphragm
SPINE_MM = -48.0  # from the centre to the back; the ribs move about the spine


@dataclass(frozen=True)
class Cavity:
    """The inside of the ribs: a rounded box that is notched by the spine and tapers to the neck.

    Args:
        half_width_mm, half_depth_mm: of the outline at the base.
        notch: depth of the spine's notch, as a share of the half depth.
        shoulder_mm: height at which the cavity is half as narrow as it gets.
    """

    half_width_mm: float
    half_depth_mm: float
    notch: float
    shoulder_mm: float

    @classmethod
    def draw(cls, rng: torch.Generator) -> "Cavity":
        limits = ((110.0, 122.0), (66.0, 76.0), (0.54, 0.60), (68.0, 82.0))
        return cls(*[float(uniform(rng, *pair)) for pair in limits])

    def scale(self, z: Tensor) -> Tensor:
        return 0.42 + 0.58 * torch.sigmoid((self.shoulder_mm - z) / 22.0)

    def radius(self, points: Tensor) -> Tensor:
        """1 on the surface, below 1 inside, ``(*P)``."""
        scale = self.scale(points[2])
        u, v = points[0] / (scale * self.half_width_mm), points[1] / (scale * self.half_depth_mm)
        from_spine = torch.atan2(u, -v)
        outline = 1 - self.notch * torch.exp(-((from_spine / 0.35) ** 2))
        return (u.abs() ** 2.4 + v.abs() ** 2.4) ** (1 / 2.4) / outline

    def depth_mm(self, points: Tensor) -> Tensor:
        """Distance from the surface along the ray from the axis: above 0 inside, ``(*P)``."""
        return torch.hypot(points[0], points[1]) * (1 / self.radius(points).clamp_min(1e-3) - 1)


@dataclass(frozen=True)
class Breath:
    """The map from one phase to the template, a deep inspiration.

    The wall: ``x (1 + b h(z))`` and, about the spine, ``y (1 + a h(z))``, where h fades towards the neck. The cavity's
    contents: after that, at constant (u, v), ``z - L w(u, v) q(z)``, where q rises smoothly from 0 at the apex of the
    lungs to 1 at the diaphragm and stays there below; w lets the back move more than the front. Each step is a
    monotone function of one coordinate, and so has an inverse.

    Args:
        cavity: whose surface the contents slide along.
        lift_mm: L, by which the diaphragm is higher than in the template.
        widening: b and a.
        tilt: of w: towards the back, and towards the right.
    """

    cavity: Cavity
    lift_mm: float
    widening: tuple[float, float]
    tilt: tuple[float, float]

    @classmethod
    def draw_phases(cls, rng: torch.Generator, cavity: Cavity, number: int, max_motion_mm: float) -> list["Breath"]:
        """Phases from the end of inspiration to that of expiration, of which no two are multiples of one motion."""
        lift_mm = max_motion_mm * float(uniform(rng, 0.6, 1.0))
        phase = torch.arange(number) / max(number - 1, 1)
        # The template itself is no phase, so that none of the true maps is the identity.
        share = 0.1 + 0.9 * (0.5 - 0.5 * torch.cos(torch.pi * phase))
        share = (share + 0.04 * uniform(rng, -1, 1, (number,))).clamp_min(0.03)
        wide = uniform(rng, 0.2, 1.0, (2,)) * torch.tensor([0.015, 0.04]) * max_motion_mm / 25
        tilts = uniform(rng, 0.7, 1.3, (number, 2)) * torch.stack([uniform(rng, 0.1, 0.3), uniform(rng, -0.1, 0.1)])
        return [
            cls(cavity, lift_mm * float(c), tuple((wide * c).tolist()), tuple(tilt.tolist()))
            for c, tilt in zip(share, tilts)
        ]

    def wall(self, points: Tensor) -> Tensor:
        """Points of the phase's wall in the template, ``(3, *P)``."""
        x, y, z = points
        wide, deep = self._widened(z)
        return torch.stack([x * wide, SPINE_MM + (y - SPINE_MM) * deep, z])

    def contents(self, points: Tensor) -> Tensor:
        """Points of the phase's cavity in the template, ``(3, *P)``."""
        x, y, z = self.wall(points)
        scale = self.cavity.scale(z)
        moved = z - self._lift(x / scale, y / scale) * _rise(z)
        ratio = self.cavity.scale(moved) / scale
        return torch.stack([x * ratio, y * ratio, moved])

    def volume_ratio(self, points: Tensor) -> Tensor:
        """The determinant of the Jacobian of ``contents``, ``(*P)``: above 1 where the template is less dense."""
        x, y, z = self.wall(points)
        scale = self.cavity.scale(z)
        lift = self._lift(x / scale, y / scale)
        moved = z - lift * _rise(z)
        wide, deep = self._widened(z)
        return wide * deep * (self.cavity.scale(moved) / scale) ** 2 * (1 - lift * _slope(z))

    def from_template(self, points: Tensor, iterations: int = 80) -> Tensor:
        """The inverse of ``contents``: where the template's points, ``(3, *P)``, lie in the phase."""
        x, y, moved = points
        scale = self.cavity.scale(moved)
        u, v = x / scale, y / scale
        lift, z = self._lift(u, v), moved
        for _ in range(iterations):  # each shortens the error to less than 0.6 of it
            z = moved + lift * _rise(z)
        wide, deep = self._widened(z)
        scale = self.cavity.scale(z)
        return torch.stack([u * scale / wide, SPINE_MM + (v * scale - SPINE_MM) / deep, z])

    def _widened(self, z: Tensor) -> tuple[Tensor, Tensor]:
        fade = torch.sigmoid((60.0 - z) / 30.0)
        return 1 + self.widening[0] * fade, 1 + self.widening[1] * fade

    def _lift(self, u: Tensor, v: Tensor) -> Tensor:
        back, right = self.tilt
        return self.lift_mm * (0.8 - back * torch.tanh(v / 60.0) + right * torch.tanh(u / 80.0))


def _rise(z: Tensor) -> Tensor:
    t = ((_APEX_MM - z) / (_APEX_MM - _BASE_MM)).clamp(0, 1)
    return t**3 * (10 - 15 * t + 6 * t**2)


def _slope(z: Tensor) -> Tensor:
    """Derivative of `_rise`, 1/mm, at most 0 as z points upwards."""
    t = ((_APEX_MM - z) / (_APEX_MM - _BASE_MM)).clamp(0, 1)
    return -30 * (t * (1 - t)) ** 2 / (_APEX_MM - _BASE_MM)
