"""q(z given x): a Gaussian with a dense mean and a variance for every number of z."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..space.grid import placed_once
from ..space.lattice import CosineTransform

__all__ = ["CodePosterior", "Posterior", "StepPosterior", "matched_smoothing_voxels", "split_parameters"]


def split_parameters(parameters: Tensor, timepoints: int) -> tuple[Tensor, Tensor]:
    """A network's one tensor ``(B, 2*K*C, *S)`` as mean and log variance, each ``(B, K, C, *S)``: C = D components of a
    field, or the numbers of a code."""
    mean, log_variance = parameters.unflatten(1, (2, timepoints, -1)).unbind(1)
    return mean, log_variance


def matched_smoothing_voxels(lambda_u: float) -> float:
    """Standard deviation sigma_c of the kernel that fits the scale of the prior ``lambda_u L`` (VoxelMorph-diff,
    Section 3.2).

    The paper prints ``1 / sqrt(2 pi sigma_c^3 / 2) = 1 / (6 lambda)``, which is 17 voxels at its lambda of 20. Taken
    here is that the kernel's peak ``(2 pi sigma_c^2)^(-3/2)`` is the prior's variance ``1 / (6 lambda)`` of a voxel
    whose six neighbours are held: 2 voxels.
    """
    return (6 * lambda_u) ** (1 / 3) / math.sqrt(2 * math.pi)


class Posterior:
    """``N(mean, C Sigma C^T)`` with Sigma diagonal, ``exp(log_variance)``.

    Without smoothing C is the identity (GroupMorph, Eq. 6); else a Gaussian filter with free borders (VoxelMorph-diff,
    Section 3.2), which is diagonal in cosine coordinates, as the prior is: draws and the KL stay in closed form.

    Args:
        smoothing_voxels: standard deviation of the filter, on the grid of z.
    """

    def __init__(self, smoothing_voxels: float = 0.0):
        if smoothing_voxels < 0:
            raise ValueError(f"smoothing_voxels: expected 0 or more, got {smoothing_voxels}")
        self.smoothing_voxels = smoothing_voxels

    def spectrum(self, size: Sequence[int]) -> Tensor:
        """Eigenvalues of C in cosine coordinates, ``(*S)``, float64: the Gaussian's Fourier transform."""
        squares = torch.zeros((), dtype=torch.float64)
        for axis, n in enumerate(size):
            line = (math.pi / n * torch.arange(n, dtype=torch.float64)).square()
            squares = squares + line.view([-1 if a == axis else 1 for a in range(len(size))])
        return torch.exp(-0.5 * self.smoothing_voxels**2 * squares)

    def draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """One draw ``z = mu + C sqrt(Sigma) e``, e ~ N(0, I), by the reparameterisation trick.

        GroupMorph prints ``mu + Sigma Sigma^T e``; the covariance of that is not Sigma, so the square root is computed.
        """
        noise = torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        if self.smoothing_voxels:
            size = mean.shape[3:]
            cosine = CosineTransform(size, mean)
            noise = cosine.inverse(placed_once(self.spectrum, size, like=mean) * cosine(noise))
        return mean + noise

    def of_passes(
        self, draws: Sequence[Tensor], means: Sequence[Tensor], log_variances: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of z after several passes, whose z add up as the fields that they stand for do: of
        velocities, of momenta and of logarithms of affine maps. ``z = z_1 + ... + z_T`` and
        ``q(z given z_1 ... z_T-1) = N(z_1 + ... + z_T-1 + mean_T, C Sigma_T C^T)``, so that a prior sees the whole
        transformation and not its last increment.

        Args:
            draws: z of each pass, ``(B, K, C, *S)``.
            means, log_variances: of each pass.
        """
        return sum(draws[:-1], means[-1]), log_variances[-1]


class CodePosterior(Posterior):
    """That of a code, one Gaussian a number, which a decoder turns into a velocity. Codes of several passes do not add
    up, as the decoder is not linear and each is decoded for images of its own: they are a longer code, and the KL of a
    prior that is white is the sum over passes (``log p(z_1) ... p(z_T)``)."""

    def of_passes(
        self, draws: Sequence[Tensor], means: Sequence[Tensor], log_variances: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Means and log variances of all codes, ``(B, K, T * C, 1, 1, 1)``."""
        return torch.cat(list(means), dim=2), torch.cat(list(log_variances), dim=2)


class StepPosterior(Posterior):
    """That of passes which are steps of their own, each from the map of the one before: what a prior weighs after each
    is the z of that step (AVSM, Eq. 12)."""

    def of_passes(
        self, draws: Sequence[Tensor], means: Sequence[Tensor], log_variances: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the last step."""
        return means[-1], log_variances[-1]
