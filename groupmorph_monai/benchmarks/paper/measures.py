"""Metrics of one registration for the table, and data for its figures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.phantoms.phantom import follow
from ...evaluation.metrics import (
    folding_percent,
    inverse_consistency_mm,
    landmark_distances_mm,
    non_diffeomorphic_volume_percent,
    similarity,
)
from ...space.field import DisplacementField
from ...space.grid import Grid, transform_points
from ...space.sampling import voxel_grid
from ...space.transforms import DenseTransform, Transform, interpolate, jacobian_determinant
from ...space.warping import inside_volume, warp
from ..compare import lesion_volume_error_percent

_INVERSE_STEPS = 60  # number of fixed-point steps to the inverse of a map
_TRUE_POINTS = 4000  # number of points at which the error of a phantom is measured
_QUANTILES = np.linspace(0, 1, 201)  # quantiles of the errors, stored for the figures


class FieldTransform(DenseTransform):
    """Transform whose inverse is solved at the requested points.

    Args:
        displacement: ``(3, *S)``, voxels of ``grid``.
        grid: grid of the displacement.
    """

    def __init__(self, displacement: Tensor, grid: Grid):
        super().__init__(displacement, None, grid)

    @property
    def inverse(self) -> Transform:
        return _Inverse(self)


class _Inverse(Transform):
    """Solve ``T(y) = x`` by fixed-point iteration, which converges if ``T - id`` is a contraction."""

    def __init__(self, transform: Transform):
        self.transform = transform

    def __call__(self, points: Tensor) -> Tensor:
        y = points
        for _ in range(_INVERSE_STEPS):
            y = points - (self.transform(y) - y)
        return y

    @property
    def inverse(self) -> Transform:
        return self.transform


def true_points_mm(motion: Tensor, image: Tensor, affine: Tensor) -> Tensor:
    """Compute the positions in each timepoint of tissue points spread evenly over a phantom: ``(K, P, 3)`` RAS mm.

    Args:
        motion: ``(K, 3, *S)``, timepoint to template, voxels.
        image: ``(K, *S)``; tissue is brighter than the mean of the first timepoint.
        affine: ``(4, 4)``.
    """
    size = image.shape[1:]
    every = max(1, round((image[0].numel() / (4 * _TRUE_POINTS)) ** (1 / 3)))
    thin = (slice(None), *[slice(every // 2, None, every)] * 3)
    template = voxel_grid(size, motion)[thin].flatten(1).T
    points = torch.stack([follow(u, template) for u in motion])
    # On a sliding border, where the motion is discontinuous, there may be no solution.
    residual = torch.stack([p + interpolate(u, p) - template for u, p in zip(motion, points)]).abs()
    last = torch.tensor(size) - 1
    within = ((points >= 0) & (points <= last) & (residual < 0.01)).all(dim=2).all(dim=0)
    i, j, k = points[0].round().long().clamp_min(0).minimum(last).unbind(dim=1)
    points = points[:, within & (image[0][i, j, k] > image[0].mean())].double()
    return transform_points(torch.as_tensor(affine), points)


def curve_roughness_percent(warped: Tensor, covered: Tensor, times_s: Tensor) -> float:
    """Compute the roughness of the intensity curves: the root mean square difference from linear interpolation between
    the neighbours in time, as a percentage of the range between the 1st and 99th percentiles. Motion makes curves
    rough; the arrival of contrast agent does so slightly. NaN if K < 3.

    Args:
        warped: ``(K, *S)``.
        covered: ``(*S)`` bool, voxels to evaluate.
        times_s: ``(K,)``.
    """
    curves = warped[:, covered]
    if len(curves) < 3 or not curves.numel():
        return float("nan")
    times = torch.as_tensor(times_s).to(curves)
    share = ((times[1:-1] - times[:-2]) / (times[2:] - times[:-2]))[:, None]
    line = curves[:-2] + share * (curves[2:] - curves[:-2])
    low, high = np.percentile(curves.numpy(), (1, 99))
    return 100 * float((curves[1:-1] - line).square().mean().sqrt()) / max(float(high - low), 1e-12)


@torch.no_grad()
def measure(
    series: Mapping[str, Any], ddf: Tensor, inverse_ddf: Tensor | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measure one registered series.

    Args:
        series: returned by ``load`` of a case.
        ddf: ``(K, 3, *S)``, common space to timepoint, voxels.
        inverse_ddf: inverse fields of the method, if available, used to map landmarks back.

    Returns:
        Numbers by column, NaN for unknown ones; and arrays for the figures.
    """
    images, affine = series["image"].float(), torch.as_tensor(series["affine"]).double()
    grid = Grid(images.shape[1:], affine)
    if inverse_ddf is None:
        transforms: list[DenseTransform] = [FieldTransform(u, grid) for u in ddf]
    else:
        transforms = [DenseTransform(u, w, grid) for u, w in zip(ddf, inverse_ddf)]
    field = DisplacementField.on_voxels(ddf[None])
    warped, covered = _warped(series, field)
    native_covered = covered if "coverage" not in series else covered & (series["coverage"] > 0.5).all(dim=0)
    similar = similarity(images, warped, native_covered)
    numbers = {
        "rmse": similar["rmse_after"],
        "nmi": similar["nmi_after"],
        "folding_percent": folding_percent(field),
        "non_diffeomorphic_volume_percent": non_diffeomorphic_volume_percent(field),
    }
    if inverse_ddf is not None:
        inverse = DisplacementField.on_voxels(inverse_ddf[None])
        numbers["inverse_consistency_mm"] = inverse_consistency_mm(field, inverse, affine)
    arrays = {
        "subtraction": _axial(warped.mean(dim=0) - warped[0]),
        "jacobian": _axial(jacobian_determinant(ddf).mean(dim=0)),
    }
    if "landmarks_mm" in series:
        distances = landmark_distances_mm(series["landmarks_mm"].double(), transforms)
        numbers["landmarks_mm_mean"] = float(distances.mean())
        numbers["landmarks_mm_sd"] = float(distances.std(correction=0))
        arrays["landmark_quantiles_mm"] = np.quantile(distances.numpy(), _QUANTILES)
    if "motion" in series:
        points = true_points_mm(series["motion"], images, affine)
        numbers["true_error_mm"] = float(landmark_distances_mm(points, transforms).mean())
    if "lesion_mask" in series:
        numbers["lesion_volume_error_percent"] = lesion_volume_error_percent(ddf, series["lesion_mask"])
    times = series.get("times_s", torch.arange(len(images)))
    numbers["curve_roughness_percent"] = curve_roughness_percent(warped, covered, times)
    return numbers, arrays


def _warped(series: Mapping[str, Any], field: DisplacementField) -> tuple[Tensor, Tensor]:
    """Warp the series, and compute the intersection of all fields of view, ``(*S)``."""
    warped, covered = warp(series["image"].float()[None], field)[0], inside_volume(field)[0]
    if "coverage" in series:
        covered &= warp(series["coverage"].float()[None], field)[0] > 0.5
    return warped, covered.all(dim=0)


def _axial(volume: Tensor) -> np.ndarray:
    return volume[..., volume.shape[-1] // 2].numpy().astype(np.float32)
