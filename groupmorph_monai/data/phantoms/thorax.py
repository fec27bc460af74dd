"""Phantom of a breathing thorax: 4D CT with motion known in closed form."""

from collections.abc import Sequence

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ...errors import InputError
from ...space.grid import Grid
from .branching import Tree, tube_depths_mm
from .chest import Breath, Cavity
from .chest_tissues import AIR, LESION, VESSEL, Tissues, soft
from .lungs import Lungs

THORAX_EXTENT_MM = (256 * 1.04, 256 * 1.04, 100 * 2.5)
_AIRWAY_WALL_MM = 0.8
_MOST_MOTION_MM = 40.0  # maximum motion that keeps densities plausible and the inverse convergent
_PHASE_S = 0.4  # duration of a phase, a tenth of a breath
_OUTSIDE, _CAVITY, _LUNG = 0, 1, 2


class _Scanner:
    """Render phases on a voxel grid.

    Args:
        size: voxels along each axis.
        spacing_mm: voxel size.
    """

    def __init__(self, size: Sequence[int], spacing_mm: Sequence[float]):
        self.size, self.spacing_mm = tuple(size), tuple(spacing_mm)
        self.edge_mm = 0.25 * sum(spacing_mm[:2]) / 2
        self.centre = (torch.tensor(size) - 1.0).view(3, 1, 1, 1) / 2
        self.step = torch.tensor(self.spacing_mm).view(3, 1, 1, 1)

    def voxels(self, points: Tensor) -> Tensor:
        """Convert ``(3, *P)`` mm, with three axes P, to voxel coordinates."""
        return points / self.step + self.centre

    def points(self, voxels: Tensor) -> Tensor:
        return (voxels - self.centre) * self.step

    def depths_mm(self, breath: Breath, tree: Tree) -> Tensor:
        """Compute the depth of every voxel of a phase inside the tubes of the template, ``(*S)``."""

        def to_voxels(points: Tensor) -> Tensor:
            return self.voxels(breath.from_template(points[:, :, None, None]))[:, :, 0, 0]

        def to_tree(voxels: Tensor) -> Tensor:
            return breath.contents(self.points(voxels))

        return tube_depths_mm(tree, self.size, to_voxels, to_tree, self.spacing_mm, 5 * self.edge_mm + _AIRWAY_WALL_MM)

    def phase(self, breath: Breath, tissues: Tissues, lungs: Lungs) -> tuple[Tensor, ...]:
        """Render noise-free HU, motion to the template ``(3, *S)``, voxels, and regions and lesions ``(*S)``."""
        vessels, airways = (self.depths_mm(breath, tree) for tree in (lungs.vessels, lungs.airways))
        hu, motion = torch.empty(self.size), torch.empty(3, *self.size)
        regions, lesions = (torch.zeros(self.size, dtype=torch.uint8) for _ in range(2))
        axes = [torch.arange(n, dtype=torch.float32) for n in self.size]
        for rows in Grid(self.size, torch.eye(4)).slabs():
            points = self.points(torch.stack(torch.meshgrid(axes[0][rows], *axes[1:], indexing="ij")))
            wall, contents = breath.wall(points), breath.contents(points)
            lung_mm, depth_mm = tissues.lung_mm(contents), tissues.cavity.depth_mm(contents)
            lesion_mm, number = lungs.lesion_mm(contents)
            inside = depth_mm > 0
            within = tissues.around_lungs(contents, self.edge_mm)
            in_lung = soft(lung_mm, self.edge_mm)
            within += (AIR * (1 - tissues.parenchyma(contents)) - within) * in_lung
            wall_mm = airways[rows] + _AIRWAY_WALL_MM
            for deep, value in ((vessels[rows], VESSEL), (wall_mm, VESSEL), (airways[rows], AIR), (lesion_mm, LESION)):
                within += (value - within) * soft(deep, self.edge_mm)
            # Preserve the mass of the lung (Gorbunova et al. 2012, Med Image Anal 16:786): HU + 1000 is a density.
            within = (within - AIR) * (1 + in_lung * (breath.volume_ratio(points) - 1)) + AIR
            without = tissues.wall(wall, self.edge_mm)
            hu[rows] = without + (within - without) * soft(depth_mm, self.edge_mm)
            motion[:, rows] = (torch.where(inside, contents, wall) - points) / self.step
            regions[rows] = torch.where(inside, torch.where(lung_mm > 0, _LUNG, _CAVITY), _OUTSIDE).to(torch.uint8)
            lesions[rows] = torch.where(inside & (lesion_mm > 0), number, 0).to(torch.uint8)
        return hu, motion, regions, lesions


def make_thorax(
    seed: int,
    size: Sequence[int] = (256, 256, 100),
    timepoints: int = 6,
    spacing_mm: Sequence[float] | None = None,
    max_motion_mm: float = 25.0,
    lesions: int = 1,
    landmarks: int = 75,
    noise_hu: float = 25.0,
) -> dict[str, Tensor]:
    """Generate a 4D CT of the chest with known motion, from end inspiration to end expiration.

    Lungs, mediastinum and abdomen slide along a chest wall that widens slightly; the density of the lungs rises as
    their volume decreases. The motion differs from `random_motion`, on which networks are trained: see `Breath`.

    Args:
        seed: random seed.
        size: voxels (i, j, k): to the right, to the front, upwards.
        timepoints: K phases.
        spacing_mm: voxel size; None to cover `THORAX_EXTENT_MM`, which is 1.04 x 1.04 x 2.5 mm at full size.
        max_motion_mm: approximate elevation of the back of the diaphragm, 0 to 40; each seed uses 0.6 to 1 of it, and
            the domes rise by three quarters of that.
        lesions: number of tumours in the lungs, which move with them.
        landmarks: number of bifurcations of vessels and airways in the lungs; fewer if the field of view is small or
            its voxels are too large to resolve them.
        noise_hu: standard deviation.

    Returns:
        ``image`` ``(K, *S)`` HU; ``landmarks`` ``(K, P, 3)``, voxel coordinates of the same P bifurcations, exact;
        ``lesion_mask`` ``(K, *S)``, 0 or the number of the lesion from 1; ``motion`` ``(K, 3, *S)``, displacement from
        the voxels of each timepoint to the template, voxels, exact, discontinuous at the sliding border; ``regions``
        ``(K, *S)``, 0 outside the chest cavity, 1 in it, 2 in a lung; ``affine`` ``(4, 4)`` RAS mm; ``times_s``
        ``(K,)``.

    Raises:
        InputError: If ``max_motion_mm`` is out of range.
    """
    if not 0 <= max_motion_mm <= _MOST_MOTION_MM:
        raise InputError(f"max_motion_mm: expected 0 to {_MOST_MOTION_MM:g}, got {max_motion_mm}; change it")
    rng = torch.Generator().manual_seed(seed)
    if spacing_mm is None:
        spacing_mm = [e / n for e, n in zip(THORAX_EXTENT_MM, size)]
    scanner = _Scanner(size, spacing_mm)
    cavity = Cavity.draw(rng)
    tissues = Tissues.draw(rng, cavity, [n * s for n, s in zip(size, spacing_mm)])
    lungs = Lungs(rng, tissues, lesions, 1.5 * scanner.edge_mm)
    breaths = Breath.draw_phases(rng, cavity, timepoints, max_motion_mm)
    phases = [scanner.phase(breath, tissues, lungs) for breath in breaths]
    image, motion, regions, lesion_mask = (torch.stack(part) for part in zip(*phases))
    for volume in image:
        volume += _noise(rng, size, noise_hu)
    return {
        "image": image.clamp_(-1024, 3071),
        "landmarks": _landmarks(rng, scanner, breaths, lungs.forks(tissues), landmarks),
        "lesion_mask": lesion_mask,
        "motion": motion,
        "regions": regions,
        "affine": torch.diag(torch.tensor([*spacing_mm, 1.0], dtype=torch.float64)),
        "times_s": _PHASE_S * torch.arange(timepoints, dtype=torch.float64),
    }


def _noise(rng: torch.Generator, size: Sequence[int], noise_hu: float) -> Tensor:
    """Draw noise ``(*S)`` that is correlated within slices, as after filtered backprojection."""
    white = torch.randn(tuple(size), generator=rng).numpy()
    sigma = 0.6
    grain = torch.from_numpy(gaussian_filter(white, (sigma, sigma, 0), mode="wrap"))
    return noise_hu * grain / grain.std() if noise_hu else torch.zeros(tuple(size))


def _landmarks(
    rng: torch.Generator, scanner: _Scanner, breaths: Sequence[Breath], forks: Tensor, number: int
) -> Tensor:
    """Compute voxel coordinates in every phase, ``(K, P, 3)``, of up to ``number`` forks inside all fields of view."""
    template = forks.double().T[:, :, None, None]
    voxels = torch.stack([scanner.voxels(breath.from_template(template))[:, :, 0, 0].T for breath in breaths])
    in_view = ((voxels > 2) & (voxels < torch.tensor(scanner.size) - 3)).all(dim=2).all(dim=0)
    chosen = in_view.nonzero()[:, 0]
    chosen = chosen[torch.randperm(len(chosen), generator=rng)[:number]]
    return voxels[:, chosen].float()
