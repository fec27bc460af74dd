"""Phantom of a beating heart: two volumes, at rest and contracted, with one of five kinds of motion."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...space.chunks import total
from ...space.field import VelocityField
from ...space.integrate import ScalingAndSquaring
from ...space.sampling import voxel_grid
from .phantom import Texture, add_rician_noise, uniform

# At the wall: radial contraction, shortening of the long axis, twist in radians; and whether a sector is static.
HEART_MOTIONS = {
    "normal": (0.30, 0.12, 0.0, False),
    "weak": (0.10, 0.12, 0.0, False),
    "regional": (0.30, 0.12, 0.0, True),
    "twisting": (0.20, 0.04, 0.4, False),
    "shortening": (0.10, 0.30, 0.0, False),
}


def make_heart(
    seed: int,
    kind: str,
    motion_seed: int | None = None,
    size: Sequence[int] = (48, 48, 32),
    noise: float = 0.03,
    landmarks: int = 2000,
) -> dict[str, Tensor]:
    """Generate a pair of volumes (rest, contraction) with known motion. The third axis is the long axis.

    Args:
        seed: random seed of anatomy and noise: position, size, wall, rotation, texture, contrast.
        kind: one of ``HEART_MOTIONS``, defined in coordinates of the heart, so that its field depends on the anatomy.
        motion_seed: random seed of the strength of motion, which varies by a sixth; None uses ``seed``.
        size: voxels (i, j, k).
        noise: standard deviation of the Gaussian components of the Rician noise; blood has signal 1.
        landmarks: number of points P in the heart with known positions in both volumes.

    Returns:
        ``image`` ``(2, *S)``; ``motion`` ``(3, *S)``, displacement from voxels of the contracted volume to the volume
        at rest, voxels; ``heart`` ``(*S)``, 1 inside the outer wall of the contracted heart; ``landmarks`` ``(2, P,
        3)``, voxels; ``affine`` ``(4, 4)``, 1 mm voxels.
    """
    if kind not in HEART_MOTIONS:
        raise ValueError(f"kind: expected one of {', '.join(HEART_MOTIONS)}, got {kind!r}")
    rng = torch.Generator().manual_seed(seed)
    extent = torch.tensor([float(n) for n in size])
    centre = (extent - 1) / 2 + uniform(rng, -1, 1, (3,)) * extent * torch.tensor([0.08, 0.08, 0.04])
    outer = float(extent[:2].mean() * uniform(rng, 0.22, 0.30))
    radii = torch.tensor([outer, outer, float(extent[2] * uniform(rng, 0.34, 0.42))])
    wall, turn = float(uniform(rng, 0.28, 0.42)), float(uniform(rng, -0.3, 0.3))
    signals = uniform(rng, 0.85, 1.15, (4,)) * torch.tensor([1.0, 0.4, 0.55, 0.75])  # blood, wall, around, right side
    texture = Texture(int(torch.randint(2**30, (), generator=rng)), [n + 16 for n in size], -8)

    def local(points: Tensor) -> Tensor:
        """Convert to heart coordinates: radius 1 at the outer wall, right ventricle along the first axis."""
        x, y, z = (points[d] - centre[d] for d in range(3))
        cos, sin = math.cos(turn), math.sin(turn)
        return torch.stack([(cos * x + sin * y) / radii[0], (cos * y - sin * x) / radii[1], z / radii[2]])

    def signal(points: Tensor) -> tuple[Tensor, Tensor]:
        tissue, heart = _tissue(local(points), outer, wall, signals)
        grain = total(texture(n, cell, points) for n, cell in enumerate((3.0, 7.0)))
        return tissue * (1 + 0.06 * grain).clamp_min(0.2), heart

    grid = voxel_grid(size, torch.empty(0))
    strength = torch.Generator().manual_seed(seed if motion_seed is None else motion_seed)
    velocity = _velocity(local(grid), kind, radii, turn, strength)
    motion = ScalingAndSquaring(6)(VelocityField.on_voxels(velocity[None, None])).values[0, 0]
    (rest, _), (contracted, heart) = signal(grid), signal(grid + motion)
    voxels = torch.argwhere(heart > 0.5)
    voxels = voxels[torch.randperm(len(voxels), generator=torch.Generator().manual_seed(seed))[:landmarks]]
    return {
        "image": add_rician_noise(rng, torch.stack([rest, contracted]), noise),
        "motion": motion,
        "heart": (heart > 0.5).float(),
        "landmarks": torch.stack([voxels + motion[(slice(None), *voxels.T)].T, voxels.float()]),
        "affine": torch.eye(4, dtype=torch.float64),
    }


def _tissue(u: Tensor, outer: float, wall: float, signals: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the signal without texture and the share of the heart, each ``(*S)``.

    Args:
        u: heart coordinates, ``(3, *S)``.
        outer: outer radius of the heart, voxels.
        wall: thickness of the wall, as a share of that radius.
        signals: signals of blood, wall, surroundings and right ventricle.
    """

    def within(r: Tensor, limit: float) -> Tensor:
        return torch.sigmoid(outer * (limit - r) / 0.5)

    radius = u.square().sum(dim=0).sqrt()
    beside = torch.stack([u[0] - 1.0, u[1], u[2]]).square().sum(dim=0).sqrt()
    signal = signals[2] + (signals[3] - signals[2]) * within(beside, 0.75)
    signal = signal + (signals[1] - signal) * within(radius, 1.0)
    blood = within(radius, 1 - wall)
    for angle in (2.2, 4.1):  # papillary muscles on the free wall, which make twist visible
        away = torch.stack([u[0] - 0.5 * math.cos(angle), u[1] - 0.5 * math.sin(angle), 0.3 * u[2]])
        blood = blood * (1 - within(away.square().sum(dim=0).sqrt(), 0.15))
    return signal + (signals[0] - signal) * blood, within(radius, 1.0)


def _velocity(u: Tensor, kind: str, radii: Tensor, turn: float, rng: torch.Generator) -> Tensor:
    """Compute the velocity from the contracted heart back to rest, ``(3, *S)`` voxels, at heart coordinates ``u``."""
    *strengths, static_sector = HEART_MOTIONS[kind]
    contraction, along, twist = (v * float(uniform(rng, 5 / 6, 7 / 6)) for v in strengths)
    # Strongest at the wall, negligible at twice its radius.
    envelope = torch.exp(-0.5 * (u.square().sum(dim=0) / 1.4) ** 2)
    radial = contraction * torch.ones_like(envelope)
    if static_sector:
        # A sector of the free wall, opposite the right ventricle, does not contract.
        cosine = -u[0] / torch.hypot(u[0], u[1]).clamp_min(1e-6)
        radial = radial * (1 - torch.sigmoid(12 * (cosine - 0.5)))
    angle = twist * u[2]
    x = radial * u[0] - angle * u[1]
    y = radial * u[1] + angle * u[0]
    cos, sin = math.cos(turn), math.sin(turn)
    velocity = torch.stack([(cos * x - sin * y) * radii[0], (sin * x + cos * y) * radii[1], along * u[2] * radii[2]])
    return envelope * velocity
