"""The series that methods are compared on, and what is asked of them beyond one table of errors."""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from ..data.breast import make_breast
from ..data.breathing import make_breathing_series
from ..data.phantom import follow, make_phantom, random_motion
from ..data.readers import read_series
from ..data.series import Frame, Series
from ..data.transforms import LoadSeriesd
from ..evaluation.metrics import folding_percent
from ..space.grid import compose, voxel_grid
from ..space.integrate import AdaptiveSolver, Euler, RungeKutta4, ScalingAndSquaring
from .compare import BundleMethod, before_and_after_mm

__all__ = ["breast_cases", "breathing", "integrators", "synthetic_cases", "warped_cases"]

SUCCESS_MM = {"inside": 1.5, "outside": 2.0}


def synthetic_cases(seeds: Iterable[int], size: Sequence[int] = (96, 96, 64), timepoints: int = 6) -> list[dict]:
    """Phantom series with 2000 landmarks each, whose motion is known."""
    return [{"name": f"phantom {seed}", **make_phantom(seed, size, timepoints, landmarks=2000)} for seed in seeds]


def breast_cases(
    seeds: Iterable[int],
    size: Sequence[int] = (128, 128, 60),
    spacing_mm: Sequence[float] = (2.898, 2.898, 3.0),
    landmarks: int = 2000,
) -> list[dict]:
    """Breast DCE-MRI series with known motion, their landmarks also as ``landmarks_mm``, RAS: of a ninth of the voxels,
    or at full size with the size and spacing of `make_breast`."""
    cases = []
    for seed in seeds:
        series = make_breast(seed, size, spacing_mm, landmarks=landmarks)
        affine = series["affine"].float()
        landmarks_mm = series["landmarks"] @ affine[:3, :3].T + affine[:3, 3]
        cases.append({"name": f"breast {seed}", **series, "landmarks_mm": landmarks_mm})
    return cases


def warped_cases(
    series: str | Sequence[str],
    seeds: Iterable[int],
    max_motion_voxels: float = 5.0,
    spacing_mm: float | None = None,
    mask: str | None = None,
) -> list[dict]:
    """A series whose timepoints lie alike as acquired, each warped by a field that is known: exact truth on real
    images, once a seed.

    Landmarks are 2000 voxels of ``mask``, a file drawn on the first timepoint, or else of those that are brighter than
    its mean, smoothed. Around what is that bright the volumes are cut with a margin of 8 voxels.
    """
    item = LoadSeriesd(spacing_mm=spacing_mm)({"image": read_series(series), "mask": mask})
    volumes = item["image"].numpy()
    smooth = gaussian_filter(volumes[0], 2)
    bright = smooth > smooth.mean()
    box = tuple(slice(max(0, int(i.min()) - 8), int(i.max()) + 9) for i in np.nonzero(bright))
    judged = bright if mask is None else item["mask"][0].numpy() > 0
    volumes, judged = volumes[(slice(None), *box)], judged[box]
    size, cases = judged.shape, []
    for seed in seeds:
        rng = torch.Generator().manual_seed(seed)
        fields = [random_motion(rng, size, max_motion_voxels) for _ in volumes]
        places = [(voxel_grid(size, u) + u).numpy() for u in fields]
        warped = [map_coordinates(v, p, order=3, mode="nearest") for v, p in zip(volumes, places)]
        candidates = torch.from_numpy(np.argwhere(judged)).float()
        margin = max_motion_voxels + 2
        inner = ((candidates > margin) & (candidates < torch.tensor(size) - 1 - margin)).all(dim=1)
        points = candidates[inner][torch.randperm(int(inner.sum()), generator=rng)[:2000]]
        cases.append(
            {
                "name": f"warped {seed}",
                "image": torch.from_numpy(np.stack(warped)).float(),
                "landmarks": torch.stack([follow(u, points) for u in fields]),
                "motion": torch.stack(fields),
            }
        )
    return cases


def breathing(
    method: BundleMethod,
    seeds: Sequence[int],
    motions_mm: Sequence[float] = (10.0, 20.0, 30.0),
    progress: Callable[[str], None] = print,
) -> list[dict]:
    """Capture range: a row for each length of breathing motion, over all seeds.

    A series counts as a success where the mean landmark distance over all pairs of timepoints is at most 1.5 mm inside
    the sliding border and 2.0 mm outside.
    """
    register, rows = method.prepare_whole(), []
    for motion in motions_mm:
        found = []
        for seed in seeds:
            case = make_breathing_series(seed, motion)
            affine = case["affine"].numpy()
            frames = tuple(Frame(volume.numpy(), affine, f"breathing {seed}") for volume in case["image"])
            before, after = before_and_after_mm(case["landmarks_mm"], register(Series(frames)))
            inside = case["inside"]
            row = {
                "before, inside, mm": float(before[:, inside].mean()),
                "inside, mm": float(after[:, inside].mean()),
                "outside, mm": float(after[:, ~inside].mean()),
            }
            row["success, %"] = 100.0 * all(row[f"{where}, mm"] <= limit for where, limit in SUCCESS_MM.items())
            found.append(row)
            progress(f"{motion:g} mm, seed {seed}: {row['inside, mm']:.2f} mm inside, {row['outside, mm']:.2f} outside")
        means = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
        worst = {f"worst {where}, mm": max(row[f"{where}, mm"] for row in found) for where in SUCCESS_MM}
        rows.append({"motion, mm": motion, "series": len(found), **means, **worst})
    return rows


def integrators(
    seeds: Iterable[int], size: Sequence[int] = (64, 64, 64), max_velocity_voxels: float = 8.0
) -> list[dict]:
    """Every way to integrate a velocity: error against 64 Runge-Kutta steps, error of the inverse after the forward map
    (VoxelMorph-diff, Fig. 10), folds and seconds, over random velocities smooth over 6 voxels."""
    flows = {f"scaling and squaring, {n} squarings": ScalingAndSquaring(n) for n in range(9)}
    flows |= {f"midpoint step, {n} squarings": ScalingAndSquaring(n, midpoint=True) for n in range(5)}
    flows |= {f"Euler, {n} steps": Euler(n) for n in (4, 16, 64)}
    flows |= {f"Runge-Kutta, {n} steps": RungeKutta4(n) for n in (1, 2, 4, 8)}
    flows |= {f"adaptive, tolerance {t:g} voxels": AdaptiveSolver(t) for t in (1e-2, 1e-4)}
    found: dict[str, list[dict]] = {name: [] for name in flows}
    for seed in seeds:
        noise = np.random.default_rng(seed).standard_normal((3, *size))
        smooth = gaussian_filter(noise, (0, 6, 6, 6), mode="wrap")
        velocity = torch.from_numpy(max_velocity_voxels * smooth / np.abs(smooth).max()).float()[None, None]
        exact = RungeKutta4(64)(velocity)
        for name, flow in flows.items():
            started = time.perf_counter()
            ddf = flow(velocity)
            seconds = time.perf_counter() - started
            error, back = (ddf - exact).norm(dim=2), compose(flow.inverse(velocity), ddf).norm(dim=2)
            # What leaves the grid comes back from its border.
            inside = (slice(None), slice(None), *[slice(8, -8)] * 3)
            row = {"mean error, voxels": error[inside].mean(), "greatest error, voxels": error[inside].max()}
            row |= {
                "mean inversion error, voxels": back[inside].mean(),
                "greatest inversion error, voxels": back[inside].max(),
            }
            row = {key: float(value) for key, value in row.items()}
            found[name].append({**row, "folds, %": folding_percent(ddf[0]), "seconds": seconds})
    return [
        {"method": name, **{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}}
        for name, rows in found.items()
    ]
