"""Tissues of the chest in Hounsfield units, as functions of continuous coordinates.

Points are ``(3, *P)`` mm in the template of `chest`: to the right, to the front, upwards. Sizes are those of an adult.
Edges are blurred as by the scanner's point spread function: ``edge_mm`` is about a fifth of their 10 to 90 % width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chest import SPINE_MM, Cavity
from .phantom import Texture, uniform

AIR, FAT, BLOOD, MUSCLE, LIVER = -1000.0, -95.0, 42.0, 55.0, 62.0
# In the template's lungs, at deepest inspiration; both become denser during expiration.
VESSEL, LESION = 0.0, -10.0
MARROW, CORTEX, DISC, CARTILAGE = 230.0, 750.0, 90.0, 110.0
_RIBS_APART_MM, _VERTEBRAE_APART_MM = 25.0, 24.0
# Great vessels and oesophagus: radius, start and end (x, y, z).
_MEDIASTINAL_TUBES = (
    (14.0, (8, 18, -10), (6, 14, 34)),  # ascending aorta
    (12.0, (6, 14, 36), (-20, -26, 40)),  # arch
    (11.0, (-24, -34, 40), (-24, -34, -140)),  # descending aorta
    (9.0, (22, 12, -5), (18, 8, 140)),  # superior vena cava
    (12.0, (-14, 24, -5), (-8, 8, 22)),  # pulmonary trunk
    (6.0, (-8, -26, 140), (-8, -26, -140)),  # oesophagus
    (6.0, (-22, 4, 45), (-30, 2, 140)),  # left carotid
)


def soft(distance_mm: Tensor, edge_mm: float) -> Tensor:
    """Compute the share of a voxel inside a shape from the signed distance to the border, positive inside."""
    return torch.sigmoid(distance_mm / edge_mm)


def _ellipsoid_mm(points: Tensor, centre: Sequence[float], radii: Sequence[float]) -> Tensor:
    """Approximate the distance from the border, positive inside."""
    scaled = sum(((p - c) / r) ** 2 for p, c, r in zip(points, centre, radii))
    return (1 - scaled.sqrt()) * min(radii)


def _tube_mm(points: Tensor, radius: float, start: Sequence[float], end: Sequence[float]) -> Tensor:
    along = [b - a for a, b in zip(start, end)]
    share = sum((p - a) * d for p, a, d in zip(points, start, along)) / sum(d * d for d in along)
    share = share.clamp(0, 1)
    return radius - sum((p - a - share * d) ** 2 for p, a, d in zip(points, start, along)).sqrt()


def _over(below: Tensor | float, value: Tensor | float, share: Tensor) -> Tensor:
    return below + (value - below) * share


@dataclass(frozen=True)
class Trunk:
    """Shape of the chest wall.

    Args:
        body_mm: half width and half depth.
        fat_mm: thickness of the subcutaneous fat.
        rib_tilt: downward slope of the ribs towards the front.
        ribs_mm: height of one rib at the spine.
    """

    body_mm: tuple[float, ...]
    fat_mm: float
    rib_tilt: float
    ribs_mm: float

    @classmethod
    def draw(cls, rng: torch.Generator, cavity: Cavity) -> "Trunk":
        body = torch.tensor([cavity.half_width_mm, cavity.half_depth_mm]) + uniform(rng, 26, 36, (2,))
        limits = ((8.0, 18.0), (0.3, 0.5), (0.0, _RIBS_APART_MM))
        return cls(tuple(body.tolist()), *[float(uniform(rng, *pair)) for pair in limits])


@dataclass(frozen=True)
class Tissues:
    """The tissues of one chest.

    Args:
        cavity: the space inside the ribs.
        trunk: the chest wall around it.
        domes_mm: heights of the right and left dome of the diaphragm above its rim.
        heart_mm: half axes of the heart.
        density: density of the lung parenchyma, g/ml.
        texture: smooth noise of unit variance, defined up to 60 mm beyond the field of view.
    """

    cavity: Cavity
    trunk: Trunk
    domes_mm: tuple[float, ...]
    heart_mm: tuple[float, ...]
    density: float
    texture: Texture

    @classmethod
    def draw(cls, rng: torch.Generator, cavity: Cavity, extent_mm: Sequence[float]) -> "Tissues":
        trunk = Trunk.draw(rng, cavity)
        domes = uniform(rng, 0.9, 1.1, (2,)) * torch.tensor([68.0, 56.0])
        heart = uniform(rng, 0.9, 1.1, (3,)) * torch.tensor([50.0, 40.0, 46.0])
        density, seed = float(uniform(rng, 0.14, 0.2)), int(torch.randint(2**30, (), generator=rng))
        reach = [e + 120 for e in extent_mm]
        texture = Texture(seed, reach, -torch.tensor(reach).view(3, 1, 1, 1) / 2)
        return cls(cavity, trunk, tuple(domes.tolist()), tuple(heart.tolist()), density, texture)

    def parenchyma(self, points: Tensor) -> Tensor:
        """Compute the density of the template's lung without vessels, g/ml, higher at the back because of gravity."""
        gravity = 1 - 0.3 * (points[1] / 70.0).clamp(-1, 1)
        fine = 1 + 0.1 * self.texture(0, 14.0, points) + 0.12 * self.texture(1, 3.5, points)
        return self.density * gravity * fine.clamp(0.6, 1.4)

    def lung_mm(self, points: Tensor) -> Tensor:
        """Compute the distance from the inner borders of the lungs and the diaphragm, positive inside a lung."""
        x, y, z = points
        between = 13 + 18 * torch.exp(-(((y + 10) / 32) ** 2))
        medial = x.abs() - between * self.cavity.scale(z)
        apex = 0.6 * (112 - 25 * self.cavity.radius(points) ** 2 - z)
        lung = torch.minimum(torch.minimum(medial, apex), 0.7 * (z - self.diaphragm_mm(points)))
        for radius, start, end in _MEDIASTINAL_TUBES:
            lung = torch.minimum(lung, -_tube_mm(points, radius + 2, start, end))
        return torch.minimum(lung, -self._heart_mm(points) - 3)

    def diaphragm_mm(self, points: Tensor) -> Tensor:
        """Compute the height of the diaphragm."""
        x, y = points[0], points[1]
        right, left = [
            h * torch.exp(-(((x - c) / 46) ** 2) - ((y - 8) / 50) ** 2) for h, c in zip(self.domes_mm, (56.0, -56.0))
        ]
        return -110 + right + left

    def _heart_mm(self, points: Tensor) -> Tensor:
        return _ellipsoid_mm(points, (-22, 14, -42), self.heart_mm)

    def around_lungs(self, points: Tensor, edge_mm: float) -> Tensor:
        """Compute HU of the cavity outside the lungs: mediastinum, heart, liver, stomach, ``(*P)``."""
        x, y, z = points
        wavy = 10 * self.texture(2, 12.0, points)
        hu = torch.full_like(x, FAT) + wavy
        for tube in _MEDIASTINAL_TUBES:
            hu = _over(hu, BLOOD, soft(_tube_mm(points, *tube), edge_mm))
        hu = _over(hu, BLOOD + 0.3 * wavy, soft(self._heart_mm(points), edge_mm))
        under = self.diaphragm_mm(points) - z
        organ = _over(LIVER + 0.4 * wavy, MUSCLE - 10 + 0.4 * wavy, soft(-20 - x, 2 * edge_mm))
        gap = _over(organ, FAT, soft(5 - (x + 20 + 0.1 * y).abs(), edge_mm))
        bubble = _ellipsoid_mm(points, (-52, 28, self.domes_mm[1] - 138), (24, 26, 14))
        gap = _over(gap, AIR + 40, soft(bubble, edge_mm))
        return _over(hu, _over(gap, MUSCLE, soft(3 - under, edge_mm)), soft(under, edge_mm))

    def wall(self, points: Tensor, edge_mm: float) -> Tensor:
        """Compute HU of the chest wall and the air around the body, ``(*P)``."""
        x, y, z = points
        outside = -self.cavity.depth_mm(points)
        scaled = ((x / self.trunk.body_mm[0]).abs() ** 2.3 + (y / self.trunk.body_mm[1]).abs() ** 2.3) ** (1 / 2.3)
        under_skin = torch.hypot(x, y) * (1 / scaled.clamp_min(1e-3) - 1)
        hu = _over(MUSCLE, FAT, soft(self.texture(3, 11.0, points) - 1.1, 0.15))
        hu = _over(hu, FAT + 8 * self.texture(4, 10.0, points), soft(self.trunk.fat_mm - under_skin, edge_mm))
        hu = _over(hu, MUSCLE, soft(2 - under_skin, edge_mm))
        hu = self._ribs(hu, points, outside, edge_mm)
        hu = self._shoulder_blades(hu, points, edge_mm)
        breastbone = torch.minimum(18 - x.abs(), 5 - (outside - 10).abs())
        hu = self._bone(hu, torch.where((y > 0) & (z < 75), breastbone, -9.0), 2.0, edge_mm)
        return _over(AIR, self._spine(hu, points, edge_mm), soft(under_skin, edge_mm))

    @staticmethod
    def _bone(hu: Tensor, inside_mm: Tensor, cortex_mm: float, edge_mm: float) -> Tensor:
        hu = _over(hu, CORTEX, soft(inside_mm, edge_mm))
        return _over(hu, MARROW, soft(inside_mm - cortex_mm, edge_mm))

    def _ribs(self, hu: Tensor, points: Tensor, outside: Tensor, edge_mm: float) -> Tensor:
        slanted = points[2] + self.trunk.rib_tilt * (points[1] - SPINE_MM) - self.trunk.ribs_mm
        along = torch.remainder(slanted, _RIBS_APART_MM) - _RIBS_APART_MM / 2
        inside = (1 - torch.hypot((outside - 7) / 4.0, along / 6.5)) * 4.5
        front = soft(points[1] - 0.6 * self.cavity.half_depth_mm, 2.0)  # part of the ribs that is cartilage
        return _over(self._bone(hu, inside, 1.4, edge_mm), _over(hu, CARTILAGE, soft(inside, edge_mm)), front)

    def _shoulder_blades(self, hu: Tensor, points: Tensor, edge_mm: float) -> Tensor:
        x, y, z = (
            points[0].abs() - self.cavity.half_width_mm + 28,
            points[1] + self.trunk.body_mm[1] - 24,
            points[2] - 60,
        )
        across, along = 0.5 * x - 0.87 * y, 0.87 * x + 0.5 * y
        plate = torch.minimum(3 - across.abs(), torch.minimum(30 - along.abs() - 0.25 * z.abs(), 55 - z.abs()))
        return self._bone(hu, plate, 1.8, edge_mm)

    def _spine(self, hu: Tensor, points: Tensor, edge_mm: float) -> Tensor:
        x, y, z = points[0], points[1] - SPINE_MM, points[2]
        along = (torch.remainder(z, _VERTEBRAE_APART_MM) - _VERTEBRAE_APART_MM / 2).abs()
        body = (1 - torch.hypot(x / 18, y / 15)) * 15
        vertebra = torch.minimum(body, 9 - along)
        hu = _over(hu, DISC, soft(body, edge_mm))
        hu = self._bone(hu, vertebra, 1.5, edge_mm)
        arch = 14 - torch.hypot(x, y + 25)
        process = torch.minimum(4 - x.abs(), torch.minimum(-34 - y, y + 54))
        beside = torch.minimum(34 - x.abs(), 4 - (y + 26).abs())
        behind = torch.maximum(arch, torch.minimum(torch.maximum(process, beside), 7 - along))
        hu = self._bone(hu, torch.where(y < -13, behind, -9.0), 1.8, edge_mm)
        return _over(hu, 30.0, soft(8.5 - torch.hypot(x, y + 25), edge_mm))
