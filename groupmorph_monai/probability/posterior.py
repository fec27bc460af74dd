"""q(z given x): Gaussians with a dense mean and a variance for every component of z."""

import copy
import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..errors import InputError
from ..space.chunks import total
from ..space.cosine_transform import CosineTransform
from ..space.sampling import placed_once

Passes = Sequence[Tensor]  # a tensor for each pass of a network


def split_parameters(parameters: Tensor, timepoints: int) -> tuple[Tensor, Tensor]:
    """Split a network's output into the parameters of the posterior.

    Args:
        parameters: ``(B, 2 * K * C, *S)``, where C is the dimension D of a field, or the length of a code.
        timepoints: K.

    Returns:
        Mean and log variance, each ``(B, K, C, *S)``.
    """
    mean, log_variance = parameters.unflatten(1, (2, timepoints, -1)).unbind(1)
    return mean, log_variance


class Posterior:
    """``N(mean, C Sigma C^T)`` with ``Sigma = diag(exp(log_variance))``.

    Without smoothing C is the identity (GroupMorph, Eq. 6), else a Gaussian filter with free borders (VoxelMorph-diff,
    Section 3.2). Like the prior, the filter is diagonal in cosine coordinates, which keeps draws and the KL in closed
    form.

    Args:
        smoothing_voxels: standard deviation of the filter, in voxels of z's grid; 0 is no smoothing.

    Attributes:
        std_factor: factor on the standard deviation of draws, see `scaled`; None if it is not calibrated: draws are as
            predicted, and `check_draws` refuses them.
    """

    std_factor: float | None = 1.0

    def __init__(self, smoothing_voxels: float = 0.0):
        if smoothing_voxels < 0:
            raise ValueError(f"smoothing_voxels: expected 0 or more, got {smoothing_voxels}")
        self.smoothing_voxels = smoothing_voxels

    def scaled(self, std_factor: float | None) -> Self:
        """Return this posterior with ``std_factor`` times the standard deviation in its draws; None if not calibrated.

        A trained network underestimates the variance of its errors; a factor fitted to known errors calibrates it
        (Levi et al. 2022). For draws after training only: the KL does not contain the factor.
        """
        scaled = copy.copy(self)
        scaled.std_factor = std_factor
        return scaled

    def check_draws(self, number: int) -> None:
        """Check that the standard deviation of draws is calibrated.

        Raises:
            InputError: If ``std_factor`` is None.
        """
        if self.std_factor is None:
            raise InputError(
                "std_draws (--std): expected 0 with --no-refine, as the standard deviation of this network is not "
                f"calibrated (network_std_factor = null), got {number}; omit one of the two, or add "
                "--set network_std_factor=1 for the standard deviation as predicted"
            )

    def spectrum(self, size: Sequence[int]) -> Tensor:
        """Return the eigenvalues of C in cosine coordinates, ``(*S)`` float64: the Gaussian's Fourier transform."""
        lines = [(math.pi / n * torch.arange(n, dtype=torch.float64)).square() for n in size]
        return torch.exp(-0.5 * self.smoothing_voxels**2 * total(torch.meshgrid(lines, indexing="ij")))

    def draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Draw ``z = mean + C sqrt(Sigma) e`` with ``e ~ N(0, I)`` (reparametrisation trick).

        GroupMorph prints ``mu + Sigma Sigma^T e``, whose covariance is not Sigma.
        """
        noise = (self.std_factor or 1.0) * torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        if self.smoothing_voxels:
            size = mean.shape[3:]
            cosine = CosineTransform(size, mean)
            noise = cosine.inverse(placed_once(self.spectrum, size, like=mean) * cosine(noise))
        return mean + noise

    def of_passes(self, draws: Passes, means: Passes, log_variances: Passes) -> tuple[Tensor, Tensor]:
        """Return the mean and log variance of z after T passes, ``z = z_1 + ... + z_T``.

        ``q(z given z_1 ... z_T-1) = N(z_1 + ... + z_T-1 + mean_T, C Sigma_T C^T)``, so that a prior applies to the
        whole transformation, not to the last increment. This holds for velocities, momenta and logarithms of affine
        maps, which add up over passes.

        Args:
            draws: z of each pass, ``(B, K, C, *S)``.
            means: mean of each pass, ``(B, K, C, *S)``.
            log_variances: log variance of each pass, ``(B, K, C, *S)``.
        """
        return sum(draws[:-1], means[-1]), log_variances[-1]


class CodePosterior(Posterior):
    """Posterior of a code, which a decoder maps to a velocity; the components are independent Gaussians.

    Codes of several passes do not add up: the decoder is nonlinear and decodes each with the images of its pass. They
    are concatenated instead, so that the KL to a white prior is the sum over passes (``log p(z_1) ... p(z_T)``).
    """

    def of_passes(self, draws: Passes, means: Passes, log_variances: Passes) -> tuple[Tensor, Tensor]:
        """Concatenate the means and log variances of all passes, ``(B, K, T * C, 1, 1, 1)``."""
        return torch.cat(list(means), dim=2), torch.cat(list(log_variances), dim=2)


class StepPosterior(Posterior):
    """Posterior of passes that are separate steps, each composed with the previous map: the prior applies to the z of
    each step (AVSM, Eq. 12)."""

    def of_passes(self, draws: Passes, means: Passes, log_variances: Passes) -> tuple[Tensor, Tensor]:
        """Return the mean and log variance of the last step."""
        return means[-1], log_variances[-1]
