"""p(x given z): likelihoods of K warped volumes."""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..space.chunks import Chunks, all_at_once
from ..space.filters import window_mean
from ..space.sampling import full_precision

_SLAB_VOXELS = 2**17  # voxels whose Parzen windows are in memory at a time


class Linearised(NamedTuple):
    """Second-order model of a log likelihood in displacements d of the warped volumes, in voxels: the sum of
    ``value + sum_k score_k <grad guide_k, d_k> - weight_k <grad guide_k, d_k>^2 / 2`` over voxels.

    Attributes:
        value: ``(B, 1, *S)``, contribution of each voxel, summed over K; constant for a likelihood without values per
            voxel.
        guide: images whose gradients the displacements are projected on, ``(B, K, *S)``, or ``(B, 1, *S)`` if shared by
            all timepoints.
        score: first derivatives, ``(B, K, *S)``.
        weight: negative second derivatives, ``(B, K, *S)``.
        volume_count: number of volumes that contribute to each voxel's value, a sum of weights, ``(B, 1, *S)``; None
            if all K do everywhere.
    """

    value: Tensor
    guide: Tensor
    score: Tensor
    weight: Tensor
    volume_count: Tensor | None = None


class Likelihood(nn.Module):
    """Log likelihood of K warped volumes ``(B, K, *S)``, averaged over voxels and timepoints, up to a constant: a
    scalar.

    A call takes the volumes and optionally ``valid``, ``(B, K, *S)``, bool or weights in [0, 1]: 1 where a value is
    measured, 0 where it is extrapolated, and between them across the border of a field of view. Extrapolated values
    have no effect: if they had, a network would learn to move all volumes out of the field of view, where the values of
    their borders agree.

    Args:
        smooth_voxels: radius of the window over which ``linearise`` averages the squared scores.
        stiffness: factor on the averaged squared scores. The scores of a likelihood divided by an entropy or averaged
            over pairs under-state its curvature; 4 was best on phantoms for normalised mutual information and for
            gradients.
    """

    calibrated = False  # whether the value is in nats, so that its curvature gives the variance of a displacement
    couples_all = True  # whether the model of one timepoint needs all timepoints at once
    unrelated = -math.inf  # value per voxel and timepoint of unrelated volumes, if it is known

    def __init__(self, smooth_voxels: int = 4, stiffness: float = 4.0):
        super().__init__()
        self.smooth_voxels, self.stiffness = smooth_voxels, stiffness

    def linearise(self, warped: Tensor, valid: Tensor | None = None) -> Linearised:
        """Approximate the log likelihood to second order around ``warped``.

        Scores come from automatic differentiation, weights from Fisher's identity: the expected square of a score is
        the expected curvature, up to ``stiffness``.

        Args:
            warped: ``(B, K, *S)``.
            valid: ``(B, K, *S)``, weights of the values as in a call, of which those above 0 count fully here; None is
                1 everywhere. Extrapolated values have zero score and weight; the guide has the mean of the measured
                ones there.
        """
        valid = None if valid is None else valid > 0  # correlations of whole windows are biased by partial weights
        with torch.enable_grad():
            warped = (warped if valid is None else impute(warped, valid)).detach().requires_grad_()
            mean = self(warped, valid)
            count = warped.numel() if valid is None else valid.sum()
            (score,) = torch.autograd.grad(count * mean, warped)
        weight = self.stiffness * window_mean(score.square(), self.smooth_voxels)
        value = (warped.shape[1] * mean.detach()).expand(warped[:, :1].shape)
        if valid is not None:
            score, weight = score * valid, weight * valid
        return Linearised(value, warped.detach(), score, weight)

    def parts(
        self, warped: Tensor, valid: Tensor | None = None, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Linearised]]:
        """Linearise in chunks of timepoints where the likelihood allows, else all at once.

        Yields:
            Slices of timepoints, each with the model of its chunk: ``score`` and ``weight`` of the chunk's timepoints,
            and ``value`` their part of the sum over K.
        """
        yield slice(0, warped.shape[1]), self.linearise(warped, valid)

    def guide_noise(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """Estimate the noise variance of `linearise`'s guide at every voxel, ``(B, 1, *S)``; 0 without an estimate."""
        return torch.zeros_like(warped[:, :1])


def impute(warped: Tensor, valid: Tensor) -> Tensor:
    """Replace the extrapolated values of ``warped`` with the mean over the timepoints whose value is ``valid``."""
    valid = valid.to(warped)
    return torch.lerp(mean_of_valid(warped, valid).expand_as(warped), warped, valid)


def mean_of_valid(warped: Tensor, valid: Tensor) -> Tensor:
    """Average ``(B, K, *S)`` over timepoints with the weights ``valid``: ``(B, 1, *S)``; 0 where all are 0."""
    return (warped * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1e-6)


def comparable(valid: Tensor, count: Tensor | None = None) -> Tensor:
    """Compute the weights with which volumes can be compared with others, ``(B, K, *S)``: their own, times the sum of
    the others' up to 1.

    Args:
        valid: weights of the volumes, ``(B, K, *S)``.
        count: sum of the weights of all K volumes, ``(B, 1, *S)``, if ``valid`` has only some of them.
    """
    count = valid.sum(dim=1, keepdim=True) if count is None else count
    valid = valid.to(count)
    return valid * (count - valid).clamp(0, 1)


class SquaredError(Likelihood):
    """Each volume is a latent image plus white noise (VoxelMorph-diff, Eqs. 3 and 6, for K volumes).

    The paper's noise is that of a difference, so that each volume has the variance ``noise^2 / 2``. With the latent
    image integrated out under a flat prior, K volumes have the log density ``-sum_k (x_k - mean)^2 / noise^2`` at a
    voxel, which `linearise` expands. A call returns its share of one of the K - 1 differences, minus the variance over
    K divided by ``noise^2``, which is the mean over pairs of the paper's ``-(x_i - x_j)^2 / (2 noise^2)``.

    Args:
        noise: standard deviation sigma_I of the difference of two volumes, on the images' scale of [0, 1].
    """

    calibrated = True

    def __init__(self, noise: float = 0.02**0.5):
        super().__init__()
        if noise <= 0:
            raise ValueError(f"noise: expected more than 0, got {noise}")
        self.variance = noise**2

    @full_precision
    def forward(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        if valid is None:
            return -warped.var(dim=1).mean() / self.variance
        count = valid.to(warped).sum(dim=1, keepdim=True)
        square = (warped - mean_of_valid(warped, valid)).square() * comparable(valid, count)
        variance = square.sum(dim=1, keepdim=True) / (count - 1).clamp_min(1)
        return -variance.sum() / (count - 1).clamp(0, 1).sum().clamp_min(1) / self.variance

    @full_precision
    @torch.no_grad()
    def linearise(self, warped: Tensor, valid: Tensor | None = None) -> Linearised:
        """Approximate in closed form, for displacements of mean 0 over K, with the mean volume as the guide."""
        valid = torch.ones_like(warped) if valid is None else valid.to(warped)
        contributes = comparable(valid)
        mean, weight = mean_of_valid(warped, valid), contributes * 2 / self.variance
        residual = mean - warped
        value = -0.5 * (weight * residual.square()).sum(dim=1, keepdim=True)
        return Linearised(value, mean, weight * residual, weight, contributes.sum(dim=1, keepdim=True))

    def guide_noise(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the noise variance of the mean volume."""
        observed = torch.full_like(warped, 1) if valid is None else valid.to(warped)
        return 0.5 * self.variance / observed.sum(dim=1, keepdim=True).clamp_min(1)


def _negative_plogp(p: Tensor) -> Tensor:
    # The offset keeps the gradient finite at p = 0, unlike xlogy's; its error is below 1e-10 per bin.
    return -p * torch.log(p + 1e-12)


class GroupNMI(Likelihood):
    """Mean normalised mutual information over all ordered pairs i != j of the warped volumes (GroupMorph, Eq. 2).

    Marginal and joint densities are Gaussian Parzen-window estimates whose windows, one per bin, sum to 1 at every
    voxel. One matrix product of the K * bins windows gives all joint histograms.

    Args:
        bins: number of windows, with centres evenly spaced on [0, 1]: normalise intensities to [0, 1] first. Values
            outside are clamped and have no gradient.
        window_bins: standard deviation of a window, in bins.
        voxel_fraction: fraction of the voxels, resampled at each call, that enter the histograms in training mode;
            all do in evaluation mode.
        kind: ``"uncertainty"``: ``2 I(i, j) / (H_i + H_j)``, in [0, 1], 1 for images that determine each other, the
            scale of the paper's table (0.24 to 0.54). ``"studholme"``: ``(H_i + H_j) / H_ij``, in [1, 2] (Studholme et
            al. 1999).
    """

    def __init__(
        self, bins: int = 32, window_bins: float = 0.5, voxel_fraction: float = 1.0, kind: str = "uncertainty"
    ):
        super().__init__()
        if bins < 2 or window_bins <= 0 or not 0 < voxel_fraction <= 1:
            raise ValueError(
                "bins, window_bins, voxel_fraction: expected bins >= 2, window_bins > 0 and 0 < voxel_fraction <= 1, "
                f"got {bins}, {window_bins} and {voxel_fraction}"
            )
        if kind not in ("uncertainty", "studholme"):
            raise ValueError(f"kind: expected 'uncertainty' or 'studholme', got {kind!r}")
        self.bins, self.window_bins, self.voxel_fraction, self.kind = bins, window_bins, voxel_fraction, kind

    def joint(self, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """Estimate the joint densities of all pairs, each over the voxels that are valid in both volumes.

        Args:
            values: intensities, ``(B, K, N)``.
            valid: weights of the voxels, ``(B, K, N)``; None is 1 everywhere.

        Returns:
            ``(B, K, bins, K, bins)``, each pair summing to 1, or to 0 if no voxel is valid in both.
        """
        # Slabs are recomputed for the gradient: the windows of all voxels would not fit in memory.
        slabs = values.split(_SLAB_VOXELS, dim=2)
        masks = [None] * len(slabs) if valid is None else valid.split(_SLAB_VOXELS, dim=2)
        # Slabs draw no random numbers, and saving the generator's state synchronises with the GPU.
        recomputed = partial(checkpoint, self._histogram, use_reentrant=False, preserve_rng_state=False)
        first, *rest = (recomputed(*x) if len(slabs) > 1 else self._histogram(*x) for x in zip(slabs, masks))
        counts = sum(rest, first)
        if valid is None:
            return counts / values.shape[2]
        return counts / counts.sum(dim=(2, 4), keepdim=True).clamp_min(1)

    def _histogram(self, values: Tensor, valid: Tensor | None = None) -> Tensor:
        centres = torch.arange(self.bins, dtype=values.dtype, device=values.device)
        # Bins last, so that softmax and the matrix product read contiguous memory.
        distance = values.mT.clamp(0, 1).unsqueeze(3) * (self.bins - 1) - centres
        exponent = -0.5 * (distance / self.window_bins).square()
        # A floor of exp(-40) relative to the nearest window keeps far windows and their products from becoming denormal
        # numbers, which CPUs multiply slowly.
        floor = exponent.detach().amax(dim=3, keepdim=True) - 40
        windows = torch.softmax(torch.maximum(exponent, floor), dim=3)
        if valid is not None:
            windows = windows * valid.mT.unsqueeze(3)
        flat = windows.flatten(2)
        shape = windows.shape[2:]
        return (flat.mT @ flat).unflatten(2, shape).unflatten(1, shape)

    @full_precision
    def pairwise(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the NMI of every pair over the voxels that are valid in both: ``(B, K, *S)`` to ``(B, K, K)``."""
        joint = self.joint(*self._sampled_voxels(warped, valid))
        entropy = _negative_plogp(joint.sum(dim=4)).sum(dim=2)  # entropy of i over the voxels that are valid in both
        joint_entropy = _negative_plogp(joint).sum(dim=(2, 4))
        entropy_sum = entropy + entropy.mT
        information = entropy_sum - joint_entropy
        # Volumes without entropy, such as constant ones or two without a common voxel, share no information.
        if self.kind == "studholme":
            return 1 + information / joint_entropy.clamp_min(1e-8)
        return 2 * information / entropy_sum.clamp_min(1e-8)

    def _sampled_voxels(self, warped: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        values, valid = warped.flatten(2), None if valid is None else valid.flatten(2)
        if self.training and self.voxel_fraction < 1:
            count = max(1, round(self.voxel_fraction * values.shape[2]))
            sampled = torch.randint(values.shape[2], (count,), device=values.device)
            values, valid = values[:, :, sampled], None if valid is None else valid[:, :, sampled]
        return values, valid

    def forward(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the mean NMI over pairs i != j and batch, a scalar: the log likelihood up to a constant.

        Raises:
            ValueError: For fewer than two timepoints.
        """
        timepoints = warped.shape[1]
        if timepoints < 2:
            raise ValueError(f"warped: expected at least 2 timepoints on axis 1, got shape {tuple(warped.shape)}")
        # Drop the diagonal by views: indexing with a mask would synchronise with the GPU.
        nmi = self.pairwise(warped, valid).flatten(1)[:, 1:].unflatten(1, (timepoints - 1, timepoints + 1))[..., :-1]
        return nmi.contiguous().mean()
