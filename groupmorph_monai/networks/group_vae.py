"""GroupMorph's network: K volumes in, the posterior of K velocity fields out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import keep_signal

__all__ = ["GroupVAE"]


class GroupVAE(nn.Module):
    """3D U-Net on K stacked volumes giving mean and log variance of q(z given x) (GroupMorph, Section 3 and Fig. 3).

    The figure's channel counts are not legible; the defaults are VoxelMorph-diff's: a convolution of 32 filters, four
    strided ones of 64, three upsampling ones of 64, so that z lies on every second voxel. All are followed by a
    LeakyReLU of slope 0.2 but the heads: ``alpha tanh(x / alpha)`` with alpha = ``max_velocity_voxels`` for the mean,
    softplus for the variance. Inside the tangent x is divided by alpha, which the paper does not say: the same
    functions, but near zero the head's unit is the voxel, and Adam's first steps do not throw the mean 15 times as far.
    Both heads start near zero: an untrained network is the identity with small variance.

    Args:
        timepoints: K; the weights serve this number alone.
        encoder_channels: filters of the first convolution and of each strided one.
        decoder_channels: filters of each upsampling convolution; every one missing to the number of strided
            convolutions halves the resolution of z.
        max_velocity_voxels: bound alpha of the mean's components, voxels of the grid of z.
        initial_std_voxels: standard deviation of q before training, voxels of the grid of z.
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
                f"decoder_channels: at most one for each of the {levels} strided convolutions, got "
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
        keep_signal((*self.encoder, *self.decoder))
        for head in (self.mean_head, self.variance_head):
            nn.init.normal_(head.weight, std=1e-5)
            nn.init.zeros_(head.get_parameter("bias"))
        nn.init.constant_(self.variance_head.get_parameter("bias"), math.log(math.expm1(initial_std_voxels**2)))

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K, *S)`` in [0, 1] to ``(B, 2*K*3, *ceil(S / stride))``: mean, then log variance, of z in voxels of its
        grid.

        Sizes that do not divide by ``multiple`` are padded by their border values and cropped again.
        """
        if images.shape[1] != self.timepoints:
            raise ValueError(
                f"images: this network is trained for {self.timepoints} timepoints, got {images.shape[1]}; "
                f"give {self.timepoints} volumes or use weights trained for {images.shape[1]}"
            )
        padding: list[int] = []
        for axis in range(3):
            padding = [0, -images.shape[axis + 2] % self.multiple] + padding
        x = F.pad(images, padding, mode="replicate")
        features: list[Tensor] = []
        for layer in self.encoder:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        features.pop()
        for layer in self.decoder:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = F.leaky_relu(layer(torch.cat([x, features.pop()], dim=1)), 0.2)
        mean = self.max_velocity_voxels * torch.tanh(self.mean_head(x) / self.max_velocity_voxels)
        # The floor keeps the logarithm finite where softplus underflows.
        log_variance = torch.log(F.softplus(self.variance_head(x)) + 1e-8)
        parameters = torch.cat([mean, log_variance], dim=1)
        for axis in range(3):
            kept = (images.shape[axis + 2] + self.stride - 1) // self.stride
            parameters = parameters.narrow(axis + 2, 0, kept)
        return parameters

    @torch.jit.ignore
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """The field of z: z itself, as the posterior is over the field."""
        return z
