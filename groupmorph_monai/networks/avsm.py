"""AVSM's second stage: low-resolution momenta, smoothed to stationary velocities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.smoothing import MultiGaussian
from .layers import cropped, init_leaky_relu_layers, leaky_relu, padded, with_mean_of_others


class MomentumNet(nn.Module):
    """Momentum generation network of AVSM's vSVF (Shen et al. 2019, Section 2.2): a U-Net of four levels with residual
    connections, without the last decoder level, so that the momentum lies on every second voxel.

    The paper registers pairs. Here the input for every timepoint is its volume and the mean of the other volumes, with
    shared weights, so that the network accepts any K, and reordering the timepoints reorders the momenta. It is a point
    estimate: the log variance is minus infinity, and a draw equals the mean.

    z is the momentum, and ``v = (L^T L)^-1 z`` is linear in z (Eq. 8), so that the momenta of several passes add up as
    their velocities do: after pass t the map is ``exp((L^T L)^-1 (z_1 + ... + z_t))``. To first order this is the map
    of pass t composed with that of pass t - 1 (the initial map of Eq. 12), and Eq. 9 holds for the sum.

    Args:
        channels: filters on every voxel, every 2nd, 4th and 8th.
        smoothing: filter from momentum to velocity.

    Raises:
        ValueError: If there are not four levels.
    """

    def __init__(self, channels: Sequence[int] = (8, 16, 32, 32), smoothing: MultiGaussian | None = None):
        super().__init__()
        if len(channels) != 4:
            raise ValueError(f"channels: expected 4 numbers, got {list(channels)}")
        self.multiple, self.stride = 8, 2
        self.smoothing = smoothing or MultiGaussian()
        self.first = nn.Conv3d(2, channels[0], 3, padding=1)
        self.down, self.residual = nn.ModuleList(), nn.ModuleList()
        for width, previous in zip(channels[1:], channels):
            self.down.append(nn.Conv3d(previous, width, 3, stride=2, padding=1))
            self.residual.append(nn.Conv3d(width, width, 3, padding=1))
        self.up = nn.ModuleList(
            [nn.Conv3d(channels[3] + channels[2], channels[2], 3, padding=1)]
            + [nn.Conv3d(channels[2] + channels[1], channels[1], 3, padding=1)]
        )
        self.head = nn.Conv3d(channels[1], 3, 3, padding=1)
        init_leaky_relu_layers((self.first, *self.down, *self.residual, *self.up))
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the momenta.

        Args:
            images: ``(B, K, *S)``, intensities in [0, 1].

        Returns:
            ``(B, 2*K*3, *ceil(S / 2))``: momenta, then log variances of minus infinity.
        """
        timepoints = images.shape[1]
        x = leaky_relu(self.first(padded(with_mean_of_others(images), self.multiple)))
        features: list[Tensor] = []
        for down, residual in zip(self.down, self.residual):
            x = leaky_relu(down(x))
            x = x + leaky_relu(residual(x))
            features.append(x)
        features.pop()
        for up in self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = leaky_relu(up(torch.cat([x, features.pop()], dim=1)))
        momentum = cropped(self.head(x).unflatten(0, (-1, timepoints)).flatten(1, 2), images, self.stride)
        return torch.cat([momentum, torch.full_like(momentum, -float("inf"))], dim=1)

    @torch.jit.ignore
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Smooth momenta ``(B, K, 3, *C)`` to velocities of the same shape, voxels of their lattice."""
        return self.smoothing(z)
