"""Shape and breathing motion of a chest cavity, in closed form.

Points are ``(3, *P)`` mm from the centre of the field of view: to the right, to the front, upwards. At height z the
outline of the cavity is that at its base, scaled by ``scale(z)``. With u = x / scale(z) and v = y / scale(z), a motion
that changes z and keeps (u, v) maps the surface of the cavity onto itself: the contents slide along the wall without
gaps or overlaps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .phantom import uniform

_APEX_MM, _BASE_MM = 112.0, -100.0  # heights between which the displacement grows from 0 to that of the diaphragm
SPINE_MM = -48.0  # y coordinate of the spine, about which the ribs move


@dataclass(frozen=True)
class Cavity:
    """The space inside the ribs: a rounded box with a notch for the spine, tapering towards the neck.

    Args:
        half_width_mm, half_depth_mm: half width and half depth of the outline at the base.
        notch: depth of the notch for the spine, as a share of the half depth.
        shoulder_mm: height at which half of the tapering is reached.
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
        """Compute the relative radius ``(*P)``, which is 1 on the surface and below 1 inside."""
        scale = self.scale(points[2])
        u, v = points[0] / (scale * self.half_width_mm), points[1] / (scale * self.half_depth_mm)
        from_spine = torch.atan2(u, -v)
        outline = 1 - self.notch * torch.exp(-((from_spine / 0.35) ** 2))
        return (u.abs() ** 2.4 + v.abs() ** 2.4) ** (1 / 2.4) / outline

    def depth_mm(self, points: Tensor) -> Tensor:
        """Compute the distance from the surface along the ray from the axis, positive inside, ``(*P)``."""
        return torch.hypot(points[0], points[1]) * (1 / self.radius(points).clamp_min(1e-3) - 1)


@dataclass(frozen=True)
class Breath:
    """The transform from one breathing phase to the template, which is at deep inspiration.

    The wall moves to ``x (1 + b h(z))`` and, about the spine, ``y (1 + a h(z))``, where h vanishes towards the neck.
    The contents of the cavity then move, at constant (u, v), to ``z - L w(u, v) q(z)``, where q rises smoothly from 0
    at the apex of the lungs to 1 at the diaphragm and below; w makes the back move more than the front. Each step is a
    monotone function of one coordinate and therefore invertible.

    Args:
        cavity: cavity along whose surface the contents slide.
        lift_mm: L, the elevation of the diaphragm relative to the template.
        widening: b and a.
        tilt: increase of w towards the back and towards the right.
    """

    cavity: Cavity
    lift_mm: float
    widening: tuple[float, float]
    tilt: tuple[float, float]

    @classmethod
    def draw_phases(cls, rng: torch.Generator, cavity: Cavity, number: int, max_motion_mm: float) -> list["Breath"]:
        """Draw phases from end inspiration to end expiration, whose motions are not multiples of each other."""
        lift_mm = max_motion_mm * float(uniform(rng, 0.6, 1.0))
        phase = torch.arange(number) / max(number - 1, 1)
        # No phase equals the template, so that no true transform is the identity.
        share = 0.1 + 0.9 * (0.5 - 0.5 * torch.cos(torch.pi * phase))
        share = (share + 0.04 * uniform(rng, -1, 1, (number,))).clamp_min(0.03)
        wide = uniform(rng, 0.2, 1.0, (2,)) * torch.tensor([0.015, 0.04]) * max_motion_mm / 25
        tilts = uniform(rng, 0.7, 1.3, (number, 2)) * torch.stack([uniform(rng, 0.1, 0.3), uniform(rng, -0.1, 0.1)])
        return [
            cls(cavity, lift_mm * float(c), tuple((wide * c).tolist()), tuple(tilt.tolist()))
            for c, tilt in zip(share, tilts)
        ]

    def wall(self, points: Tensor) -> Tensor:
        """Map points of the wall to the template, ``(3, *P)``."""
        x, y, z = points
        wide, deep = self._widened(z)
        return torch.stack([x * wide, SPINE_MM + (y - SPINE_MM) * deep, z])

    def contents(self, points: Tensor) -> Tensor:
        """Map points of the cavity to the template, ``(3, *P)``."""
        x, y, z = self.wall(points)
        scale = self.cavity.scale(z)
        template_z = z - self._lift(x / scale, y / scale) * _rise(z)
        ratio = self.cavity.scale(template_z) / scale
        return torch.stack([x * ratio, y * ratio, template_z])

    def volume_ratio(self, points: Tensor) -> Tensor:
        """Compute the Jacobian determinant of ``contents``, ``(*P)``, above 1 where the template is less dense."""
        x, y, z = self.wall(points)
        scale = self.cavity.scale(z)
        lift = self._lift(x / scale, y / scale)
        template_z = z - lift * _rise(z)
        wide, deep = self._widened(z)
        return wide * deep * (self.cavity.scale(template_z) / scale) ** 2 * (1 - lift * _slope(z))

    def from_template(self, points: Tensor) -> Tensor:
        """Map points of the template, ``(3, *P)``, to the phase: the inverse of ``contents``."""
        x, y, template_z = points
        scale = self.cavity.scale(template_z)
        u, v = x / scale, y / scale
        lift, z = self._lift(u, v), template_z
        for _ in range(80):  # a contraction by less than 0.6
            z = template_z + lift * _rise(z)
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
    """Compute the derivative of `_rise`, 1/mm, at most 0 as z points upwards."""
    t = ((_APEX_MM - z) / (_APEX_MM - _BASE_MM)).clamp(0, 1)
    return -30 * (t * (1 - t)) ** 2 / (_APEX_MM - _BASE_MM)
