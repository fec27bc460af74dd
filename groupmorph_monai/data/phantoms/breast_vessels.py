"""Random vessel trees in the breasts."""

import numpy as np
import torch
from torch import Tensor

from .solids import Lattice

_STEP_MM = 1.5  # length of a segment
_LATTICE_MM = 1.25  # spacing of the lattice of depths
_REACH = 4  # lattice steps around a vessel's axis
FARTHEST_MM = -3.0  # mm; lower bound of the depth, at which vessels are invisible


def grow_vessels(rng: np.random.Generator, centre: Tensor, radii: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grow the branching vessels of one breast below the skin, from the chest wall towards the nipple.

    Args:
        rng: source of all random numbers.
        centre, radii: centre and radii of the breast, mm, ``(3,)``; the second axis points to the nipple.

    Returns:
        Centreline points ``(N, 3)`` mm; their radii ``(N,)`` mm; bifurcations ``(B, 3)`` mm.
    """
    places, widths, bifurcations = [], [], []
    angles = rng.uniform(0, 2 * np.pi) + np.arange(4) * np.pi / 2 + rng.uniform(-0.4, 0.4, 4)
    # In units of the breast's radii, so that its skin is the unit sphere.
    growing = [(np.array([0.8 * np.cos(a), 0.1, 0.8 * np.sin(a)]), None, rng.uniform(1.4, 2.2)) for a in angles]
    while growing:
        at, heading, width = growing.pop()
        shell = rng.uniform(0.62, 0.86)
        heading = np.array([0.0, 1.0, 0.0]) - 0.3 * at if heading is None else heading
        for _ in range(int(rng.uniform(20, 45) * width)):
            radial = at / np.linalg.norm(at)
            heading = heading + 0.35 * rng.standard_normal(3) + 0.12 * (np.array([0.0, 1.0, 0.0]) - at)
            heading = heading - radial * (heading @ radial) + 2.0 * radial * (shell - np.linalg.norm(at))
            heading = heading / np.linalg.norm(heading)
            at = at + heading * _STEP_MM / radii.numpy()
            width = width * 0.993
            places.append(at)
            widths.append(width)
        if width > 0.9:
            bifurcations.append(at)
            aside = np.cross(at, heading) * rng.choice([-1, 1])
            growing += [(at, heading + 0.6 * aside, 0.85 * width), (at, heading - 0.6 * aside, 0.7 * width)]
    to_mm = radii.numpy(), centre.numpy()
    return np.array(places) * to_mm[0] + to_mm[1], np.array(widths), np.array(bifurcations) * to_mm[0] + to_mm[1]


def vessel_lattice(places: np.ndarray, widths: np.ndarray) -> Lattice:
    """Compute the depth below the wall of the nearest vessel, mm, positive inside, at least `FARTHEST_MM`.

    Args:
        places, widths: centreline points and radii returned by `grow_vessels`.
    """
    points, radii = torch.from_numpy(places).float(), torch.from_numpy(widths).float()
    origin = points.amin(dim=0) - (_REACH + 1) * _LATTICE_MM
    size = ((points.amax(dim=0) - origin) / _LATTICE_MM).ceil().long() + _REACH + 2
    offsets = torch.cartesian_prod(*[torch.arange(-_REACH, _REACH + 1)] * 3)
    cells = ((points - origin) / _LATTICE_MM).round().long()[:, None] + offsets
    depth = radii[:, None] - (cells * _LATTICE_MM + origin - points[:, None]).norm(dim=2)
    index = (cells[..., 0] * size[1] + cells[..., 1]) * size[2] + cells[..., 2]
    values = torch.full((int(size.prod()),), FARTHEST_MM)
    values.scatter_reduce_(0, index.flatten(), depth.flatten(), "amax")
    return Lattice(values.view(1, *size.tolist()), origin, _LATTICE_MM)
