"""Both breasts of a woman lying prone and what is behind them, as functions of place, for `make_breast`.

Places are RAS mm from the middle of the field of view: the nipples lie along +y, the heart at -x.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..space.lattice import gaussian_filter
from .breast_vessels import Lattice, grow_vessels, vessel_lattice
from .phantom import LESION_KINETICS, signal_curve, uniform

__all__ = ["BREAST_TISSUES", "BreastAnatomy"]

# T10 (s), proton density, Ktrans (1/min), ve, vp. Fat takes up nothing; gland lies between its two extremes.
_KINETICS = {
    "fat": (0.38, 1.0, 0.0, 0.10, 0.0),
    "gland": (1.40, 0.75, 0.003, 0.30, 0.008),
    "active gland": (1.40, 0.75, 0.06, 0.40, 0.03),
    "skin": (1.10, 0.70, 0.03, 0.30, 0.02),
    "muscle": (1.30, 0.80, 0.02, 0.15, 0.01),
    "marrow": (0.55, 0.55, 0.01, 0.10, 0.01),
    "lung": (1.20, 0.12, 0.001, 0.10, 0.05),
    "liver": (0.80, 0.75, 0.25, 0.40, 0.05),
    "blood": (1.65, 0.90, 0.001, 0.10, 0.55),
}
_LESION = (1.5, 0.8, None, None, 0.03)
BREAST_TISSUES = ("air", "fat", "gland", "vessel", "lesion", "muscle", "bone", "lung", "organ", "heart", "skin")
_REACH_MM = torch.tensor([200.0, 200.0, 110.0])  # of the lattices, from the middle
_BODY_CENTRE = (0.0, -62.0, 0.0)
_HEART_CENTRE, _HEART_RADII = (-32.0, -30.0, -15.0), (52.0, 38.0, 50.0)
# Behind the ribs: centre, radii, tissue, kinetics, in mm; the latter cover the former.
_ORGANS = (
    ((0.0, -70.0, 0.0), (30.0, 78.0, math.inf), "organ", "fat"),
    ((58.0, -70.0, -120.0), (92.0, 78.0, 80.0), "organ", "liver"),
    ((0.0, -136.0, 0.0), (21.0, 17.0, math.inf), "bone", "marrow"),
    ((0.0, -158.0, 0.0), (10.0, 8.0, math.inf), "organ", "gland"),
    ((-20.0, -112.0, 0.0), (11.0, 11.0, math.inf), "organ", "blood"),
)
_HEART_PARTS = (
    (_HEART_CENTRE, _HEART_RADII, "muscle"),
    ((-47.0, -40.0, -17.0), (25.0, 21.0, 34.0), "blood"),
    ((-12.0, -17.0, -12.0), (24.0, 15.0, 36.0), "blood"),
)


def _ellipsoid_depth(points: Tensor, centre: Tensor | tuple, radii: Tensor | tuple) -> Tensor:
    """Depth below an ellipsoid's surface, mm, above 0 inside, exact to first order near the surface; an infinite radius
    makes a cylinder. ``(3, P)`` to ``(P,)``."""
    scaled = [(x - float(c)) / float(r) for x, c, r in zip(points, centre, radii)]
    norm = sum(s * s for s in scaled).sqrt()
    slope = sum((s / float(r)) ** 2 for s, r in zip(scaled, radii)).sqrt()
    return norm * (1 - norm) / slope.clamp_min(1e-6)


class BreastAnatomy:
    """The template: tissue and its signal over time.

    Args:
        rng: source of all random numbers.
        since_arrival_s: times of the K scans, from the contrast agent's arrival.
        lesions: number of lesions; their curves cycle through ``LESION_KINETICS``.
        edge_mm: width of borders between tissues.
    Attributes:
        centres, radii: of the left and the right breast, ``(2, 3)`` mm.
        bifurcations: of vessels, ``(B, 3)`` mm.
        lesion_centres, lesion_radii: ``(L, 3)`` mm. A lesion's volume is that of its ellipsoid, as its shape comes from
            that by shears.
    """

    def __init__(self, rng: torch.Generator, since_arrival_s: np.ndarray, lesions: int, edge_mm: float):
        self.edge_mm = edge_mm
        jitter = uniform(rng, -1, 1, (2, 3))
        self.centres = torch.tensor([[-78.0, 38.0, 5.0], [78.0, 38.0, 5.0]]) + jitter * torch.tensor([4.0, 3.0, 6.0])
        size = uniform(rng, -1, 1, (1, 3)) + 0.3 * uniform(rng, -1, 1, (2, 3))
        self.radii = torch.tensor([64.0, 82.0, 72.0]) + size * torch.tensor([6.0, 12.0, 6.0])
        self.body_radii = (float(uniform(rng, 158, 172)), float(uniform(rng, 101, 109)), math.inf)
        self.cage_radii = (self.body_radii[0] - 20, self.body_radii[1] - 21, math.inf)
        self.density, self.sharpness = float(uniform(rng, -0.6, 0.9)), float(uniform(rng, 3, 6))
        self.skin_mm, self.pectoral_mm = float(uniform(rng, 1.6, 2.4)), float(uniform(rng, 8, 14))
        self.coarse, self.middle, self.fine = (_noise(rng, cell, n) for cell, n in ((40.0, 3), (13.0, 2), (5.0, 2)))

        # Half of the patients are scanned with fat suppression; how much the gland takes up differs as much.
        suppressed, uptake = float(uniform(rng, 0.15, 0.3)), float(uniform(rng, 0.3, 1.6))
        kinetics = dict(_KINETICS)
        if float(uniform(rng, 0, 1)) < 0.5:
            kinetics["fat"] = (kinetics["fat"][0], suppressed, *kinetics["fat"][2:])
        t10, density, ktrans, *rest = kinetics["active gland"]
        kinetics["active gland"] = (t10, density, ktrans * uptake, *rest)
        self.signal = {name: signal_curve(rng, since_arrival_s, values, 0.15) for name, values in kinetics.items()}

        trees = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        grown = [grow_vessels(trees, c, r) for c, r in zip(self.centres, self.radii)]
        self.bifurcations = torch.from_numpy(np.concatenate([tree[2] for tree in grown])).float()
        self.vessels = vessel_lattice(*(np.concatenate([tree[n] for tree in grown]) for n in (0, 1)))
        self.beats = [(float(uniform(rng, 1.0, 1.16)), uniform(rng, -3, 3, (3,))) for _ in since_arrival_s]
        self._place_lesions(rng, lesions)
        self.lesion_signal = []
        for number in range(lesions):
            ktrans, ve = list(LESION_KINETICS.values())[number % len(LESION_KINETICS)]
            values = (*_LESION[:2], ktrans, ve, _LESION[4])
            self.lesion_signal.append(signal_curve(rng, since_arrival_s, values, 0.1))

    def _place_lesions(self, rng: torch.Generator, lesions: int) -> None:
        """Within the breasts, away from skin, muscle and each other."""
        centres, radii = [], []
        while len(centres) < lesions:
            radius = uniform(rng, 5, 11) * uniform(rng, 0.8, 1.25, (3,))
            side = int(torch.randint(2, (), generator=rng))
            centre = self.centres[side] + self.radii[side] * uniform(rng, -0.7, 0.7, (3,))
            room = float(radius.max()) + 5
            clear = all((centre - c).norm() > room + r.max() for c, r in zip(centres, radii))
            at = centre[:, None]
            if clear and float(self.depth(at)) > room and float(self._cage_depth(at)) < -room - self.pectoral_mm:
                centres.append(centre)
                radii.append(radius)
        empty = torch.zeros(0, 3)
        self.lesion_centres, self.lesion_radii = (torch.stack(v) if v else empty for v in (centres, radii))
        self.lesion_phases = uniform(rng, 0, 6, (lesions, 3))

    def depth(self, points: Tensor) -> Tensor:
        """Depth below the skin, mm, above 0 inside the body: ``(3, P)`` to ``(P,)``."""
        softness = 7.0
        surfaces = [_ellipsoid_depth(points, _BODY_CENTRE, self.body_radii)]
        surfaces += [_ellipsoid_depth(points, c, r) for c, r in zip(self.centres, self.radii)]
        surface = softness * torch.logsumexp(torch.stack(surfaces) / softness, dim=0)
        surface = surface + 1.5 * self.coarse(points)[0]
        nipples = [_ellipsoid_depth(points, c + torch.tensor([0.0, 1.0, 0.0]) * (r + 1), (5.5, 7.5, 5.5)) for c, r in self._breasts()]
        return 1.5 * torch.logsumexp(torch.stack([surface, *nipples]) / 1.5, dim=0)

    def _breasts(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.centres, self.radii)

    def _cage_depth(self, points: Tensor) -> Tensor:
        return _ellipsoid_depth(points, _BODY_CENTRE, self.cage_radii)

    def _edge(self, depth: Tensor) -> Tensor:
        return torch.sigmoid(depth / self.edge_mm)

    def _core(self, points: Tensor) -> Tensor:
        """1 at the middle of a breast, 0 on its skin, below 0 outside."""
        norms = [sum(((x - float(m)) / float(s)) ** 2 for x, m, s in zip(points, c, r)) for c, r in self._breasts()]
        return 1 - torch.stack(norms).amin(dim=0).sqrt()

    def gland(self, points: Tensor, depth: Tensor) -> Tensor:
        """Share of fibroglandular tissue, ``(P,)``."""
        _, _, ducts = self._streaks(points)
        rough = ducts + 0.45 * self.fine(points)[0]
        share = torch.sigmoid(self.sharpness * (rough + 3.5 * (self._core(points) - 0.35) + self.density))
        return share * torch.sigmoid((depth - 6 - 2 * ducts) / 1.5) * self._edge(-self._cage_depth(points) - self.pectoral_mm - 4)

    def _streaks(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where the gland is active, the ligaments, and the lobes, which run towards the nipple."""
        stretched = points * torch.tensor([1.0, 0.55, 1.0])[:, None]
        septa, lobes = self.middle(stretched)
        return torch.sigmoid(2 * self.coarse(points)[1]), septa, lobes

    def layers(self, points: Tensor, depth: Tensor, k: int) -> Iterator[tuple[str, Tensor, Tensor | float]]:
        """What covers the fat, one after the other: tissue, its share ``(P,)``, its signal at scan k, lesion number."""
        at = {name: float(curve[k]) for name, curve in self.signal.items()}
        active, septa, _ = self._streaks(points)
        gland = at["gland"] + (at["active gland"] - at["gland"]) * active
        cage = self._cage_depth(points)
        in_front = self._edge(-cage - self.pectoral_mm)
        ligaments = torch.exp(-((septa / 0.12) ** 2)) * torch.sigmoid((depth - 3) / 2)
        yield "gland", 0.6 * ligaments * in_front, at["gland"]
        yield "gland", self.gland(points, depth), gland
        yield "vessel", self._edge(self.vessels(points)[0]) * in_front * self._edge(depth - self.skin_mm - 1), at["blood"]
        for number, curve in enumerate(self.lesion_signal):
            yield "lesion", self._edge(self._lesion_depth(points, number)), float(curve[k])
        yield from self._wall(points, cage, at)
        inside = self._edge(cage - 10)
        yield "lung", inside, at["lung"]
        for centre, radii, tissue, kind in _ORGANS:
            yield tissue, inside * self._edge(_ellipsoid_depth(points, centre, radii)), at[kind]
        beating = self._at_rest(points, k)
        for centre, radii, kind in _HEART_PARTS:
            yield "heart", inside * self._edge(_ellipsoid_depth(beating, centre, radii)), at[kind]
        yield "skin", self._edge(self.skin_mm - depth), at["skin"]

    def _wall(self, points: Tensor, cage: Tensor, at: dict[str, float]) -> Iterator[tuple[str, Tensor, float]]:
        """Pectoral and back muscles, and the ribs between theirs."""
        x, y, z = points
        aside = x.abs()
        front = torch.sigmoid((y - _BODY_CENTRE[1] - 20) / 12)
        pectoral = self.pectoral_mm * torch.sigmoid((aside - 14) / 3) * torch.sigmoid((118 - aside) / 8)
        yield "muscle", self._edge(cage + 12 + front * (pectoral - 12)), at["muscle"]
        yield "muscle", self._edge(cage), at["muscle"]
        rib = torch.cos(2 * math.pi * (z + 0.35 * aside + 0.3 * y) / 27) * 9 - 1
        bone = torch.maximum(rib, torch.where(y > _BODY_CENTRE[1], 15 - aside, rib))  # and the sternum
        yield "bone", self._edge(torch.minimum(bone, 4 - (cage - 5).abs())), at["marrow"]

    def _lesion_depth(self, points: Tensor, number: int) -> Tensor:
        """Below a lesion's surface: an ellipsoid under three shears, which keep its volume."""
        radii, phases = self.lesion_radii[number], self.lesion_phases[number]
        away = list(points - self.lesion_centres[number][:, None])
        for d in range(3):
            other, size = away[(d + 1) % 3], float(radii[d])
            away[d] = away[d] + 0.15 * size * torch.sin(other * (3 / size) + float(phases[d]))
        return _ellipsoid_depth(torch.stack(away), (0.0, 0.0, 0.0), radii)

    def _at_rest(self, points: Tensor, k: int) -> Tensor:
        """Where the beating heart's points lie while it rests."""
        scale, shift = self.beats[k]
        centre = torch.tensor(_HEART_CENTRE)[:, None]
        return centre + scale * (points - centre) + shift[:, None]

    def render(self, points: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Signal at scan k, the lesion's number or 0, and the index of ``BREAST_TISSUES``, each ``(P,)``, at template
        ``points`` ``(3, P)``."""
        depth = self.depth(points)
        body = self._edge(depth)
        signal = torch.full_like(depth, float(self.signal["fat"][k]))
        tissue = torch.full(depth.shape, BREAST_TISSUES.index("fat"), dtype=torch.uint8)
        lesion, number = torch.zeros_like(tissue), 0
        for name, share, value in self.layers(points, depth, k):
            signal = signal + share * (value - signal)
            most = share > 0.5
            tissue[most] = BREAST_TISSUES.index(name)
            if name == "lesion":
                number += 1
                lesion[most] = number
        tissue[body < 0.5] = 0
        lesion[tissue != BREAST_TISSUES.index("lesion")] = 0
        texture = 1 + 0.04 * self.fine(points)[1]
        return signal * texture * body, lesion, tissue


def _noise(rng: torch.Generator, cell_mm: float, channels: int) -> Lattice:
    """Smooth noise of unit variance whose patches are about ``cell_mm`` wide."""
    step = cell_mm / 2
    size = [int(2 * r / step) + 2 for r in _REACH_MM.tolist()]
    values = gaussian_filter(torch.randn(1, channels, *size, generator=rng), 1.0)[0]
    return Lattice(values / values.std(), -_REACH_MM, step)
