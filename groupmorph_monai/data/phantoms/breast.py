"""Phantom of a breast DCE-MRI series with known motion."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...space.sampling import voxel_grid
from .breast_anatomy import BreastAnatomy
from .breast_motion import BreastMotion
from .phantom import add_rician_noise, follow, uniform

# One scan before the contrast agent and five after (GroupMorph, Section 4).
BREAST_TIMES_S = (0.0, 90.0, 150.0, 210.0, 270.0, 330.0)
_SLAB = 16  # rows rendered at a time


def make_breast(
    seed: int,
    size: Sequence[int] = (384, 384, 60),
    spacing_mm: Sequence[float] = (0.966, 0.966, 3.0),
    times_s: Sequence[float] = BREAST_TIMES_S,
    max_motion_mm: float = 8.0,
    lesions: int = 3,
    landmarks: int = 300,
    noise: float = 0.03,
) -> dict[str, Tensor]:
    """Generate a bilateral series with known motion. Anatomy, contrast and motion depend on the seed alone, not on the
    grid: a smaller or coarser grid shows the same patient.

    Args:
        seed: random seed.
        size: voxels (i, j, k), left to right, back to front and feet to head; the centre of the grid is at 0 mm.
        spacing_mm: voxel size.
        times_s: times of the K >= 2 scans, starting at 0; the agent arrives 25 to 45 s after the first scan.
        max_motion_mm: maximum displacement of any scan from the template, inside the breasts.
        lesions: number of lesions; their curves cycle through ``LESION_KINETICS``.
        landmarks: number of points at vessel bifurcations, on the border of glandular tissue and, a tenth of them,
            inside lesions; those that leave the field of view are dropped.
        noise: standard deviation of the Gaussian components of the Rician noise, relative to the body's mean signal.

    Returns:
        ``image`` ``(K, *S)``, signal in arbitrary units; ``landmarks`` ``(K, P, 3)``, voxel coordinates of the same P
        points of tissue in each scan, exact to 1e-3 voxel; ``lesion_mask`` ``(K, *S)``, 0 or the number of the lesion
        from 1; ``lesion_volumes_mm3`` ``(L,)``, in the template; ``motion`` ``(K, 3, *S)``, displacement from the
        voxels of each scan to the template, voxels, without the motion of the beating heart; ``tissue`` ``(K, *S)``,
        index of ``BREAST_TISSUES``; ``affine`` ``(4, 4)`` RAS mm; ``times_s`` ``(K,)``.
    """
    rng = torch.Generator().manual_seed(seed)
    spacing = torch.tensor([float(v) for v in spacing_mm])
    origin = -(torch.tensor([float(n) for n in size]) - 1) / 2 * spacing
    arrival_s = float(uniform(rng, 25, 45))
    since_arrival_s = np.asarray(times_s, dtype=float) - arrival_s
    anatomy = BreastAnatomy(rng, since_arrival_s, lesions, edge_mm=0.8 * max(spacing_mm[:2]))
    points = (voxel_grid(size, torch.empty(0)) * spacing.view(3, 1, 1, 1)) + origin.view(3, 1, 1, 1)
    shading = _coil(rng, points, anatomy.centres, anatomy.radii)
    template_landmarks = (anatomy.landmarks(rng, landmarks) - origin) / spacing
    motion = BreastMotion(rng, times_s, anatomy.centres, anatomy.radii, max_motion_mm)

    scans = zip(*(_draw(anatomy, motion, points, k) for k in range(len(times_s))))
    displacement, signal, lesion_mask, tissue = (torch.stack(parts) for parts in scans)
    image, fields = signal * shading, displacement / spacing.view(3, 1, 1, 1)
    sigma = noise * image[tissue > 0].mean()
    for volume in image:  # one by one, to save memory
        volume[:] = add_rician_noise(rng, volume, sigma)
    affine = torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64))
    affine[:3, 3] = origin.double()
    return {
        "image": 1000 * image / image.max(),
        "landmarks": _landmarks_in_view(fields, template_landmarks),
        "lesion_mask": lesion_mask,
        "lesion_volumes_mm3": 4 / 3 * math.pi * anatomy.lesion_radii.prod(dim=1),
        "motion": fields,
        "tissue": tissue,
        "affine": affine,
        "times_s": torch.tensor(times_s, dtype=torch.float64),
    }


def _draw(anatomy: BreastAnatomy, motion: BreastMotion, points: Tensor, k: int) -> list[Tensor]:
    """Render displacement ``(3, *S)``, signal, lesion and tissue ``(*S)`` of scan k, slab by slab to save memory."""
    slabs = []
    for slab in points.split(_SLAB, dim=2):
        displacement = motion(slab, k)
        rendered = anatomy.render((slab + displacement).flatten(1), k)
        slabs.append([displacement, *(part.view(slab.shape[1:]) for part in rendered)])
    return [torch.cat(parts, dim=-2) for parts in zip(*slabs)]


def _landmarks_in_view(fields: Tensor, template_landmarks: Tensor) -> Tensor:
    """Map template landmarks ``(P, 3)`` to every scan, ``(K, P, 3)``, without those outside any field of view."""
    landmarks = torch.stack([follow(field, template_landmarks) for field in fields])
    size = torch.tensor(fields.shape[2:])
    return landmarks[:, ((landmarks > 1) & (landmarks < size - 2)).all(dim=2).all(dim=0)]


def _coil(rng: torch.Generator, points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Compute the sensitivity ``(*S)`` of a static breast coil with four elements around each breast."""
    total = torch.zeros_like(points[0])
    for centre, radius in zip(centres, radii):
        for x, y, z in ((-1.1, 0.4, 0.0), (1.1, 0.4, 0.0), (0.0, 0.4, -1.1), (0.0, 0.4, 1.1)):
            element = centre + radius * (torch.tensor([x, y, z]) + uniform(rng, -0.15, 0.15, (3,)))
            square = sum((p - float(c)) ** 2 for p, c in zip(points, element))
            total += float(uniform(rng, 0.8, 1.2)) / (1 + square / 75.0**2) ** 2
    return total.sqrt()
