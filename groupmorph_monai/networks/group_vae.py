"""GroupMorph's network: the posterior of K velocity fields from K volumes, for a fixed K."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import cropped, init_leaky_relu_layers, leaky_relu, padded


class GroupVAE(nn.Module):
    """3D U-Net from K stacked volumes to the mean and log variance of q(z given x) (GroupMorph, Section 3 and Fig. 3).

    The channel counts in the figure are not legible; the defaults are VoxelMorph-diff's: a convolution with 32 filters,
    four strided ones with 64 and three upsampling ones with 64, so that z lies on every second voxel. Each is followed
    by a LeakyReLU of slope 0.2. The heads are followed by ``alpha tanh(x / alpha)`` with alpha =
    ``max_velocity_voxels`` for the mean, and by softplus for the variance. The division by alpha is not in the paper:
    the set of functions is the same, but near zero the unit of x is the voxel, and Adam's first steps do not move the
    mean 15 times as far. Both heads are initialised near zero, so that an untrained network predicts the identity with
    small variance.

    Args:
        timepoints: K, for which the weights are trained.
        encoder_channels: filters of the first convolution and of each strided one.
        decoder_channels: filters of each upsampling convolution. If there are fewer of them than strided convolutions,
            each missing one halves the resolution of z.
        max_velocity_voxels: bound alpha of the components of the mean, voxels of the grid of z.
        initial_std_voxels: standard deviation of q before training, voxels of the grid of z.

    Raises:
        ValueError: If there are more upsampling than strided convolutions.
    """

    def __init__(
        self,
        timepoints: int,
        encoder_channels: Sequence[int] = (32, 64, 64, 64, 64),
        decoder_channels: Sequence[int] = (64, 64, 64),
        max_velocity_voxels: float = 15.0,
        initial_std_voxels: float = 0.1,
    ):
        super().__init__()
        levels = len(encoder_channels) - 1
        if not 0 <= len(decoder_channels) <= levels:
            raise ValueError(
                f"decoder_channels: expected at most one for each of the {levels} strided convolutions, got "
                f"{len(decoder_channels)}"
            )
        self.timepoints = timepoints
        self.max_velocity_voxels = float(max_velocity_voxels)
        self.multiple = 2**levels
        self.stride = 2 ** (levels - len(decoder_channels))
        self.encoder = nn.ModuleList()
        channels = timepoints
        for level, width in enumerate(encoder_channels):
            self.encoder.append(nn.Conv3d(channels, width, 3, stride=1 if level == 0 else 2, padding=1))
            channels = width
        self.decoder = nn.ModuleList()
        for width, skip in zip(decoder_channels, reversed(list(encoder_channels)[:-1])):
            self.decoder.append(nn.Conv3d(channels + skip, width, 3, padding=1))
            channels = width
        components = timepoints * 3
        self.mean_head = nn.Conv3d(channels, components, 3, padding=1)
        self.variance_head = nn.Conv3d(channels, components, 3, padding=1)
        init_leaky_relu_layers((*self.encoder, *self.decoder))
        for head in (self.mean_head, self.variance_head):
            nn.init.normal_(head.weight, std=1e-5)
            nn.init.zeros_(head.get_parameter("bias"))
        nn.init.constant_(self.variance_head.get_parameter("bias"), math.log(math.expm1(initial_std_voxels**2)))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the posterior of z. Sizes that are not divisible by ``multiple`` are padded with border values, and
        the result is cropped.

        Args:
            images: ``(B, K, *S)``, intensities in [0, 1].

        Returns:
            ``(B, 2*K*3, *ceil(S / stride))``: mean, then log variance, of z in voxels of its grid.

        Raises:
            ValueError: If the number of timepoints is not K.
        """
        if images.shape[1] != self.timepoints:
            raise ValueError(
                f"images: expected {self.timepoints} timepoints, got {images.shape[1]}; pass {self.timepoints} "
                f"volumes, or use weights trained for {images.shape[1]} timepoints"
            )
        x = padded(images, self.multiple)
        features: list[Tensor] = []
        for layer in self.encoder:
            x = leaky_relu(layer(x))
            features.append(x)
        features.pop()
        for layer in self.decoder:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = leaky_relu(layer(torch.cat([x, features.pop()], dim=1)))
        mean = self.max_velocity_voxels * torch.tanh(self.mean_head(x) / self.max_velocity_voxels)
        # The constant keeps the logarithm finite where softplus underflows.
        log_variance = torch.log(F.softplus(self.variance_head(x)) + 1e-8)
        return cropped(torch.cat([mean, log_variance], dim=1), images, self.stride)

    @torch.jit.ignore
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Return the field of z, which is z itself, as the posterior is over fields."""
        return z
