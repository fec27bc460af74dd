"""A breast DCE-MRI series made from a seed, whose motion is known."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..space.grid import voxel_grid
from .breast_anatomy import BreastAnatomy
from .breast_motion import BreastMotion
from .phantom import follow, uniform

__all__ = ["BREAST_TIMES_S", "make_breast"]

# One scan before the contrast agent and five after (GroupMorph, Section 4).
BREAST_TIMES_S = (0.0, 90.0, 150.0, 210.0, 270.0, 330.0)
_SLAB = 16  # rows that are drawn at once


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
    """One bilateral series with its truth. Anatomy, contrast and motion depend on the seed alone, not on the grid: a
    smaller or coarser grid shows the same patient.

    Args:
        seed: decides everything random.
        size: voxels (i, j, k), left to right, back to front and feet to head; the grid's middle lies at 0 mm.
        spacing_mm: of the voxels.
        times_s: of the K scans; the agent arrives 25 to 45 s after the first.
        max_motion_mm: largest displacement of any scan from the unseen template, within the breasts.
        lesions: number of lesions; their curves cycle through ``LESION_KINETICS``.
        landmarks: number of points at bifurcations of vessels, on the border of glandular tissue and, a tenth of them,
            within lesions; fewer where some leave the field of view.
        noise: standard deviation of the Rician noise's Gaussian parts, as a share of the mean signal in the body.
    Returns: ``image`` ``(K, *S)``, signal in arbitrary units; ``landmarks`` ``(K, P, 3)``, voxel coordinates of the
        same P points of tissue in each scan, exact to 1e-3 voxel; ``lesion_mask`` ``(K, *S)``, 0 or the lesion's number
        from 1; ``lesion_volumes_mm3`` ``(L,)``, in the template; ``motion`` ``(K, 3, *S)``, displacement from each
        scan's voxels to the template, voxels: the patient's, which the beating heart does not follow; ``tissue``
        ``(K, *S)``, index of ``BREAST_TISSUES``; ``affine`` ``(4, 4)`` RAS mm; ``times_s`` ``(K,)``.
    """
    rng = torch.Generator().manual_seed(seed)
    spacing = torch.tensor([float(v) for v in spacing_mm])
    origin = -(torch.tensor([float(n) for n in size]) - 1) / 2 * spacing
    arrival_s = float(uniform(rng, 25, 45))
    since_arrival_s = np.asarray(times_s, dtype=float) - arrival_s
    anatomy = BreastAnatomy(rng, since_arrival_s, lesions, edge_mm=0.8 * max(spacing_mm[:2]))
    points = (voxel_grid(size, torch.empty(0)) * spacing.view(3, 1, 1, 1)) + origin.view(3, 1, 1, 1)
    shading = _coil(rng, points, anatomy.centres, anatomy.radii)
    chosen = (anatomy.landmarks(rng, landmarks) - origin) / spacing
    motion = BreastMotion(rng, times_s, anatomy.centres, anatomy.radii, max_motion_mm)

    images, lesion_masks, tissues, fields = [], [], [], []
    for k in range(len(times_s)):
        displacement, signal, lesion, tissue = _draw(anatomy, motion, points, k)
        images.append(signal * shading)
        lesion_masks.append(lesion)
        tissues.append(tissue)
        fields.append(displacement / spacing.view(3, 1, 1, 1))
    image, tissue = torch.stack(images), torch.stack(tissues)
    sigma = noise * image[tissue > 0].mean()
    for volume in image:
        real, imaginary = (sigma * torch.randn(volume.shape, generator=rng) for _ in range(2))
        torch.hypot(volume + real, imaginary, out=volume)

    followed = torch.stack([follow(field, chosen) for field in fields])
    in_view = ((followed > 1) & (followed < torch.tensor(size) - 2)).all(dim=2).all(dim=0)
    affine = torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64))
    affine[:3, 3] = origin.double()
    return {
        "image": 1000 * image / image.max(),
        "landmarks": followed[:, in_view],
        "lesion_mask": torch.stack(lesion_masks),
        "lesion_volumes_mm3": 4 / 3 * math.pi * anatomy.lesion_radii.prod(dim=1),
        "motion": torch.stack(fields),
        "tissue": tissue,
        "affine": affine,
        "times_s": torch.tensor(times_s, dtype=torch.float64),
    }


def _draw(anatomy: BreastAnatomy, motion: BreastMotion, points: Tensor, k: int) -> list[Tensor]:
    """Displacement ``(3, *S)``, signal, lesion and tissue, ``(*S)``, at scan k's ``points`` ``(3, *S)``: one slab after
    the other, for memory and speed."""
    slabs = []
    for slab in points.split(_SLAB, dim=2):
        displacement = motion(slab, k)
        drawn = anatomy.render((slab + displacement).flatten(1), k)
        slabs.append([displacement, *(part.view(slab.shape[1:]) for part in drawn)])
    return [torch.cat(parts, dim=-2) for parts in zip(*slabs)]


def _coil(rng: torch.Generator, points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Sensitivity ``(*S)`` of a breast coil, four elements around either breast, at rest in the scanner."""
    total = torch.zeros_like(points[0])
    for centre, radius in zip(centres, radii):
        for x, y, z in ((-1.1, 0.4, 0.0), (1.1, 0.4, 0.0), (0.0, 0.4, -1.1), (0.0, 0.4, 1.1)):
            place = centre + radius * (torch.tensor([x, y, z]) + uniform(rng, -0.15, 0.15, (3,)))
            square = sum((p - float(c)) ** 2 for p, c in zip(points, place))
            total += float(uniform(rng, 0.8, 1.2)) / (1 + square / 75.0**2) ** 2
    return total.sqrt()
