"""GroupMorph-set's network: the posterior of K velocity fields from K volumes, for any K and in any order."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.filters import window_mean, window_normalise
from ..space.sampling import displace
from .gauss_newton_update import GaussNewtonUpdate
from .layers import check_timepoints, cropped, init_leaky_relu_layers, leaky_relu, padded
from .scriptable_geometry import continued_gradient, exponential, half_as_fine, upsampled

_SQUARINGS = 4  # number of squarings of the integration inside an update; the trained weights depend on it


class Update(nn.Module):
    """Update of z by features on its lattice, which are warped by the current z and compared with their mean over K.

    The least-squares step in each window (Lucas and Kanade 1981, for K volumes and their mean) is an input of a small
    convolutional network, which predicts the actual step.

    Args:
        features: number of features per voxel.
        hidden: channels of the hidden layers.
    """

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.squarings = _SQUARINGS
        self.feature_weight = nn.Parameter(torch.zeros(features))
        self.first = nn.Conv3d(features + 9, hidden, 3, padding=1)
        self.second = nn.Conv3d(hidden, hidden, 3, padding=1)
        self.third = nn.Conv3d(hidden, hidden, 3, padding=2, dilation=2)
        self.head = nn.Conv3d(hidden, 6, 3, padding=1)
        init_leaky_relu_layers((self.first, self.second, self.third))
        nn.init.normal_(self.head.weight, std=1e-3)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, features: Tensor, z: Tensor, timepoints: int) -> tuple[Tensor, Tensor]:
        """Update z once.

        Args:
            features: ``(B*K, C, *S)``.
            z: ``(B*K, 3, *S)``.
            timepoints: K.

        Returns:
            The updated z, and hidden activations ``(B*K, H, *S)``.
        """
        warped = self.warped(features, z).unflatten(0, (-1, timepoints))
        mean = warped.mean(dim=1, keepdim=True)
        slope, weighted = self.slopes(mean)
        b, disagreement, residual = self.compared(warped, mean, weighted)
        z, h = self.updated(slope, weighted, b, disagreement, residual, disagreement.mean(dim=1), z)
        z = z.unflatten(0, (-1, timepoints))
        return (z - z.mean(dim=1, keepdim=True)).flatten(0, 1), h

    def warped(self, features: Tensor, z: Tensor) -> Tensor:
        """Warp features by the displacement of z, ``(B*K, C, *S)``."""
        return displace(features, self.to_features(exponential(z, self.squarings)))

    def to_features(self, u: Tensor) -> Tensor:
        """Interpolate a field on the lattice of z to that of the features."""
        return u

    def from_features(self, x: Tensor, gradients: int) -> Tensor:
        """Average ``x`` to the lattice of z, whose voxels become the unit of the ``gradients`` gradients in it."""
        return x

    def slopes(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the mean features ``(B, 1, C, *S)``: ``(B, C, 3, *S)``, unweighted and weighted."""
        slope = continued_gradient(mean[:, 0])
        weight = F.softplus(self.feature_weight).view(1, -1, 1, 1, 1, 1) / mean.shape[2]
        return slope, weight * slope

    def compared(self, warped: Tensor, mean: Tensor, weighted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compare k of the K timepoints with the mean of all.

        Args:
            warped: warped features, ``(B, k, C, *S)``.
            mean: mean over all timepoints, ``(B, 1, C, *S)``.
            weighted: its weighted gradient.

        Returns:
            The right-hand side of the normal equations ``(B*k, 3, *S)``; the root mean square residual ``(B, k, 1,
            *S)``; and the residual ``(B, k, C, *S)``.
        """
        residual = warped - mean
        b = residual[:, :, :1] * weighted[:, :1]
        for c in range(1, residual.shape[2]):  # not all at once, as allocating the products would be slow
            b = torch.addcmul(b, residual[:, :, c : c + 1], weighted[:, c : c + 1])
        b = self.from_features(b.flatten(0, 1), 1)
        residual = self.from_features(residual.flatten(0, 1), 0).unflatten(0, (-1, warped.shape[1]))
        # The gradient of the root is infinite at 0, as in a patch of air.
        return b, residual.square().mean(dim=2, keepdim=True).clamp_min(1e-12).sqrt(), residual

    def updated(
        self,
        slope: Tensor,
        weighted: Tensor,
        b: Tensor,
        disagreement: Tensor,
        residual: Tensor,
        mean_disagreement: Tensor,
        z: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Update z of the timepoints that were `compared`, without removing its mean over K.

        Args:
            slope, weighted: output of `slopes`.
            b, disagreement, residual: output of `compared`.
            mean_disagreement: mean of the disagreement over all K timepoints, ``(B, 1, *S)``.
            z: ``(B*k, 3, *S)``.

        Returns:
            The updated z, and hidden activations.
        """
        products = [
            (weighted[:, :, d] * slope[:, :, e]).sum(dim=1) for d, e in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
        ]
        a, b = window_mean(self.from_features(torch.stack(products, dim=1), 2), 1), window_mean(b, 1)
        count = residual.shape[1]
        trace = a[:, :3].sum(dim=1, keepdim=True)
        step = self._solve(a, trace, b.unflatten(0, (-1, count)))
        shared = torch.cat([trace.add(1e-4).log(), mean_disagreement], dim=1).unsqueeze(1)
        shared = shared.expand(-1, count, -1, -1, -1, -1)
        inputs = torch.cat([step, z.unflatten(0, (-1, count)), disagreement, shared, residual], dim=2)
        h = leaky_relu(self.first(inputs.flatten(0, 1)))
        h = h + leaky_relu(self.second(h))
        h = h + leaky_relu(self.third(h))
        prediction = self.head(h)
        return z + torch.sigmoid(prediction[:, 3:]) * step.flatten(0, 1) + prediction[:, :3], h

    def _solve(self, a: Tensor, trace: Tensor, b: Tensor) -> Tensor:
        """Compute ``-(A + c I)^-1 b``, scaled down to less than 1 voxel.

        Args:
            a: the symmetric matrices A, ``(B, 6, *S)``: xx, yy, zz, xy, xz, yz.
            trace: their traces, ``(B, 1, *S)``, to which the damping c is proportional.
            b: ``(B, K, 3, *S)``.

        Returns:
            ``(B, K, 3, *S)``.
        """
        # The first term keeps the step short along directions without structure, the second where there is none at all.
        damping = 0.1 * trace + 1e-3
        xx, yy, zz = a[:, 0:1] + damping, a[:, 1:2] + damping, a[:, 2:3] + damping
        xy, xz, yz = a[:, 3:4], a[:, 4:5], a[:, 5:6]
        cxx, cxy, cxz = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
        cyy, cyz, czz = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
        determinant = xx * cxx + xy * cxy + xz * cxz
        bx, by, bz = b[:, :, 0], b[:, :, 1], b[:, :, 2]
        step = torch.stack(
            [cxx * bx + cxy * by + cxz * bz, cxy * bx + cyy * by + cyz * bz, cxz * bx + cyz * by + czz * bz], dim=2
        )
        step = -step / determinant.unsqueeze(2)
        return step / (1.0 + step.square().sum(dim=2, keepdim=True)).sqrt()


class FinerUpdate(Update):
    """Update of z by features on a lattice of twice its resolution."""

    def to_features(self, u: Tensor) -> Tensor:
        return upsampled(u)

    def from_features(self, x: Tensor, gradients: int) -> Tensor:
        return 2.0**gradients * half_as_fine(x)  # a gradient per voxel of z is twice that per voxel of the features


class GroupSetVAE(nn.Module):
    """Posterior of K velocity fields from K volumes, for any K of at least 2 with the same weights.

    Shared filters encode each volume separately. Timepoints interact only by means over K, so that reordering them
    reorders the result (Deep Sets, Zaheer et al. 2017). z is computed from coarse to fine, on every 16th to every 4th
    voxel. Each update warps the features by the current z, compares them with their mean, and changes z. On every 4th
    voxel, z is updated by features of every 4th voxel, then of every 2nd, and last by the images themselves. Unlike
    `GroupVAE`, which stacks the timepoints as channels (GroupMorph, Fig. 3), this network accepts series of any length.

    Args:
        encoder_channels: filters of the encoder on every 2nd, 4th, 8th and 16th voxel.
        features: number of compared features on every 2nd, 4th, 8th and 16th voxel.
        hidden_channels: channels of the network that predicts the step.
        updates: number of updates by features of every 16th, 8th, 4th and 2nd voxel, with shared weights on each
            lattice, and by the images, see `GaussNewtonUpdate`.
        max_velocity_voxels: bound alpha of the components of the mean, ``alpha tanh(z / alpha)``, voxels of the grid of
            z.
        initial_std_voxels: standard deviation of q before training, voxels of the grid of z.
        velocities: number of velocities per timepoint, as for `FlowSequence`. The updates compute one for all; the
            difference of each from it is computed from the activations of the last update.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int] = (8, 16, 24, 24),
        features: Sequence[int] = (4, 8, 8, 8),
        hidden_channels: int = 24,
        updates: Sequence[int] = (2, 1, 1, 1, 1),
        max_velocity_voxels: float = 15.0,
        initial_std_voxels: float = 0.1,
        velocities: int = 1,
    ):
        super().__init__()
        self.multiple, self.stride, self.velocities = 16, 4, velocities
        self.max_velocity_voxels = float(max_velocity_voxels)
        if len(updates) != 5:
            raise ValueError(
                f"updates: expected 5 numbers, got {list(updates)}; add the number of updates by the images"
            )
        self.updates = list(updates)
        self.encoder = nn.ModuleList()
        channels = 1
        for level, width in enumerate(encoder_channels):
            self.encoder.append(nn.Conv3d(channels, width, 3, stride=2, padding=1))
            channels = width + 1 if level == 0 else width
        widths = [encoder_channels[0] + 1, *encoder_channels[1:]]
        self.compared = nn.ModuleList([nn.Conv3d(w, f, 3, padding=1) for w, f in zip(widths, features)])
        self.look = nn.ModuleList(  # of updates; the keys of trained weights contain the name
            [update(f, hidden_channels) for update, f in zip(3 * [Update] + [FinerUpdate], reversed(features))]
        )
        self.image_update = GaussNewtonUpdate(_SQUARINGS)
        self.velocity_offsets = nn.ModuleList(
            [nn.Conv3d(hidden_channels, 3 * velocities, 3, padding=1)] if velocities > 1 else []
        )
        self.variance_head = nn.Conv3d(hidden_channels, 3 * velocities, 3, padding=1)
        init_leaky_relu_layers(self.encoder)
        for part in (self.compared, self.look):
            # A third faster on a CPU, for few filters on small lattices. PyTorch's type hints lack memory_format.
            part.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for layer in self.velocity_offsets:
            nn.init.normal_(layer.get_parameter("weight"), std=1e-3)
            nn.init.zeros_(layer.get_parameter("bias"))
        nn.init.normal_(self.variance_head.weight, std=1e-5)
        nn.init.constant_(self.variance_head.get_parameter("bias"), math.log(math.expm1(initial_std_voxels**2)))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Compute the features to compare.

        Args:
            images: volumes, ``(N, 1, *S)``, with sizes divisible by 16.

        Returns:
            Features on every 2nd, 4th, 8th and 16th voxel, ``(N, C, *S / 2)`` to ``(N, C, *S / 16)``.
        """
        x = leaky_relu(self.encoder[0](images))
        half = half_as_fine(images)
        # Windows of 5 voxels along each axis; adding a variance of 0.01^2 avoids amplifying noise.
        x = torch.cat([x, window_normalise(half, 2, 1e-4)], dim=1)
        levels = [x]
        for level, layer in enumerate(self.encoder):
            if level > 0:
                x = leaky_relu(layer(x))
                levels.append(x)
        features: list[Tensor] = []
        for level, layer in enumerate(self.compared):
            features.append(F.instance_norm(layer(levels[level])))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Compute the posterior of z. Sizes that are not divisible by 16 are padded with border values, and the result
        is cropped.

        Args:
            images: ``(B, K, *S)``, intensities in [0, 1].

        Returns:
            ``(B, 2*K*C, *ceil(S / 4))``: mean, then log variance, of z in voxels of its grid, where C is 3 times the
            number of velocities.
        """
        timepoints = check_timepoints(images)
        volumes = self.padded(images).flatten(0, 1).unsqueeze(1)
        features = self.encode(volumes)
        z = torch.zeros_like(features[3][:, :3], dtype=images.dtype)  # features may be bfloat16, geometry is not
        h = z
        for level, update in enumerate(self.look):
            if level == 1 or level == 2:
                z = upsampled(z)
            for _ in range(self.updates[level]):
                z, h = update(features[3 - level], z, timepoints)
        for _ in range(self.updates[4]):
            z = self.image_update(volumes, z, timepoints)
        z = z.repeat(1, self.velocities, 1, 1, 1)
        for layer in self.velocity_offsets:
            difference = layer(h).unflatten(0, (-1, timepoints))
            z = z + (difference - difference.mean(dim=1, keepdim=True)).flatten(0, 1)
        mean = self.bounded(z)
        # Subtracting the mean over K leaves (K - 1) / K of a draw's variance; with the factor, as much as in a pair.
        # The last term keeps the logarithm finite.
        factor = timepoints / (2 * (timepoints - 1))
        log_variance = torch.log(factor * F.softplus(self.variance_head(h).to(mean.dtype)) + 1e-8)
        parameters = torch.stack([mean, log_variance]).unflatten(1, (-1, timepoints)).transpose(0, 1).flatten(1, 3)
        return cropped(parameters, images, self.stride)

    def padded(self, images: Tensor) -> Tensor:
        """Pad images with border values to sizes that are divisible by 16, and leave two voxels or more on the coarsest
        lattice."""
        return padded(images, self.multiple, least=2 * self.multiple)

    def bounded(self, z: Tensor) -> Tensor:
        """Compute the mean of the posterior, ``alpha tanh(z / alpha)``."""
        return self.max_velocity_voxels * torch.tanh(z / self.max_velocity_voxels)

    @torch.jit.ignore
    def decode(self, z: Tensor, images: Tensor) -> Tensor:
        """Return the field of z, which is z itself, as the posterior is over fields."""
        return z
