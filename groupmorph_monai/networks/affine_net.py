"""AVSM's first stage: affine maps, found in several looks by one network."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.grid import voxel_grid
from .layers import beside_others, keep_signal

__all__ = ["AffineNet"]


class AffineNet(nn.Module):
    """The affine network of AVSM (Shen et al. 2019, Section 2.1 and Fig. 2), whose steps are the passes of the inferer:
    each sees the images warped by what was found so far, and its weights are the same.

    The paper multiplies matrices and adds translations (Eq. 1). Here z is the logarithm of a map, twelve numbers a
    timepoint, and the steps' logarithms add up, which is that to first order; what it neglects the next step sees.
    So a map and its inverse agree without the paper's symmetry loss, and K maps with their mean removed are group-wise.
    Every timepoint is seen beside the mean of the others. It is a point estimate: the log variance is minus infinity.

    Args:
        channels: filters of the convolutions, each with stride 2.
        lattice_voxels: to which the last filter maps are averaged before the fully connected layers.
        hidden: numbers between these.
    """

    def __init__(self, channels: Sequence[int] = (8, 16, 32, 32), lattice_voxels: int = 4, hidden: int = 64):
        super().__init__()
        self.multiple = self.stride = 1
        self.encoder, width = nn.ModuleList(), 2
        for channel in channels:
            self.encoder.append(nn.Conv3d(width, channel, 3, stride=2, padding=1))
            width = channel
        self.lattice_voxels = lattice_voxels
        self.hidden, self.last = nn.Linear(width * lattice_voxels**3, hidden), nn.Linear(hidden, 12)
        keep_signal(self.encoder)
        # An untrained network is near the identity.
        nn.init.normal_(self.last.weight, std=1e-3)
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K, *S)`` in [0, 1] to ``(B, 2*K*12, 1, 1, 1)``: logarithms, then log variances of minus infinity."""
        timepoints = images.shape[1]
        x = beside_others(images)
        for layer in self.encoder:
            x = F.leaky_relu(layer(x), 0.2)
        x = F.adaptive_avg_pool3d(x, self.lattice_voxels).flatten(1)
        logarithms = self.last(F.leaky_relu(self.hidden(x), 0.2)).view(-1, timepoints * 12, 1, 1, 1)
        return torch.cat([logarithms, torch.full_like(logarithms, -math.inf)], dim=1)

    @torch.jit.ignore
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Velocities ``(B, K, 3, *S)`` of logarithms ``(B, K, 12, 1, 1, 1)``: a matrix, row by row, then a translation,
        of coordinates about the images' centre in halves of their longest side."""
        size = images.shape[2:]
        centre = (torch.tensor(size, dtype=z.dtype, device=z.device) - 1) / 2
        places = (voxel_grid(size, z) - centre.view(3, 1, 1, 1)) / (max(size) / 2)
        parameters = z.flatten(2)
        matrix, translation = parameters[..., :9].unflatten(2, (3, 3)), parameters[..., 9:]
        velocity = torch.einsum("bkde,exyz->bkdxyz", matrix, places) + translation[..., None, None, None]
        return velocity * (max(size) / 2)
