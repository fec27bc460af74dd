"""A disk that becomes a C: how far a velocity goes without folding (VoxelMorph-diff, Section 4.4.2 and Fig. 8)."""

import argparse
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
from groupmorph_monai.space.field import Field
from groupmorph_monai.space.grid import compose, voxel_grid, warp
from groupmorph_monai.space.integrate import ScalingAndSquaring
from groupmorph_monai.workflow.refinement import Refinement

__all__ = ["SHAPES", "make_shapes", "shapes"]

_TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)


def make_shapes(seed: int, size: int = 96) -> Tensor:
    """A disk and a C, ``(1, 2, size, size)`` in [0, 1], of random radii: the disk's is a fifth to a third of the image,
    the C's outer one 1/3.5 to 1/2.5 and its inner one 1/6.5 to 1/5.5."""
    rng = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> float:
        return size * (low + (high - low) * float(torch.rand((), generator=rng)))

    disk, outer, inner = between(1 / 5, 1 / 3), between(1 / 3.5, 1 / 2.5), between(1 / 6.5, 1 / 5.5)
    x, y = voxel_grid((size, size), torch.empty(0)) - (size - 1) / 2
    radius, opening = torch.hypot(x, y), (torch.atan2(y, x).abs() - math.pi / 5) * torch.hypot(x, y)
    soft = 0.7  # voxels
    c = torch.sigmoid((outer - radius) / soft) * torch.sigmoid((radius - inner) / soft) * torch.sigmoid(opening / soft)
    return torch.stack([torch.sigmoid((disk - radius) / soft), c])[None]


def shapes(seeds: Iterable[int], folder: str | Path, progress: Callable[[str], None] = print) -> list[dict]:
    """A row a seed: overlap of the disk with the C that was brought to it, folds of the map and of its inverse, and the
    error of one after the other. ``shapes.png`` in ``folder`` shows the last pair.

    No network: the velocity is refined from zero, under the paper's squared error of variance 0.06 and first-order
    prior.
    """
    flow, rows = ScalingAndSquaring(7), []

    def halves(z: Tensor) -> Tensor:
        return flow(z - z.mean(dim=1, keepdim=True))

    refine = Refinement(
        SquaredError(0.06**0.5),
        FluidPrior(lambda_u=1.0, lambda_v=0.0),
        levels=(8, 4, 2, 1),
        iterations=(40, 40, 40, 40),
        tolerance=0.01,
        lattice_voxels=1,
        adapt_prior=False,
    )
    for seed in seeds:
        images = make_shapes(seed)
        start = Field(images.new_zeros(1, 2, 2, *images.shape[2:]), images.shape[2:])
        z = refine(start, images, halves).values
        # Half of the way each: all of it is the C's velocity less the disk's.
        velocity = z[:, 1:] - z[:, :1]
        there, back = flow(velocity), flow.inverse(velocity)
        found, disk = warp(images[:, 1:], there) > 0.5, images[:, :1] > 0.5
        error = compose(back, there).norm(dim=2)
        both = torch.cat([_flat(there), _flat(back)])
        rows.append(
            {
                "seed": seed,
                "Dice before": _dice(images[:, 1:] > 0.5, disk),
                "Dice": _dice(found, disk),
                "folds, %": folding_percent(both),
                "folded area, %": non_diffeomorphic_volume_percent(both),
                "mean inversion error, voxels": float(error.mean()),
                "greatest inversion error, voxels": float(error.max()),
                "greatest displacement, voxels": float(there.norm(dim=2).max()),
            }
        )
        progress(f"seed {seed}: Dice {rows[-1]['Dice']:.3f}")
    _picture(images, velocity, flow, Path(folder) / "shapes.png")
    return rows


def _dice(one: Tensor, other: Tensor) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _flat(ddf: Tensor) -> Tensor:
    """``(1, 1, 2, *S)`` as a field in space that is the same in two slices, ``(1, 3, *S, 2)``."""
    return pad(ddf[0], (0, 0, 0, 0, 0, 1)).unsqueeze(-1).expand(-1, -1, -1, -1, 2).contiguous()


def _picture(images: Tensor, velocity: Tensor, flow: ScalingAndSquaring, file: Path) -> None:
    figure = Figure(figsize=(10, 6), dpi=80, layout="constrained")
    axes = figure.subplots(3, len(_TIMES))
    there, back = flow(velocity), flow.inverse(velocity)
    for column, time in enumerate(_TIMES):
        ddf = flow(time * velocity)
        axes[0, column].set_title(f"exp({time:g} v)")
        _grid(axes[0, column], ddf)
        axes[1, column].imshow(warp(images[:, 1:], ddf)[0, 0], cmap="gray")
    axes[2, 0].imshow(images[0, 0], cmap="gray")
    axes[2, 0].set_title("disk")
    for column, (title, ddf) in enumerate((("exp(-v)", back), ("exp(-v) after exp(v)", compose(back, there))), start=1):
        _grid(axes[2, column], ddf)
        axes[2, column].set_title(title)
    for axis in axes.flat:
        axis.set_axis_off()
    save_figure(figure, file)


def _grid(axis: Axes, ddf: Tensor) -> None:
    x, y = (voxel_grid(ddf.shape[3:], ddf) + ddf[0, 0])[:, ::4, ::4]
    axis.plot(y.T, x.T, "k", linewidth=0.5)
    axis.plot(y, x, "k", linewidth=0.5)
    axis.set_aspect("equal")
    axis.invert_yaxis()


def _measure(args: argparse.Namespace) -> list[dict]:
    return shapes(args.seeds, args.output)


SHAPES = table_suite("shapes", "disks that become a C, without folds", add_seeds, _measure)
