"""Both breasts of a woman lying prone and the chest behind them, as functions of position, for `make_breast`.

Points are in RAS mm from the centre of the field of view; the nipples are at +y, the heart at -x.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from .breast_chest import Chest, Layer
from .breast_vessels import FARTHEST_MM, grow_vessels, vessel_lattice
from .phantom import lesion_kinetics, signal_curve, uniform
from .solids import ellipsoid_depth, noise_lattice, ramp

BREAST_TISSUES = ("air", "fat", "gland", "vessel", "lesion", "muscle", "bone", "lung", "organ", "heart", "skin")
# T10 (s), proton density, Ktrans (1/min), ve, vp. Fat does not enhance; gland varies between its two extremes.
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
_REACH_MM = (200.0, 200.0, 110.0)  # extent of the textures from the centre
_TRIES = 1000  # maximum number of attempts to place the lesions
_BEHIND_MM = 3.0  # depth inside the muscles in front of the ribs that separates breast layers from chest layers


class _Points:
    """Quantities at points ``(3, P)`` of the template that several layers share, computed once."""

    def __init__(self, anatomy: "BreastAnatomy", points: Tensor):
        self.anatomy, self.points = anatomy, points

    @cached_property
    def coarse(self) -> Tensor:
        return self.anatomy.coarse(self.points)

    @cached_property
    def middle(self) -> Tensor:
        # Lobes and ligaments are elongated towards the nipple.
        return self.anatomy.middle(self.points * torch.tensor([1.0, 0.55, 1.0])[:, None])

    @cached_property
    def fine(self) -> Tensor:
        return self.anatomy.fine(self.points)

    @cached_property
    def cage(self) -> Tensor:
        return self.anatomy.chest.cage_depth(self.points)

    @cached_property
    def depth(self) -> Tensor:
        """Depth below the skin, mm, positive inside the body."""
        return self.anatomy.skin_depth(self.points, self.coarse[0])

    def select(self, chosen: Tensor) -> "_Points":
        """Select points and their cached quantities."""
        subset = _Points(self.anatomy, self.points[:, chosen])
        subset.coarse, subset.depth, subset.cage = self.coarse[:, chosen], self.depth[chosen], self.cage[chosen]
        return subset


class BreastAnatomy:
    """The template: tissue and its signal over time.

    Args:
        rng: source of all random numbers.
        since_arrival_s: times of the K scans, relative to the arrival of the contrast agent.
        lesions: number of lesions; their curves cycle through ``LESION_KINETICS``.
        edge_mm: half width of the transition between two tissues, at most 3.

    Attributes:
        centres, radii: centres and radii of the left and right breast, ``(2, 3)`` mm.
        bifurcations: bifurcations of vessels, ``(B, 3)`` mm.
        lesion_centres, lesion_radii: ``(L, 3)`` mm. Lesions are ellipsoids made irregular by three shears, which
            preserve their volume.
    """

    def __init__(self, rng: torch.Generator, since_arrival_s: np.ndarray, lesions: int, edge_mm: float):
        self.edge_mm = min(edge_mm, -FARTHEST_MM)
        middle = torch.tensor([[-78.0, 38.0, 5.0], [78.0, 38.0, 5.0]])
        self.centres = middle + uniform(rng, -1, 1, (2, 3)) * torch.tensor([4.0, 3.0, 6.0])
        size = uniform(rng, -1, 1, (1, 3)) + 0.3 * uniform(rng, -1, 1, (2, 3))  # sides differ less than patients
        self.radii = torch.tensor([64.0, 82.0, 72.0]) + size * torch.tensor([6.0, 12.0, 6.0])
        self.chest = Chest(rng)
        self.density, self.sharpness = float(uniform(rng, -0.7, 0.6)), float(uniform(rng, 3, 6))
        self.skin_mm = float(uniform(rng, 1.6, 2.4))
        self.coarse, self.middle, self.fine = (noise_lattice(rng, cell, 2, _REACH_MM) for cell in (40.0, 13.0, 5.0))
        self.signal = _signals(rng, since_arrival_s)
        trees = np.random.default_rng(int(torch.randint(2**31, (), generator=rng)))
        grown = [grow_vessels(trees, c, r) for c, r in zip(self.centres, self.radii)]
        places, widths, bifurcations = (np.concatenate(parts) for parts in zip(*grown))
        self.vessels, self.bifurcations = vessel_lattice(places, widths), torch.from_numpy(bifurcations).float()
        self._place_lesions(rng, lesions)
        self.lesion_signal = [signal_curve(rng, since_arrival_s, lesion_kinetics(n), 0.1) for n in range(lesions)]

    def _place_lesions(self, rng: torch.Generator, lesions: int) -> None:
        """Place lesions inside the breasts, away from skin, muscle and each other."""
        placed: list[tuple[Tensor, Tensor]] = []
        for _ in range(_TRIES):
            if len(placed) == lesions:
                break
            radii = uniform(rng, 5, 11) * uniform(rng, 0.8, 1.25, (3,))
            side = int(torch.randint(2, (), generator=rng))
            centre = self.centres[side] + self.radii[side] * uniform(rng, -0.7, 0.7, (3,))
            room, samples = float(radii.max()) + 5, _Points(self, centre[:, None])
            clear = all((centre - c).norm() > room + r.max() for c, r in placed)
            if clear and float(samples.depth) > room and float(samples.cage) < -room - self.chest.pectoral_mm:
                placed.append((centre, radii))
        else:
            raise ValueError(f"lesions: expected a number that fits into the breasts, got {lesions}")
        both = torch.stack([torch.stack(pair) for pair in placed]) if placed else torch.zeros(0, 2, 3)
        self.lesion_centres, self.lesion_radii = both.unbind(dim=1)
        self.lesion_phases = uniform(rng, 0, 6, (lesions, 3))

    def skin_depth(self, points: Tensor, ripple: Tensor) -> Tensor:
        """Compute the depth below the skin in mm: a smooth union of trunk, breasts and nipples."""
        parts = [self.chest.body_depth(points)]
        parts += [ellipsoid_depth(points, c, r) for c, r in zip(self.centres, self.radii)]
        surface = 7.0 * torch.logsumexp(torch.stack(parts) / 7.0, dim=0) + 1.5 * ripple
        tips = self.centres + torch.tensor([0.0, 1.0, 0.0]) * (self.radii + 1)
        nipples = [ellipsoid_depth(points, tip, (5.5, 7.5, 5.5)) for tip in tips]
        return 1.5 * torch.logsumexp(torch.stack([surface, *nipples]) / 1.5, dim=0)

    def _edge(self, depth: Tensor) -> Tensor:
        return ramp(depth, self.edge_mm)

    def _gland(self, samples: _Points) -> Tensor:
        """Compute the share of fibroglandular tissue, which fills most of the breast's core, with lobes to the skin."""
        norms = [
            sum(((x - float(m)) / float(s)).square() for x, m, s in zip(samples.points, c, r))
            for c, r in zip(self.centres, self.radii)
        ]
        core = 0.62 - torch.minimum(*norms).sqrt()
        share = ramp(samples.middle[1] + 0.6 * samples.fine[0] + 4.5 * core + self.density, 2 / self.sharpness)
        below_skin = ramp(samples.depth - 6 - 2 * samples.middle[1], 3.0)
        return share * below_skin * ramp(-samples.cage - self.chest.pectoral_mm - 4, 1.0)

    def _lesion_depth(self, points: Tensor, number: int) -> Tensor:
        """Compute the depth below a lesion's surface: an ellipsoid under three shears, which preserve its volume."""
        radii, phases = self.lesion_radii[number], self.lesion_phases[number]
        away = list(points - self.lesion_centres[number][:, None])
        for d in range(3):
            size = float(radii[d])
            away[d] = away[d] + 0.15 * size * torch.sin(away[(d + 1) % 3] * (3 / size) + float(phases[d]))
        return ellipsoid_depth(torch.stack(away), (0.0, 0.0, 0.0), radii)

    def _breast_layers(self, samples: _Points, signal: dict[str, float], k: int) -> Iterator[Layer]:
        """Yield the layers that cover the fat in front of the ribs, in order: tissue, share ``(P,)``, and signal."""
        in_front = self._edge(-samples.cage - self.chest.pectoral_mm)
        ligaments = (1 - (samples.middle[0] / 0.2).square()).clamp_min(0).square() * ramp(samples.depth - 3, 3.0)
        yield "gland", 0.6 * ligaments * in_front, signal["gland"]
        active = torch.sigmoid(2 * samples.coarse[1])
        yield "gland", self._gland(samples), signal["gland"] + (signal["active gland"] - signal["gland"]) * active
        in_front = in_front * self._edge(samples.depth - self.skin_mm - 1)
        yield "vessel", self._edge(self.vessels(samples.points)[0]) * in_front, signal["blood"]
        for number, curve in enumerate(self.lesion_signal):
            yield "lesion", self._edge(self._lesion_depth(samples.points, number)), float(curve[k])
        yield "muscle", self._edge(self.chest.muscle_depth(samples.points, samples.cage)), signal["muscle"]
        yield "skin", self._edge(self.skin_mm - samples.depth), signal["skin"]

    def _chest_layers(self, samples: _Points, signal: dict[str, float], k: int) -> Iterator[Layer]:
        """Yield the layers behind the surface of the ribs."""
        yield "muscle", self._edge(self.chest.muscle_depth(samples.points, samples.cage)), signal["muscle"]
        yield from self.chest.layers(samples.points, samples.cage, self._edge, signal, k)

    def render(self, points: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Render signal at scan k, lesion number, and tissue index, each ``(P,)``, at template points ``(3, P)``."""
        everywhere = _Points(self, points)
        signal = torch.zeros_like(everywhere.depth)
        painted = signal, signal.byte(), signal.byte()
        body, behind = everywhere.depth > -self.edge_mm, everywhere.cage > -_BEHIND_MM
        for part, layers in ((body & ~behind, self._breast_layers), (body & behind, self._chest_layers)):
            if part.any():
                for whole, values in zip(painted, self._paint(everywhere.select(part), layers, k)):
                    whole[part] = values
        return painted

    def _paint(self, samples: _Points, layers: Callable[..., Iterator[Layer]], k: int) -> tuple[Tensor, Tensor, Tensor]:
        now = {name: float(curve[k]) for name, curve in self.signal.items()}
        signal = torch.full_like(samples.depth, now["fat"])
        tissue = torch.full(samples.depth.shape, BREAST_TISSUES.index("fat"), dtype=torch.uint8)
        lesion, number = torch.zeros_like(tissue), 0
        for name, share, value in layers(samples, now, k):
            signal = signal + share * (value - signal)
            most = share > 0.5
            tissue[most], lesion[most] = BREAST_TISSUES.index(name), 0
            if name == "lesion":
                number += 1
                lesion[most] = number
        outside = samples.depth < 0
        tissue[outside], lesion[outside] = 0, 0
        return signal * (1 + 0.04 * samples.fine[1]) * self._edge(samples.depth), lesion, tissue

    def landmarks(self, rng: torch.Generator, number: int) -> Tensor:
        """Draw ``(number, 3)`` mm: up to a third at bifurcations, a tenth in lesions, the rest on the gland border."""
        inner = _Points(self, self.bifurcations.T).depth > 4
        points = [self.bifurcations[inner][: number // 3]]
        if len(self.lesion_radii):
            turn = torch.arange(number // 10) % len(self.lesion_radii)
            ball = torch.nn.functional.normalize(torch.randn(len(turn), 3, generator=rng), dim=1)
            ball = 0.6 * ball * uniform(rng, 0, 1, (len(turn), 1)) ** (1 / 3)
            points.append(self.lesion_centres[turn] + self.lesion_radii[turn] * ball)
        while sum(map(len, points)) < number:
            side = torch.randint(2, (20 * number,), generator=rng)
            candidates = self.centres[side] + self.radii[side] * uniform(rng, -1, 1, (20 * number, 3))
            samples = _Points(self, candidates.T)
            points.append(candidates[(samples.depth > 4) & ((self._gland(samples) - 0.5).abs() < 0.15)])
        return torch.cat(points)[:number]


def _signals(rng: torch.Generator, since_arrival_s: np.ndarray) -> dict[str, np.ndarray]:
    """Draw the signal curve of every tissue. Half of the patients have fat suppression; uptake varies fivefold."""
    kinetics: dict[str, tuple[float, ...]] = dict(_KINETICS)
    uptake, suppressed = float(uniform(rng, 0.3, 1.6)), float(uniform(rng, 0.05, 0.12))
    if float(uniform(rng, 0, 1)) < 0.5:
        kinetics["fat"] = (kinetics["fat"][0], suppressed, *kinetics["fat"][2:])
    t10, density, ktrans, *rest = kinetics["active gland"]
    kinetics["active gland"] = (t10, density, ktrans * uptake, *rest)
    return {name: signal_curve(rng, since_arrival_s, values, 0.15) for name, values in kinetics.items()}
