"""Accuracy, folds and run time of the integrators (VoxelMorph-diff, Section 4.4.3 and Fig. 10)."""

import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from groupmorph_monai.apps.suites.suite import add_seeds, table_suite
from groupmorph_monai.benchmarks.tables import mean_row
from groupmorph_monai.evaluation.metrics import folding_percent
from groupmorph_monai.space.field import VelocityField
from groupmorph_monai.space.integrate import AdaptiveSolver, Euler, MidpointSquaring, RungeKutta4, ScalingAndSquaring
from groupmorph_monai.space.warping import compose


def integrators(
    seeds: Iterable[int], size: Sequence[int] = (64, 64, 64), max_velocity_voxels: float = 8.0
) -> list[dict]:
    """Compare the integrators on random velocities, white noise smoothed with a standard deviation of 6 voxels.

    Args:
        seeds: random seeds of the velocities.
        size: size of the grid, in voxels.
        max_velocity_voxels: greatest component of a velocity.

    Returns:
        A row per integrator with means over velocities: error against 64 Runge-Kutta steps, error of the inverse
        composed with the forward map (VoxelMorph-diff, Fig. 10), folds and seconds.
    """
    flows = {f"scaling and squaring, {n} squarings": ScalingAndSquaring(n) for n in range(9)}
    flows |= {f"midpoint step, {n} squarings": MidpointSquaring(n) for n in range(5)}
    flows |= {f"Euler, {n} steps": Euler(n) for n in (4, 16, 64)}
    flows |= {f"Runge-Kutta, {n} steps": RungeKutta4(n) for n in (1, 2, 4, 8)}
    flows |= {f"adaptive, tolerance {t:g} voxels": AdaptiveSolver(t) for t in (1e-2, 1e-4)}
    results: dict[str, list[dict]] = {name: [] for name in flows}
    for seed in seeds:
        noise = np.random.default_rng(seed).standard_normal((3, *size))
        smooth = gaussian_filter(noise, (0, 6, 6, 6), mode="wrap")
        values = torch.from_numpy(max_velocity_voxels * smooth / np.abs(smooth).max()).float()[None, None]
        velocity = VelocityField.on_voxels(values)
        reference = RungeKutta4(64)(velocity)
        for name, flow in flows.items():
            started = time.perf_counter()
            ddf = flow(velocity)
            seconds = time.perf_counter() - started
            error = (ddf - reference).values.norm(dim=2)
            inversion_error = compose(flow.inverse(velocity), ddf).values.norm(dim=2)
            # Points that leave the grid cannot be mapped back: exclude the border.
            interior = (slice(None), slice(None), *[slice(8, -8)] * 3)
            errors = {
                "mean error, voxels": error[interior].mean(),
                "greatest error, voxels": error[interior].max(),
                "mean inversion error, voxels": inversion_error[interior].mean(),
                "greatest inversion error, voxels": inversion_error[interior].max(),
            }
            row = {key: float(value) for key, value in errors.items()}
            results[name].append({**row, "folds, %": folding_percent(ddf), "seconds": seconds})
    return [{"method": name, **mean_row(rows)} for name, rows in results.items()]


INTEGRATORS = table_suite(
    "integrators", "accuracy, folds and run time of the integrators", add_seeds, lambda args: integrators(args.seeds)
)
