"""The last update of GroupMorph-set's network: a Gauss-Newton step on images of full resolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..space.cosine_transform import cosines, line_laplacian
from ..space.filters import window_mean, window_normalise
from ..space.sampling import displace
from .scriptable_geometry import continued_gradient, exponential, upsampled


def _multiply(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Multiply the last three axes of ``x`` by one matrix each."""
    x = x @ c.T
    x = b @ x
    return (a @ x.flatten(-2)).unflatten(-1, (x.shape[-2], x.shape[-1]))


def _thinned(x: Tensor) -> Tensor:
    """Average ``x`` ``(N, C, *S)`` to the lattice of every 4th voxel."""
    return F.avg_pool3d(x, 5, stride=4, padding=2, count_include_pad=False)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Compute the scalar product of fields ``(B, K, 3, *S)``, ``(B, K, 1, 1, 1, 1)``."""
    return (x * y).sum(dim=(2, 3, 4, 5), keepdim=True)


class GaussNewtonUpdate(nn.Module):
    """Update of z on every 4th voxel by the images themselves, without trained weights.

    The images, normalised in windows of 5 voxels along each axis, are warped by the current z and compared with their
    mean over K. For the residual r of a timepoint, the gradient g of the mean, both per voxel of the images, and the
    residual's local variance s^2, the step d minimises ``sum (r + 4 g d)^2 / s^2 + prior_weight |D^3 (z + d)|^2``,
    where D^3 are third differences on the lattice of z. Conjugate gradients in cosine coordinates solve for it.

    Args:
        squarings: number of squarings of the integration.
        prior_weight: weight of the third differences of z, in voxels of its lattice.
        conjugate_steps: number of conjugate gradient steps.
    """

    def __init__(self, squarings: int, prior_weight: float = 300.0, conjugate_steps: int = 8):
        super().__init__()
        self.squarings, self.prior_weight, self.conjugate_steps = squarings, float(prior_weight), conjugate_steps
        # Windows in which images are normalised: voxels, and a squared intensity that is added to the variance.
        self.window_radius, self.least_variance = 2, 1e-4
        # Windows of the residual's variance: voxels of the lattice of z, and the share of the mean that is added.
        self.noise_radius, self.least_noise = 4, 0.1
        # Weight of z itself, without which the step would be undetermined if the mean has no structure.
        self.least_weight = 1e-4
        self.tiny = 1e-12

    def forward(self, images: Tensor, z: Tensor, timepoints: int) -> Tensor:
        """Update z once.

        Args:
            images: ``(B*K, 1, *S)``.
            z: ``(B*K, 3, *S / 4)``, voxels of its lattice.
            timepoints: K.

        Returns:
            The updated z.
        """
        warped = self.warped(images, z).unflatten(0, (-1, timepoints))
        mean = warped.mean(dim=1, keepdim=True)
        noise = self.noise(self.squared_residual(warped, mean).mean(dim=1), timepoints)
        slope, weight, a = self.normal_matrices(mean, noise)
        z = self.updated(warped, mean, slope, weight, a, z).unflatten(0, (-1, timepoints))
        return (z - z.mean(dim=1, keepdim=True)).flatten(0, 1)

    def warped(self, images: Tensor, z: Tensor) -> Tensor:
        """Warp normalised images by the displacement of z, ``(B*K, 1, *S)``, one by one to save memory."""
        u = exponential(z, self.squarings)
        warped: list[Tensor] = []
        for n in range(len(images)):
            normalised = window_normalise(images[n : n + 1], self.window_radius, self.least_variance)
            warped.append(displace(normalised, upsampled(u[n : n + 1], 4)))
        return torch.cat(warped)

    def squared_residual(self, warped: Tensor, mean: Tensor) -> Tensor:
        """Compute the squared residual of k timepoints on the lattice of z.

        Args:
            warped: output of `warped`, ``(B, k, 1, *S)``.
            mean: mean over all timepoints, ``(B, 1, 1, *S)``.

        Returns:
            ``(B, k, 1, *S / 4)``.
        """
        return torch.stack([_thinned((warped[:, k] - mean[:, 0]).square()) for k in range(warped.shape[1])], dim=1)

    def noise(self, squared_residual: Tensor, timepoints: int) -> Tensor:
        """Compute the local variance of the residual from its square, averaged over timepoints ``(B, 1, *S / 4)``."""
        variance = window_mean(squared_residual, self.noise_radius) * (timepoints / (timepoints - 1))
        return variance + self.least_noise * variance.mean(dim=(1, 2, 3, 4), keepdim=True) + self.tiny

    def normal_matrices(self, mean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what all timepoints share.

        Args:
            mean: as for `squared_residual`.
            noise: output of `noise`.

        Returns:
            The gradient of the mean, ``(B, 3, *S)``; the weight of a node's data, ``(B, 1, 1, *S / 4)``; and the matrix
            of each node, ``(B, 3, 3, *S / 4)``. Conjugate gradients are in float64, which autocast and TF32 leave as it
            is.
        """
        slope = continued_gradient(mean[:, 0])[:, 0]
        # A node of z represents 4^3 voxels, and its displacement is 4 z voxels of the image.
        weight = (64.0 / noise.double()).unsqueeze(1)
        rows = [_thinned(slope * slope[:, d : d + 1]) for d in range(3)]
        return slope, weight, 16.0 * weight * torch.stack(rows, dim=1)

    def updated(self, warped: Tensor, mean: Tensor, slope: Tensor, weight: Tensor, a: Tensor, z: Tensor) -> Tensor:
        """Update z of k timepoints, without removing its mean over K.

        Args:
            warped, mean: as for `squared_residual`.
            slope, weight, a: output of `normal_matrices`.
            z: ``(B*k, 3, *S / 4)``.

        Returns:
            The updated z.
        """
        residuals = [_thinned((warped[:, k] - mean[:, 0]) * slope) for k in range(warped.shape[1])]
        b = 4.0 * weight * torch.stack(residuals, dim=1)
        step = self._solve(a, b, z.double().unflatten(0, (len(warped), -1)))
        return z + step.flatten(0, 1).to(z.dtype)

    def _solve(self, a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        """Minimise ``d^T A d / 2 + b^T d + prior_weight |D^3 (z + d)|^2 / 2 + least_weight |z + d|^2 / 2``.

        Args:
            a: the matrix of each node, ``(B, 3, 3, *S)``.
            b: ``(B, K, 3, *S)``.
            z: ``(B, K, 3, *S)``.

        Returns:
            d, ``(B, K, 3, *S)``.
        """
        i, j, k = [cosines(z.shape[axis], z.device) for axis in (3, 4, 5)]
        lines = [line_laplacian(z.shape[axis], z.device) for axis in (3, 4, 5)]
        prior = self.prior_weight * (lines[0][:, None, None] + lines[1][:, None] + lines[2]) ** 3 + self.least_weight
        scale = (prior + a.diagonal(dim1=1, dim2=2).mean(dim=(1, 2, 3, 4)).view(-1, 1, 1, 1, 1, 1)).rsqrt()
        residual = -scale * (_multiply(b, i, j, k) + prior * _multiply(z, i, j, k))
        solution, direction, squared = torch.zeros_like(residual), residual, _dot(residual, residual)
        for _ in range(self.conjugate_steps):
            d = _multiply(scale * direction, i.T, j.T, k.T)
            product = a[:, None, 0] * d[:, :, :1] + a[:, None, 1] * d[:, :, 1:2] + a[:, None, 2] * d[:, :, 2:]
            product = scale * _multiply(product, i, j, k) + prior * scale.square() * direction
            length = squared / (_dot(direction, product) + self.tiny)
            solution = solution + length * direction
            residual = residual - length * product
            before, squared = squared, _dot(residual, residual)
            direction = residual + squared / (before + self.tiny) * direction
        return _multiply(scale * solution, i.T, j.T, k.T)
