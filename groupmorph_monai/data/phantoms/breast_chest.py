"""The chest behind the breasts of a woman lying prone: muscles, ribs, lungs, and a beating heart.

Points are in RAS mm from the centre of the field of view; the front is at +y, the heart at -x.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from .phantom import uniform
from .solids import ellipsoid_depth

Layer = tuple[str, Tensor, float | Tensor]
_CENTRE = (0.0, -62.0, 0.0)
# Organs inside the ribs: centre, radii, tissue, kinetics; later ones cover earlier ones.
_ORGANS = (
    ((0.0, -70.0, 0.0), (30.0, 78.0, math.inf), "organ", "fat"),
    ((58.0, -70.0, -120.0), (92.0, 78.0, 80.0), "organ", "liver"),
    ((0.0, -136.0, 0.0), (21.0, 17.0, math.inf), "bone", "marrow"),
    ((0.0, -158.0, 0.0), (10.0, 8.0, math.inf), "organ", "gland"),
    ((-20.0, -112.0, 0.0), (11.0, 11.0, math.inf), "organ", "blood"),
)
_HEART = (-32.0, -30.0, -15.0)
_HEART_PARTS = (
    (_HEART, (52.0, 38.0, 50.0), "muscle"),
    ((-47.0, -40.0, -17.0), (25.0, 21.0, 34.0), "blood"),
    ((-12.0, -17.0, -12.0), (24.0, 15.0, 36.0), "blood"),
)


class Chest:
    """The chest wall and the organs behind the breasts.

    Args:
        rng: source of all random numbers.

    Attributes:
        pectoral_mm: thickness of the pectoral muscles.
    """

    def __init__(self, rng: torch.Generator):
        self.body_radii = (float(uniform(rng, 158, 172)), float(uniform(rng, 101, 109)), math.inf)
        self.cage_radii = (self.body_radii[0] - 20, self.body_radii[1] - 21, math.inf)
        self.pectoral_mm = float(uniform(rng, 8, 14))
        self.organ_scale, self.organ_shift = float(uniform(rng, 0.95, 1.1)), uniform(rng, -5, 5, (3,))
        self.beat_seed = int(torch.randint(2**31, (), generator=rng))

    def body_depth(self, points: Tensor) -> Tensor:
        """Compute the depth below the skin of the trunk without its breasts, mm."""
        return ellipsoid_depth(points, _CENTRE, self.body_radii)

    def cage_depth(self, points: Tensor) -> Tensor:
        """Compute the depth below the ribs' outer surface, mm, ``(3, P)`` to ``(P,)``."""
        return ellipsoid_depth(points, _CENTRE, self.cage_radii)

    def muscle_depth(self, points: Tensor, cage: Tensor) -> Tensor:
        """Compute the depth below the muscles' surface, mm, at ``points`` ``(3, P)`` whose `cage_depth` is ``cage``."""
        x, y, _ = points
        front = torch.sigmoid((y - _CENTRE[1] - 20) / 12)
        pectoral = self.pectoral_mm * torch.sigmoid((x.abs() - 14) / 3) * torch.sigmoid((118 - x.abs()) / 8)
        return cage + 12 + front * (pectoral - 12)

    def layers(
        self, points: Tensor, cage: Tensor, edge: Callable[[Tensor], Tensor], signal: Mapping[str, float], k: int
    ) -> Iterator[Layer]:
        """Yield the layers that cover the muscle, in order: tissue, its share ``(P,)``, and its signal.

        Args:
            points: ``(3, P)`` mm.
            cage: `cage_depth` of the points, ``(P,)``.
            edge: converts depth in mm to a share.
            signal: signal of each tissue at scan ``k``.
        """
        x, y, z = points
        rib = torch.cos(2 * math.pi * (z + 0.35 * x.abs() + 0.3 * y) / 27) * 9 - 1
        sternum = torch.where(y > _CENTRE[1], 15 - x.abs(), rib)
        yield "bone", edge(torch.minimum(torch.maximum(rib, sternum), 4 - (cage - 5).abs())), signal["marrow"]
        inside = edge(cage - 10)
        yield "lung", inside, signal["lung"]
        scaled = (points - self.organ_shift[:, None]) * self.organ_scale
        for centre, radii, tissue, kind in _ORGANS:
            yield tissue, inside * edge(ellipsoid_depth(scaled, centre, radii)), signal[kind]
        resting = self._resting(scaled, k)
        for centre, radii, kind in _HEART_PARTS:
            yield "heart", inside * edge(ellipsoid_depth(resting, centre, radii)), signal[kind]

    def _resting(self, points: Tensor, k: int) -> Tensor:
        """Map points to the heart at rest. Every scan shows the heart at a random phase of its beat."""
        rng = torch.Generator().manual_seed(self.beat_seed + k)
        contraction, shift = float(uniform(rng, 1.0, 1.16)), uniform(rng, -3, 3, (3, 1))
        middle = torch.tensor(_HEART)[:, None]
        return middle + contraction * (points - middle) + shift
