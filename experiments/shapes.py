"""Registration of a C to a disk: large deformations without folds (VoxelMorph-diff, Section 4.4.2 and Fig. 8)."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from groupmorph_monai.apps.suites.suite import add_seeds, table_suite
from groupmorph_monai.benchmarks.figures import save_figure
from groupmorph_monai.evaluation.metrics import folding_percent, non_diffeomorphic_volume_percent
from groupmorph_monai.probability.likelihood import SquaredError
from groupmorph_monai.probability.prior import FluidPrior
from groupmorph_monai.space.alignment import GeodesicMeanAlignment
from groupmorph_monai.space.field import DisplacementField, VelocityField
from groupmorph_monai.space.integrate import ScalingAndSquaring
from groupmorph_monai.space.sampling import voxel_grid
from groupmorph_monai.space.warping import compose, warp
from groupmorph_monai.workflow import Refinement, Schedule

_TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)


def make_shapes(seed: int, size: int = 96) -> Tensor:
    """Draw a disk and a C of random radii.

    The disk's radius is 1/5 to 1/3 of ``size``, the C's outer radius 1/3.5 to 1/2.5 and its inner radius 1/6.5 to
    1/5.5.

    Args:
        seed: random seed of the radii.
        size: size of the image along both axes, in voxels.

    Returns:
        ``(1, 2, size, size)`` in [0, 1].
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return size * (low + (high - low) * float(torch.rand((), generator=rng)))

    disk, outer, inner = uniform(1 / 5, 1 / 3), uniform(1 / 3.5, 1 / 2.5), uniform(1 / 6.5, 1 / 5.5)
    x, y = voxel_grid((size, size), torch.empty(0)) - (size - 1) / 2
    radius, opening = torch.hypot(x, y), (torch.atan2(y, x).abs() - math.pi / 5) * torch.hypot(x, y)
    blur = 0.7  # voxels
    c = torch.sigmoid((outer - radius) / blur) * torch.sigmoid((radius - inner) / blur) * torch.sigmoid(opening / blur)
    return torch.stack([torch.sigmoid((disk - radius) / blur), c])[None]


def shapes(seeds: Iterable[int], folder: str | Path, progress: Callable[[str], None] = print) -> list[dict]:
    """Register a C to a disk without a network: refine the velocity from zero under the paper's squared error, with
    variance 0.06, and first-order prior.

    Args:
        seeds: random seeds of the shapes.
        folder: where to save ``shapes.png``, which shows the last pair.
        progress: called with a line per pair.

    Returns:
        A row per seed: Dice coefficient before and after registration, folds of the map and its inverse, error of the
        two composed, and the greatest displacement.
    """
    flow, rows = ScalingAndSquaring(7), []

    def centred_flow(z: VelocityField) -> DisplacementField:
        return flow(GeodesicMeanAlignment().constrain(z))

    refine = Refinement(
        SquaredError(0.06**0.5),
        FluidPrior(lambda_u=1.0, lambda_v=0.0),
        Schedule((8, 4, 2, 1), iterations=(40, 40, 40, 40), tolerance=0.01, lattice_voxels=1),
    )
    for seed in seeds:
        images = make_shapes(seed)
        start = VelocityField.on_voxels(images.new_zeros(1, 2, 2, *images.shape[2:]))
        z = refine(start, images, centred_flow)
        # Disk and C each move halfway, to their mean: the difference is the velocity of the whole way.
        velocity = z.timepoints(slice(1, 2)) - z.timepoints(slice(0, 1))
        ddf, inverse_ddf = flow(velocity), flow.inverse(velocity)
        warped_c, disk = warp(images[:, 1:], ddf) > 0.5, images[:, :1] > 0.5
        inversion_error = compose(inverse_ddf, ddf).values.norm(dim=2)
        fields = DisplacementField.on_voxels(torch.cat([_extrude(ddf), _extrude(inverse_ddf)], dim=1))
        rows.append(
            {
                "seed": seed,
                "Dice before": _dice(images[:, 1:] > 0.5, disk),
                "Dice": _dice(warped_c, disk),
                "folds, %": folding_percent(fields),
                "folded area, %": non_diffeomorphic_volume_percent(fields),
                "mean inversion error, voxels": float(inversion_error.mean()),
                "greatest inversion error, voxels": float(inversion_error.max()),
                "greatest displacement, voxels": float(ddf.values.norm(dim=2).max()),
            }
        )
        progress(f"seed {seed}: Dice {rows[-1]['Dice']:.3f}")
    _save_figure(images, velocity, flow, Path(folder) / "shapes.png")
    return rows


def _dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def _extrude(ddf: DisplacementField) -> Tensor:
    """Extend a 2D field ``(1, 1, 2, *S)`` to a 3D field of two equal slices, ``(1, 1, 3, *S, 2)``."""
    return pad(ddf.values, (0, 0, 0, 0, 0, 1)).unsqueeze(-1).expand(-1, -1, -1, -1, -1, 2).contiguous()


def _save_figure(images: Tensor, velocity: VelocityField, flow: ScalingAndSquaring, file: Path) -> None:
    """Save the deformation grids and the warped C over time, and the grids of the inverse and of both composed."""
    figure = Figure(figsize=(10, 6), dpi=80, layout="constrained")
    axes = figure.subplots(3, len(_TIMES))
    inverse_ddf = flow.inverse(velocity)
    composed = compose(inverse_ddf, flow(velocity))
    for column, time in enumerate(_TIMES):
        ddf = flow(velocity * time)
        axes[0, column].set_title(f"exp({time:g} v)")
        _plot_grid(axes[0, column], ddf)
        axes[1, column].imshow(warp(images[:, 1:], ddf)[0, 0], cmap="gray")
    axes[2, 0].imshow(images[0, 0], cmap="gray")
    axes[2, 0].set_title("disk")
    for column, (title, ddf) in enumerate((("exp(-v)", inverse_ddf), ("exp(-v) after exp(v)", composed)), start=1):
        _plot_grid(axes[2, column], ddf)
        axes[2, column].set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    save_figure(figure, file)


def _plot_grid(axis: Axes, ddf: DisplacementField) -> None:
    x, y = (voxel_grid(ddf.lattice.shape, ddf.values) + ddf.values[0, 0])[:, ::4, ::4]
    axis.plot(y.T, x.T, "k", linewidth=0.5)
    axis.plot(y, x, "k", linewidth=0.5)
    axis.set_aspect("equal")
    axis.invert_yaxis()


SHAPES = table_suite(
    "shapes",
    "large deformations without folds, from a C to a disk",
    add_seeds,
    lambda args: shapes(args.seeds, args.output),
)
