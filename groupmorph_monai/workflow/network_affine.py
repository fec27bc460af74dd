"""Affine alignment by a trained network, an alternative to optimisation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.preprocessing.resampling import resample_series, working_grid
from ..data.preprocessing.transforms import ScalePercentilesd
from ..data.series import Frame, Series
from ..networks.affine_net import AffineNet, half_side_frame
from ..space.affine import affine_logarithms
from ..space.alignment import GeodesicMeanAlignment
from ..space.grid import Grid
from ..space.integrate import AffineFlow
from .affine_alignment import AffineAlignment, GroupAffine
from .inferers import RegistrationInferer
from .network_passes import NetworkPasses
from .weights import load_weights, read_weights

_LONGEST_SIDE = 36  # voxels of the network's input


class NetworkAffine:
    """Align K scans by a trained affine network (AVSM, Section 2.1). Confidence and polarity are those of
    `GroupAffine`.

    Args:
        network: affine network.
        weights: file of its weights. It may be missing for training on phantoms, which need no alignment; a call then
            raises an error.
        passes: number of passes of the network.
        lower, upper: percentiles of the intensities that are mapped to 0 and 1.
    """

    def __init__(
        self,
        network: AffineNet,
        weights: str | Path,
        passes: int = 7,
        lower: float = 0.1,
        upper: float = 99.9,
    ):
        self.network, self.missing = network.eval(), None
        # Loaded eagerly, so that a cache of aligned series depends on the weights.
        if Path(weights).is_file():
            load_weights(network, weights)
        else:
            self.missing = str(weights)
        self.inferer = RegistrationInferer(GeodesicMeanAlignment(), AffineFlow(), NetworkPasses(passes))
        self.scale = ScalePercentilesd(lower, upper)

    def __call__(self, frames: Sequence[Frame], masks: Sequence[Frame | None] | None = None) -> AffineAlignment:
        """Align ``frames``, K volumes on any grids. ``masks`` apply to the confidence only, not to the network."""
        if self.missing:
            read_weights(self.missing)
        grid = working_grid([frame.grid for frame in frames], None)
        grid = grid.at_spacing(torch.full((3,), float(grid.extent_mm.max()) / _LONGEST_SIDE, dtype=torch.float64))
        image, coverage = resample_series(Series(tuple(frames)), grid)
        scaled = self.scale({"image": image.as_tensor(), "coverage": coverage})["image"]
        return GroupAffine().assess(self._maps(scaled, coverage, grid), frames, masks)

    @torch.no_grad()
    def _maps(self, images: Tensor, coverage: Tensor, grid: Grid) -> Tensor:
        """Compute the maps from the common space to each scan, ``(K, 4, 4)``, float64, RAS mm."""
        registration = self.inferer(images[None], self.network, coverage=coverage[None])
        z = self.inferer.alignment.constrain_values(registration["z_mean"]).flatten(2)[0].double()
        from_mm = half_side_frame(images.shape[1:]) @ torch.linalg.inv(grid.affine.double())
        return torch.linalg.inv(from_mm) @ torch.linalg.matrix_exp(affine_logarithms(z)) @ from_mm
