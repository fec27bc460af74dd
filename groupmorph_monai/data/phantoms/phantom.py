"""Phantom of a DCE-MRI series with known motion, for the demo, tests and training without data.

Anatomy is a function of continuous coordinates, so every timepoint is rendered at its displaced coordinates instead of
being interpolated from another image. Shapes, textures, contrast, enhancement and motion differ between seeds, so that
a network cannot memorise one anatomy and has to learn registration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, pad

from ...space.chunks import total
from ...space.field import VelocityField
from ...space.integrate import ScalingAndSquaring
from ...space.sampling import sample, voxel_grid
from ..contrast.pharmacokinetics import concentration, spgr_signal

# (Ktrans 1/min, ve) of lesions, named after the course of their curves after the first minutes (Kuhl et al. 1999).
LESION_KINETICS = {"persistent": (0.06, 0.90), "plateau": (0.16, 0.50), "washout": (0.60, 0.30)}
_INVERSE_STEPS = 60  # number of fixed-point steps from a point of the template to its position at a timepoint
# T10 (s), proton density, Ktrans (1/min), ve, vp: normal tissue at 3 T.
_TISSUES = {
    "fat": (0.38, 1.0, 0.003, 0.10, 0.005),
    "gland": (1.40, 0.75, 0.02, 0.30, 0.02),
    "muscle": (1.30, 0.80, 0.04, 0.15, 0.02),
    "blood": (1.65, 0.90, 0.001, 0.10, 0.55),
}


def smooth_noise(
    generator: torch.Generator, cell: float, channels: int, points: Tensor, size: Sequence[float]
) -> Tensor:
    """Sample unit-variance noise from a lattice of ``cell`` voxels at points ``(3, *P)``: ``(channels, *P)``."""
    lattice = [int(n / cell) + 4 for n in size]
    values = torch.randn(1, channels, *lattice, generator=generator)
    return sample(values, points[None] / cell + 1.5)[0]


@dataclass(frozen=True)
class Texture:
    """Smooth noise of unit variance as a function of position, reproducible from a seed.

    Args:
        seed: random seed, to which the number of a lattice is added.
        size: extent in which the noise is defined, in the unit of the points.
        origin: position of its first corner.
    """

    seed: int
    size: Sequence[float]
    origin: Tensor | float = 0.0

    def __call__(self, number: int, cell: float, points: Tensor) -> Tensor:
        """Sample lattice ``number``, with patches of about ``cell``, at points ``(3, *P)``: ``(*P)``."""
        generator = torch.Generator().manual_seed(self.seed + number)
        return smooth_noise(generator, cell, 1, points - self.origin, self.size)[0]


def add_rician_noise(generator: torch.Generator, image: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the magnitude of an image whose real and imaginary part have noise of standard deviation ``sigma``."""
    real, imaginary = (sigma * torch.randn(image.shape, generator=generator) for _ in range(2))
    return torch.hypot(image + real, imaginary)


def uniform(generator: torch.Generator, low: float, high: float, shape: Sequence[int] = ()) -> Tensor:
    return low + (high - low) * torch.rand(tuple(shape), generator=generator)


@dataclass
class _Ellipsoid:
    """An irregular ellipsoid; ``inside`` is 1 inside and 0 outside, with an edge of about one voxel."""

    centre: Tensor
    radii: Tensor
    signal: np.ndarray
    axes: Tensor
    wobble: Tensor

    def inside(self, points: Tensor) -> Tensor:
        local = torch.einsum("ij,j...->i...", self.axes, points - self.centre.view(3, *[1] * (points.dim() - 1)))
        scaled = local / self.radii.view(3, *[1] * (points.dim() - 1))
        radius = scaled.square().sum(0).sqrt()
        ripple = sum(w[3] * torch.sin(w[0] * scaled[0] + w[1] * scaled[1] + w[2] * scaled[2]) for w in self.wobble)
        return torch.sigmoid((1 + ripple - radius) * self.radii.mean() / 0.4)


def _ellipsoid(generator: torch.Generator, centre: Tensor, radii: Tensor, signal: np.ndarray) -> _Ellipsoid:
    axes, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    waves = torch.randn(3, 3, generator=generator) * 2
    return _Ellipsoid(centre, radii, signal, axes, torch.cat([waves, uniform(generator, 0.02, 0.1, (3, 1))], dim=1))


def lesion_kinetics(number: int) -> tuple[float, ...]:
    """Return T10 (s), proton density, Ktrans (1/min), ve and vp of a lesion, cycling through `LESION_KINETICS`."""
    return (1.5, 0.8, *list(LESION_KINETICS.values())[number % len(LESION_KINETICS)], 0.03)


def signal_curve(generator: torch.Generator, times_s: np.ndarray, kinetics: Sequence[float], vary: float) -> np.ndarray:
    """Draw the signal over time of tissue with `varied` kinetics."""
    return _signal(times_s, *varied(generator, kinetics, vary))


def varied(generator: torch.Generator, kinetics: Sequence[float], vary: float) -> list[float]:
    """Multiply T10, density, Ktrans, ve and vp by random factors up to ``1 + vary``; ve is at most 0.9."""
    factors = ((1 + vary) ** uniform(generator, -1, 1, (5,))).tolist()
    t10, density, ktrans, ve, vp = (k * f for k, f in zip(kinetics, factors))
    return [t10, density, ktrans, min(ve, 0.9), vp]


def _signal(times_s: np.ndarray, t10_s: float, density: float, *kinetics: float) -> np.ndarray:
    return spgr_signal(concentration(times_s, *kinetics), t10_s, density)


def random_motion(generator: torch.Generator, size: Sequence[int], max_motion_voxels: float) -> Tensor:
    """Draw a displacement from timepoint to template, the exponential of a smooth random velocity; ``(3, *S)`` voxels.

    The slopes of the velocity are limited so that the exponential can be inverted by fixed-point iteration.
    """
    grid = voxel_grid(size, torch.empty(0))
    velocity = torch.zeros(3, *size)
    for cells, weight in ((2.2, 1.0), (4.0, 0.5)):
        cell = max(size) / cells
        waves = smooth_noise(generator, cell, 3, grid, size)
        velocity = velocity + weight * waves
    # Linear interpolation of the lattice has kinks; three passes of a separable box filter smooth them.
    half = int(max(size) / 16)
    for axis in [0, 1, 2] * 3:
        kernel = [2 * half + 1 if a == axis else 1 for a in range(3)]
        padding = [half if a == axis else 0 for a in (2, 2, 1, 1, 0, 0)]
        velocity = avg_pool3d(pad(velocity[None], padding, mode="replicate"), kernel, stride=1)[0]
    velocity = velocity - velocity.mean(dim=(1, 2, 3), keepdim=True) * uniform(generator, 0, 1)
    amplitude = max_motion_voxels * uniform(generator, 0.4, 1.0)
    velocity = velocity * (amplitude / velocity.square().sum(0).sqrt().max())
    steepest = max(velocity.diff(dim=d).abs().max() for d in (1, 2, 3))
    velocity = velocity * (0.35 / steepest.clamp_min(0.35))
    return ScalingAndSquaring(7)(VelocityField.on_voxels(velocity[None, None])).values[0, 0]


def follow(ddf: Tensor, points: Tensor) -> Tensor:
    """Map template ``points`` ``(P, 3)`` to the timepoint: solve ``y + ddf(y) = p`` by fixed-point iteration."""
    target = points.T[None, :, :, None, None]
    y = target
    for _ in range(_INVERSE_STEPS):
        y = target - sample(ddf[None], y)
    return y[0, :, :, 0, 0].T


class _Template:
    """Anatomy and its signal over time as functions of continuous template coordinates."""

    def __init__(
        self, rng: torch.Generator, size: Sequence[int], since_arrival_s: np.ndarray, lesions: int, margin: int
    ):
        extent = torch.tensor([float(n - 2 * margin) for n in size])
        self.tissue = {name: signal_curve(rng, since_arrival_s, values, 0.5) for name, values in _TISSUES.items()}
        centre, radii = margin + extent * uniform(rng, 0.45, 0.55, (3,)), extent * uniform(rng, 0.42, 0.65, (3,))
        self.body = _ellipsoid(rng, centre, radii, self.tissue["fat"])
        self.organs, self.tumours, self.ktrans = [], [], []
        for _ in range(int(uniform(rng, 4, 9))):
            name = ["gland", "muscle", "blood"][int(uniform(rng, 0, 3))]
            radii = extent.mean() * uniform(rng, 0.05, 0.2, (3,))
            signal = signal_curve(rng, since_arrival_s, _TISSUES[name], 0.6)
            self.organs.append(_ellipsoid(rng, margin + extent * uniform(rng, 0.15, 0.85, (3,)), radii, signal))
        for number in range(lesions):
            values = varied(rng, lesion_kinetics(number), 0.1)
            self.ktrans.append(values[2])
            signal = _signal(since_arrival_s, *values)
            radii = extent.mean() * uniform(rng, 0.05, 0.11, (3,))
            self.tumours.append(_ellipsoid(rng, margin + extent * uniform(rng, 0.25, 0.75, (3,)), radii, signal))
        self.gland_cell = 7 * float(uniform(rng, 0.7, 1.6))
        self.gland_sharpness, self.gland_level = float(uniform(rng, 2, 8)), float(uniform(rng, -0.5, 0.5))
        self.texture_cells = [float(uniform(rng, 1.5, 3)), float(uniform(rng, 3, 7))]
        self.texture_strength = float(uniform(rng, 0.05, 0.2))
        self.texture = Texture(int(torch.randint(2**31, (), generator=rng)), size)

    def render(self, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Render signal at timepoint k, and number of the lesion or 0, at template coordinates ``(3, *P)``."""
        gland = torch.sigmoid(self.gland_sharpness * (self.texture(0, self.gland_cell, points) - self.gland_level))
        signal = (1 - gland) * float(self.tissue["fat"][k]) + gland * float(self.tissue["gland"][k])
        label = torch.zeros(points.shape[1:], dtype=torch.uint8)
        for number, part in enumerate(self.organs + self.tumours, start=1 - len(self.organs)):
            inside = part.inside(points)
            signal = signal * (1 - inside) + float(part.signal[k]) * inside
            if number > 0:
                label[inside > 0.5] = number
        texture = total(self.texture(n + 1, cell, points) for n, cell in enumerate(self.texture_cells))
        within = self.body.inside(points)
        label[within < 0.5] = 0
        return signal * (1 + self.texture_strength * texture).clamp_min(0.1) * within, label


def make_phantom(
    seed: int,
    size: Sequence[int] = (64, 64, 64),
    timepoints: int = 6,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    max_motion_voxels: float = 5.0,
    lesions: int = 3,
    landmarks: int = 300,
    noise: float = 0.02,
    margin_voxels: int = 0,
) -> dict[str, Tensor]:
    """Generate a DCE-MRI series with known motion.

    Args:
        seed: random seed; the same seed and arguments give the same series.
        size: voxels (i, j, k).
        timepoints: K; the first precedes the contrast agent.
        spacing_mm: voxel size for ``affine``; it does not change the voxels.
        max_motion_voxels: maximum displacement of any timepoint from the template, voxels.
        lesions: number of enhancing lesions; their kinetics cycle through ``LESION_KINETICS``.
        landmarks: number of points with known positions in all timepoints.
        noise: standard deviation of the Gaussian components of the Rician noise, relative to the body's mean signal.
        margin_voxels: margin of air on every side; without it the body extends beyond the field of view.

    Returns:
        ``image`` ``(K, *S)``, signal in arbitrary units; ``landmarks`` ``(K, P, 3)``, voxel coordinates of the same P
        points of tissue in each timepoint, exact to 1e-4 voxel; ``lesion_mask`` ``(K, *S)``, 0 or the number of the
        lesion from 1; ``lesion_ktrans_per_min`` ``(L,)``; ``motion`` ``(K, 3, *S)``, displacement from the voxels of
        each timepoint to the template, voxels; ``affine`` ``(4, 4)`` RAS mm; ``times_s`` ``(K,)`` since the first
        timepoint.
    """
    rng = torch.Generator().manual_seed(seed)
    interval_s = float(uniform(rng, 50, 90))
    times_s = np.arange(timepoints) * interval_s
    # The agent arrives after the first acquisition and before the second.
    template = _Template(rng, size, times_s - 0.6 * interval_s, lesions, margin_voxels)
    grid = voxel_grid(size, torch.empty(0))
    bias = torch.exp(0.15 * smooth_noise(rng, max(size) / 1.5, 1, grid, size)[0])
    motions = [random_motion(rng, size, max_motion_voxels) for _ in range(timepoints)]
    rendered = [template.render(grid + ddf, k) for k, ddf in enumerate(motions)]
    image = torch.stack([signal * bias for signal, _ in rendered])
    image = add_rician_noise(rng, image, noise * image[image > 0.01 * image.max()].mean())

    extent = torch.tensor([float(n) for n in size])
    margin = max_motion_voxels + 2
    candidates = uniform(rng, 0, 1, (landmarks * 40, 3)) * (extent - 1 - 2 * margin) + margin
    within = template.body.inside(candidates.T[:, :, None, None])[:, 0, 0] > 0.5
    chosen = candidates[within][:landmarks]
    spacing = torch.tensor([*spacing_mm, 1.0], dtype=torch.float64)
    return {
        "image": 1000 * image / image.max(),
        "landmarks": torch.stack([follow(ddf, chosen) for ddf in motions]),
        "lesion_mask": torch.stack([label for _, label in rendered]),
        "lesion_ktrans_per_min": torch.tensor(template.ktrans),
        "motion": torch.stack(motions),
        "affine": torch.diag(spacing),
        "times_s": torch.as_tensor(times_s),
    }
