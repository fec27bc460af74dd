"""Krebs' conditional VAE: deformations as codes of a few numbers, decoded for the image to deform."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.filters import gaussian_filter
from ..space.sampling import full_precision
from .layers import cropped, init_leaky_relu_layers, leaky_relu, padded, with_mean_of_others


class KrebsCVAE(nn.Module):
    """Conditional VAE (Krebs et al. 2018, Fig. 1): an encoder to a code of ``code_size`` numbers, and a decoder that is
    conditioned on the moving image.

    Four convolutions with strides 2, 2, 2, 1 and a fully connected layer encode a volume together with the mean of the
    other timepoints, which for K = 2 is the fixed image. A fully connected layer and transposed convolutions decode the
    code; at each scale the moving image, averaged to that scale, is concatenated with the feature maps. Two
    convolutions and a Gaussian filter yield the velocity. The paper registers pairs. Here every timepoint has its own
    code, with shared weights, so that the network accepts any K, and reordering the timepoints reorders the codes. The
    moving image is the first timepoint for all codes: from the image of the timepoint itself the decoder could infer
    its motion and ignore the code.

    The filter counts in the figure are not legible; the defaults result in the paper's 267,000 weights. The paper's
    fully connected layers fix the size of the images. Here the feature maps are averaged to ``lattice_voxels``, which
    has no effect for images of 8 times that size, 128 x 128 x 32 in the paper.

    z is the code, with the prior N(0, I). As ``decode`` is not linear in z, the codes of several passes do not add up,
    and each has its own KL divergence (`CodePosterior`).

    Args:
        code_size: length of the code of a timepoint; 16 in the paper.
        encoder_channels: filters of the four convolutions.
        decoder_channels: filters of the transposed convolutions, each of which doubles the resolution, from every 8th
            voxel: three end on every voxel (as in the paper), two on every second.
        lattice_voxels: size of the feature maps at the fully connected layers.
        smoothing_voxels, kernel_voxels: standard deviation and width of the Gaussian filter, voxels of the velocity.

    Raises:
        ValueError: If the number of layers is invalid.
    """

    def __init__(
        self,
        code_size: int = 16,
        encoder_channels: Sequence[int] = (16, 16, 24, 4),
        decoder_channels: Sequence[int] = (16, 16, 16),
        lattice_voxels: Sequence[int] = (16, 16, 4),
        smoothing_voxels: float = 3.0,
        kernel_voxels: int = 15,
    ):
        super().__init__()
        if len(encoder_channels) != 4 or not 1 <= len(decoder_channels) <= 3:
            raise ValueError(
                "encoder_channels, decoder_channels: expected 4 and 1 to 3 numbers, got "
                f"{list(encoder_channels)} and {list(decoder_channels)}"
            )
        self.code_size, self.lattice_voxels = code_size, list(lattice_voxels)
        self.smoothing_voxels, self.kernel_voxels = smoothing_voxels, kernel_voxels
        self.multiple, self.stride = 8, 2 ** (3 - len(decoder_channels))
        self.encoder = nn.ModuleList()
        channels = 2
        for width, stride in zip(encoder_channels, (2, 2, 2, 1)):
            self.encoder.append(nn.Conv3d(channels, width, 3, stride=stride, padding=1))
            channels = width
        self.maps = channels
        cells = channels * math.prod(lattice_voxels)
        self.to_code = nn.Linear(cells, 2 * code_size)
        self.from_code = nn.Linear(code_size, cells)
        self.decoder = nn.ModuleList()
        for width in decoder_channels:
            self.decoder.append(nn.ConvTranspose3d(channels + 1, width, 4, stride=2, padding=1))
            channels = width
        self.last = nn.ModuleList(
            [nn.Conv3d(channels + 1, channels, 3, padding=1), nn.Conv3d(channels, 3, 3, padding=1)]
        )
        init_leaky_relu_layers((*self.encoder, self.last[0]))
        for layer in self.decoder:
            # Each output voxel is a sum over 8 of the 64 weights of a kernel.
            weight = layer.get_parameter("weight")  # (in, out, 4, 4, 4)
            nn.init.normal_(weight, std=math.sqrt(2 / (8 * weight.shape[0])))
            nn.init.zeros_(layer.get_parameter("bias"))
        # An untrained network predicts nearly the identity.
        nn.init.normal_(self.last[1].get_parameter("weight"), std=1e-3)
        nn.init.zeros_(self.last[1].get_parameter("bias"))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: ``(B, K, *S)``, intensities in [0, 1].

        Returns:
            ``(B, 2*K*C, 1, 1, 1)``: means, then log variances, of the codes.
        """
        timepoints = images.shape[1]
        x = with_mean_of_others(images)
        for layer in self.encoder:
            x = leaky_relu(layer(x))
        # TorchScript needs a list, PyTorch's type hints a tuple.
        x = F.adaptive_avg_pool3d(x, self.lattice_voxels)  # type: ignore[arg-type]
        parameters = self.to_code(x.flatten(1)).unflatten(0, (-1, timepoints)).unflatten(2, (2, -1))
        return parameters.transpose(1, 2).flatten(1)[:, :, None, None, None]

    @torch.jit.ignore
    @full_precision
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Decode codes to velocities. Codes of one patient with the images of another transport the deformation.

        Args:
            z: ``(B, K, C, 1, 1, 1)``.
            images: ``(B, K, *S)``, of which only the first timepoint, the moving image, is used.

        Returns:
            ``(B, K, 3, *ceil(S / stride))``, in voxels of this lattice.
        """
        moving = padded(images[:, :1], self.multiple)

        def with_moving(maps: Tensor, factor: int) -> Tensor:
            thinned = F.avg_pool3d(moving, factor).repeat_interleave(images.shape[1], dim=0)
            return torch.cat([maps, thinned], dim=1)

        x = self.from_code(z.flatten(0, 1).flatten(1)).unflatten(1, (self.maps, *self.lattice_voxels))
        i, j, k = (n // 8 for n in moving.shape[2:])
        x = leaky_relu(F.adaptive_avg_pool3d(x, (i, j, k)))
        factor = 8
        for layer in self.decoder:
            x = leaky_relu(layer(with_moving(x, factor)))
            factor //= 2
        x = self.last[1](leaky_relu(self.last[0](with_moving(x, factor))))
        smoothed = gaussian_filter(x, self.smoothing_voxels, self.kernel_voxels // 2)
        return cropped(smoothed, images, self.stride).unflatten(0, images.shape[:2])
