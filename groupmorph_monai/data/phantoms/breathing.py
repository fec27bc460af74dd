"""Phantom of a breathing abdomen: organs slide along a static wall, and slices are thick."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .phantom import Texture, add_rician_noise, uniform


@dataclass
class _Abdomen:
    """Organs in an irregular cylinder along the second axis, and a wall around them; points are ``(3, *P)`` mm."""

    extent: Tensor
    reach_mm: float
    phase: float
    wobble: float
    texture: Texture

    def _from_axis(self, points: Tensor, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Compute coordinates across the cylinder, which are 1 at ``shares`` of the field of view."""
        x, z = ((points[a] - self.extent[a] / 2) / (s * self.extent[a]) for a, s in zip((0, 2), shares))
        return x, z

    def radius(self, points: Tensor) -> Tensor:
        """Compute the relative radius, which is 1 on the border between organs and wall."""
        x, z = self._from_axis(points, (0.33, 0.36))
        return torch.hypot(x, z) - self.wobble * torch.sin(5 * torch.atan2(z, x) + self.phase)

    def body(self, points: Tensor) -> Tensor:
        return torch.sigmoid(50 * (1 - torch.hypot(*self._from_axis(points, (0.47, 0.49)))))

    def tissue(self, points: Tensor, number: int) -> Tensor:
        """Compute the signal of vessels, lobes and a fine texture."""
        cells = enumerate((20.0, 10.0, 4.0), start=10 * number)
        coarse, middle, fine = (self.texture(n, cell, points) for n, cell in cells)
        signal = 0.4 + 0.25 * torch.sigmoid(5 * coarse) + 0.4 * torch.sigmoid(8 * (middle - 0.9))
        return signal * (1 + 0.1 * fine).clamp_min(0.3)


def _landmarks(
    rng: torch.Generator, abdomen: _Abdomen, lengths: Tensor, spacing: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Draw points in organs and wall, away from their border, that stay inside the field of view: ``(K, P, 3)`` mm, and
    whether each is in an organ, ``(P,)``."""
    extent = abdomen.extent
    chosen = (uniform(rng, 0, 1, (20 * number, 3)) * extent).T[:, :, None, None]
    radius = abdomen.radius(chosen)
    inside, wall = radius < 0.85, (radius > 1.15) & (abdomen.body(chosen) > 0.9)
    positions = []
    for length in lengths:
        at = chosen.clone()
        # The template's coordinate c corresponds to the y with y + length (1 - 0.2 y / extent) = c.
        away = (chosen[1] + abdomen.reach_mm / 2 - length) / (1 - 0.2 * length / extent[1])
        at[1] = torch.where(inside, away, chosen[1])
        positions.append(at[:, :, 0, 0].T)
    points = torch.stack(positions)
    in_view = ((points > 2 * spacing) & (points < extent - 3 * spacing)).all(dim=2).all(dim=0)
    kept = (in_view & (inside | wall)[:, 0, 0]).nonzero()[:number, 0]
    return points[:, kept], inside[kept, 0, 0]


def make_breathing_series(
    seed: int,
    max_motion_mm: float = 30.0,
    size: Sequence[int] = (128, 112, 40),
    spacing_mm: Sequence[float] = (1.5, 1.5, 4.0),
    timepoints: int = 6,
    landmarks: int = 1000,
    noise: float = 0.03,
) -> dict[str, Tensor]:
    """Generate a series in which inner organs move along the second axis by a different distance at each timepoint, a
    fifth less at the far end than at the near end, while the wall around them is static.

    Args:
        seed: random seed.
        max_motion_mm: distance between the extreme positions of the organs.
        size: voxels (i, j, k).
        spacing_mm: voxel size.
        timepoints: K; the signal of the organs rises by half over time.
        landmarks: number of points; those that leave the field of view are dropped.
        noise: standard deviation of the Gaussian components of the Rician noise, relative to the tissue signal.

    Returns:
        ``image`` ``(K, *S)``; ``affine`` ``(4, 4)`` RAS mm; ``landmarks_mm`` ``(K, P, 3)``, RAS mm, exact; ``inside``
        ``(P,)``, whether a landmark is in the moving organs. All landmarks keep a distance of at least a seventh of the
        organs' radius from the sliding border.
    """
    rng = torch.Generator().manual_seed(seed)
    spacing = torch.tensor([float(v) for v in spacing_mm])
    extent = torch.tensor([float(n) for n in size]) * spacing
    share = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(timepoints - 2, generator=rng)])
    lengths = max_motion_mm * share[torch.randperm(timepoints, generator=rng)]
    reach = (extent + 2 * max_motion_mm).tolist()  # extent of the texture, beyond the field of view
    texture = Texture(int(torch.randint(2**30, (), generator=rng)), reach, -max_motion_mm)
    phase, wobble = float(uniform(rng, 0, 6)), float(uniform(rng, 0.02, 0.06))
    abdomen = _Abdomen(extent, max_motion_mm, phase, wobble, texture)

    axes = [torch.arange(n) * float(s) for n, s in zip(size, spacing_mm)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    inner, wall, visible = abdomen.radius(points) < 1, abdomen.tissue(points, 1), abdomen.body(points)
    image = []
    for k, length in enumerate(lengths):
        template = points.clone()
        template[1] = points[1] + length * (1 - 0.2 * points[1] / extent[1])
        gain = 1 + 0.5 * k / max(timepoints - 1, 1)
        signal = torch.where(inner, gain * abdomen.tissue(template, 0), wall) * visible
        image.append(add_rician_noise(rng, signal, 0.5 * noise))

    landmarks_mm, inside = _landmarks(rng, abdomen, lengths, spacing, landmarks)
    return {
        "image": torch.stack(image),
        "affine": torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64)),
        "landmarks_mm": landmarks_mm,
        "inside": inside,
    }
