"""Motion between the scans of a breast DCE-MRI series: of the whole body, the breasts on the chest wall, the pectoral
muscles and the tissue in between.

Every component is a closed-form function of position with a patient-like time course: slow relaxation, one sudden
movement and some restlessness. Training uses different motion on purpose (`random_motion`, `RandMotiond`): smoothed
noise on a lattice, drawn independently for each scan.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...space.chunks import total
from .phantom import uniform

_LOCAL_BUMPS = 8  # number of local displacements, each of a part of a breast
_STEEPEST = 0.5  # norm of the displacement's gradient, below 1 so that the motion is invertible
_PROBE_STEP_MM = 7.0  # distance of the points where the gradient is measured
# Standard deviations of the components before joint scaling: mm, radians, mm per mm.
_SHIFT_MM, _TURN, _SWAY_MM, _STRAIN, _PECTORAL_MM, _LOCAL_MM = 1.0, 0.012, 2.0, 0.03, 2.0, 1.5


class BreastMotion:
    """Displacements from every scan to the template, in closed form, mm.

    A point x of a scan corresponds to ``R x + s(R x)`` in the template, where R is a rigid motion of the body and s the
    displacement of soft tissue. The Frobenius norm of the gradient of s is limited to 0.5, so the transform is
    invertible.

    Args:
        rng: source of all random numbers.
        times_s: times of the K scans.
        centres_mm: ``(2, 3)``, centre of the base of each breast.
        radii_mm: ``(2, 3)``, half widths of each breast; the second one is its height above the base.
        max_motion_mm: maximum displacement inside the breasts over all scans.
    """

    def __init__(
        self,
        rng: torch.Generator,
        times_s: Sequence[float],
        centres_mm: Tensor,
        radii_mm: Tensor,
        max_motion_mm: float,
    ):
        self.centres, self.radii = centres_mm, radii_mm

        def courses(*shape: int) -> Tensor:
            return _courses(rng, times_s, math.prod(shape)).unflatten(1, shape)

        self.turn, self.shift = _TURN * courses(3), _SHIFT_MM * courses(3)
        strain = _STRAIN * courses(2, 3, 3)
        # A trace of 0 preserves the volume of tissue.
        self.strain = strain - torch.eye(3) * strain.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
        self.sway = _SWAY_MM * courses(2, 3)
        side = torch.arange(_LOCAL_BUMPS) % 2
        local = centres_mm[side] + radii_mm[side] * uniform(rng, -0.7, 0.7, (_LOCAL_BUMPS, 3))
        pectoral = centres_mm + torch.tensor([0.0, -10.0, 25.0])
        self.bump_centres = torch.cat([local, pectoral])
        self.bump_widths = torch.cat([uniform(rng, 14, 28, (_LOCAL_BUMPS,)), torch.full((2,), 32.0)])
        # A contracting muscle lifts the tissue on top of it.
        contraction = _PECTORAL_MM * courses(2, 1) * torch.tensor([0.3, 1.0, 0.3])
        self.bumps = torch.cat([_LOCAL_MM * courses(_LOCAL_BUMPS, 3), contraction], dim=1)
        self._scale(max_motion_mm * float(uniform(rng, 0.7, 1.0)))

    def _scale(self, largest_mm: float) -> None:
        """Scale the maximum displacement of the breasts to ``largest_mm``, and limit the slope of soft tissue."""
        low = (self.centres - self.radii).amin(dim=0)
        high = (self.centres + self.radii).amax(dim=0)
        probes = _lattice(low, high)
        scans = range(len(self.shift))
        length = max(float(self(probes, k).norm(dim=0).max()) for k in scans)
        self._multiply(largest_mm / max(length, 1e-6), ("turn", "shift", "strain", "sway", "bumps"))
        around = _lattice(low - 60, high + 60)
        steepest = max(
            float(total((d / _PROBE_STEP_MM).square().sum(0) for d in _differences(self.soft(around, k))).max().sqrt())
            for k in scans
        )
        self._multiply(min(1.0, _STEEPEST / max(steepest, 1e-6)), ("strain", "sway", "bumps"))

    def _multiply(self, factor: float, parts: Sequence[str]) -> None:
        for name in parts:
            setattr(self, name, factor * getattr(self, name))

    def __call__(self, points: Tensor, k: int) -> Tensor:
        """Compute the displacement in mm from ``points`` ``(3, *P)`` of scan k, RAS mm, to the template."""
        x, y, z = self.turn[k].tolist()
        matrix = torch.linalg.matrix_exp(torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]))
        rotated = torch.einsum("ij,j...->i...", matrix, points) + self.shift[k].view(3, *[1] * (points.dim() - 1))
        return rotated + self.soft(rotated, k) - points

    def soft(self, points: Tensor, k: int) -> Tensor:
        """Compute the displacement of soft tissue in mm at points ``(3, *P)`` in the body's coordinates."""
        total = torch.zeros_like(points)
        for side, (centre, radii) in enumerate(zip(self.centres, self.radii)):
            away = points - centre.view(3, *[1] * (points.dim() - 1))
            # The breast is fixed to the chest wall, and its motion increases with the distance from it.
            free = torch.sigmoid((away[1] / radii[1] - 0.5) * 5)
            near = torch.exp(-0.5 * ((away[0] / (0.8 * radii[0])) ** 2 + (away[2] / radii[2]) ** 2))
            strained = torch.einsum("ij,j...->i...", self.strain[k, side], away)
            total += free * near * (strained + self.sway[k, side].view(3, *[1] * (points.dim() - 1)))
        for centre, width, vector in zip(self.bump_centres, self.bump_widths, self.bumps[k]):
            square = sum((x - c) ** 2 for x, c in zip(points, centre.tolist()))
            bump = torch.exp(square * (-0.5 / float(width) ** 2))
            for component, length in zip(total, vector.tolist()):
                component.add_(bump, alpha=length)
        return total


def _courses(rng: torch.Generator, times_s: Sequence[float], number: int) -> Tensor:
    """Draw zero-mean amplitudes over time, ``(K, number)``: relaxation, one common sudden movement, restlessness."""
    times = torch.as_tensor(times_s, dtype=torch.float32)
    scans = len(times)
    relaxed = (times / times[-1]).sqrt()[:, None] * torch.randn(number, generator=rng)
    movement = int(torch.randint(1, scans, (), generator=rng))
    sudden = (torch.arange(scans) >= movement)[:, None] * torch.randn(number, generator=rng)
    course = relaxed + sudden + 0.25 * torch.randn(scans, number, generator=rng)
    return course - course.mean(dim=0)


def _lattice(low: Tensor, high: Tensor) -> Tensor:
    axes = [torch.arange(float(a), float(b), _PROBE_STEP_MM) for a, b in zip(low, high)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _differences(field: Tensor) -> list[Tensor]:
    return [field.diff(dim=d)[:, : field.shape[1] - 1, : field.shape[2] - 1, : field.shape[3] - 1] for d in (1, 2, 3)]
