"""p(x given z): how well K warped volumes agree."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..space.chunks import Chunks, all_at_once
from ..space.grid import full_precision
from ..space.lattice import window_mean

__all__ = ["GroupNMI", "Likelihood", "Linearised", "SquaredError", "impute"]


_SLAB_VOXELS = 2**17


class Linearised(NamedTuple):
    """Second-order model of a log likelihood, summed over voxels, in displacements d of the warped volumes, in voxels:
    ``value + sum_k score_k <grad guide_k, d_k> - weight_k <grad guide_k, d_k>^2 / 2``.

    ``value`` is ``(B, 1, *S)``, a voxel's share for all K, the same for all where none has one of its own; ``guide`` is
    ``(B, K, *S)``, or ``(B, 1, *S)`` where all timepoints share it; ``score`` and ``weight`` are ``(B, K, *S)``.
    ``number`` ``(B, 1, *S)`` is that of the volumes of which a voxel's value tells; None is all K.
    """

    value: Tensor
    guide: Tensor
    score: Tensor
    weight: Tensor
    number: Tensor | None = None


class Likelihood(nn.Module):
    """Log likelihood per voxel and timepoint of K warped volumes ``(B, K, *S)``, up to a constant, a scalar.

    Args:
        smooth_voxels: radius of the window over which ``linearise`` averages the squared scores.
        stiffness: factor on them. A likelihood divided by an entropy or averaged over pairs has scores smaller than its
            curvature; 4 was best on phantoms for normalised mutual information and for gradients.
    """

    calibrated = False  # whether it is in nats, so that its curvature tells how sure a displacement is
    couples_all = True  # whether all timepoints are needed at once for the model of one

    def __init__(self, smooth_voxels: int = 4, stiffness: float = 4.0):
        super().__init__()
        self.smooth_voxels, self.stiffness = smooth_voxels, stiffness

    def linearise(self, warped: Tensor, valid: Tensor | None = None) -> Linearised:
        """Scores by automatic differentiation, weights by Fisher's identity: the expected square of a score is the
        expected curvature, up to ``stiffness``.

        Args:
            warped: ``(B, K, *S)``.
            valid: ``(B, K, *S)`` bool, where a volume's value was measured and not extrapolated; None is everywhere.
                What was not measured takes the mean of what was, and has no score.
        """
        with torch.enable_grad():
            warped = (warped if valid is None else impute(warped, valid)).detach().requires_grad_()
            mean = self(warped)
            (score,) = torch.autograd.grad(warped.numel() * mean, warped)
        weight = self.stiffness * window_mean(score.square(), self.smooth_voxels)
        value = (warped.shape[1] * mean.detach()).expand(warped[:, :1].shape)
        if valid is not None:
            score, weight = score * valid, weight * valid
        return Linearised(value, warped.detach(), score, weight)

    def parts(
        self, warped: Tensor, valid: Tensor | None = None, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Linearised]]:
        """`linearise`, chunk by chunk of timepoints, where the likelihood allows: ``score`` and ``weight`` are those of
        the chunk, and ``value`` is its share of the sum over K."""
        yield slice(0, warped.shape[1]), self.linearise(warped, valid)

    def guide_noise(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """Variance of the noise in the guide of `linearise` at every voxel, ``(B, 1, *S)``: none where it is not
        known."""
        return torch.zeros_like(warped[:, :1])


def impute(warped: Tensor, valid: Tensor) -> Tensor:
    """Replace the extrapolated values of ``warped`` by the mean over the timepoints whose value is ``valid``."""
    mean = (warped * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1)
    return torch.where(valid, warped, mean)


class SquaredError(Likelihood):
    """Every volume is one unseen image plus white noise (VoxelMorph-diff, Eqs. 3 and 6, for K volumes): minus the
    variance over K divided by that of the noise. With K = 2 this is ``-(x_0 - x_1)^2 / (2 noise^2)``, the paper's, in
    which the first volume is the image.

    Args:
        noise: standard deviation sigma_I of the noise, on the images' scale of [0, 1].
    """

    calibrated = True

    def __init__(self, noise: float = 0.02**0.5):
        super().__init__()
        if noise <= 0:
            raise ValueError(f"noise: expected more than 0, got {noise}")
        self.variance = noise**2

    @full_precision
    def forward(self, warped: Tensor) -> Tensor:
        return -warped.var(dim=1).mean() / self.variance

    @full_precision
    @torch.no_grad()
    def linearise(self, warped: Tensor, valid: Tensor | None = None) -> Linearised:
        """In closed form, for displacements of mean 0 over K; the mean is the guide."""
        counted = torch.ones_like(warped) if valid is None else valid.to(warped)
        number = counted.sum(dim=1, keepdim=True)
        mean = (counted * warped).sum(dim=1, keepdim=True) / number.clamp_min(1)
        # One volume alone has nothing to be compared with.
        weight = counted * (number > 1) * 2 / (self.variance * (number - 1).clamp_min(1))
        residual = mean - warped
        return Linearised(
            -0.5 * (weight * residual.square()).sum(dim=1, keepdim=True), mean, weight * residual, weight, number
        )

    def guide_noise(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """The mean's, if the volumes have half the pair's variance each."""
        number = torch.full_like(warped, 1) if valid is None else valid.to(warped)
        return 0.5 * self.variance / number.sum(dim=1, keepdim=True).clamp_min(1)


def _negative_plogp(p: Tensor) -> Tensor:
    # The offset keeps the gradient finite at p = 0, where that of xlogy is not; its error is below 1e-10 a bin.
    return -p * torch.log(p + 1e-12)


class GroupNMI(Likelihood):
    """Mean normalised mutual information over all ordered pairs i != j of the warped volumes (GroupMorph, Eq. 2).

    Marginal and joint densities are Gaussian Parzen-window estimates whose windows, one per bin, sum to 1 at every
    voxel. One matrix product of the K * bins windows gives every joint histogram at once.

    ``kind="uncertainty"`` is ``2 I(i, j) / (H_i + H_j)``, in [0, 1], 1 for images that determine one another: the scale
    of the paper's table (0.24 to 0.54). ``kind="studholme"`` is ``(H_i + H_j) / H_ij``, in [1, 2] (Studholme et al.
    1999).

    Args:
        bins: number of windows; their centres lie evenly on [0, 1], so intensities must be normalised to [0, 1] first.
            Values outside are clamped and give no gradient.
        window_bins: standard deviation of a window, in bins.
        voxel_fraction: share of the voxels, drawn anew at each call, from which the histograms are taken but for a
            module in evaluation.
        kind: see above.
    """

    def __init__(
        self, bins: int = 32, window_bins: float = 0.5, voxel_fraction: float = 1.0, kind: str = "uncertainty"
    ):
        super().__init__()
        if bins < 2 or window_bins <= 0 or not 0 < voxel_fraction <= 1:
            raise ValueError(
                "bins >= 2, window_bins > 0 and 0 < voxel_fraction <= 1 expected, got "
                f"{bins}, {window_bins} and {voxel_fraction}"
            )
        if kind not in ("uncertainty", "studholme"):
            raise ValueError(f"kind: expected 'uncertainty' or 'studholme', got {kind!r}")
        self.bins, self.window_bins, self.voxel_fraction, self.kind = bins, window_bins, voxel_fraction, kind

    def joint(self, values: Tensor) -> Tensor:
        """Joint densities of all pairs: ``(B, K, N)`` intensities to ``(B, K, bins, K, bins)``, each pair summing to
        1."""
        # Slab by slab, whose windows are computed again for the gradient: those of all voxels would fill the memory.
        slabs = values.split(_SLAB_VOXELS, dim=2)
        # No random numbers are drawn in a slab: to keep their state for the second time is to wait for a GPU.
        again = partial(checkpoint, self._counts, use_reentrant=False, preserve_rng_state=False)
        first, *rest = (again(x) if len(slabs) > 1 else self._counts(x) for x in slabs)
        return sum(rest, first) / values.shape[2]

    def _counts(self, values: Tensor) -> Tensor:
        centres = torch.arange(self.bins, dtype=values.dtype, device=values.device)
        # Bins last: softmax and the matrix product then read memory in order.
        distance = values.mT.clamp(0, 1).unsqueeze(3) * (self.bins - 1) - centres
        exponent = -0.5 * (distance / self.window_bins).square()
        # A floor of exp(-40) below the nearest window keeps the far ones and their products out of the denormal
        # numbers, which CPUs multiply slowly.
        floor = exponent.detach().amax(dim=3, keepdim=True) - 40
        windows = torch.softmax(torch.maximum(exponent, floor), dim=3)
        flat = windows.flatten(2)
        shape = windows.shape[2:]
        return (flat.mT @ flat).unflatten(2, shape).unflatten(1, shape)

    @full_precision
    def pairwise(self, warped: Tensor) -> Tensor:
        """NMI of every pair: ``(B, K, *S)`` to ``(B, K, K)``."""
        joint = self.joint(self._voxels(warped))
        marginal = joint.sum(dim=4).diagonal(dim1=1, dim2=3).mT  # any j gives i's marginal: the windows sum to 1
        entropy = _negative_plogp(marginal).sum(dim=2)
        joint_entropy = _negative_plogp(joint).sum(dim=(2, 4))
        both = entropy.unsqueeze(1) + entropy.unsqueeze(2)
        if self.kind == "studholme":
            return both / joint_entropy
        # Two constant volumes have no entropy and tell nothing of one another.
        return 2 * (both - joint_entropy) / both.clamp_min(1e-8)

    def _voxels(self, warped: Tensor) -> Tensor:
        values = warped.flatten(2)
        if self.training and self.voxel_fraction < 1:
            number = max(1, round(self.voxel_fraction * values.shape[2]))
            values = values[:, :, torch.randint(values.shape[2], (number,), device=values.device)]
        return values

    def forward(self, warped: Tensor) -> Tensor:
        """Log likelihood up to a constant: mean NMI over pairs i != j and batch, a scalar."""
        timepoints = warped.shape[1]
        if timepoints < 2:
            raise ValueError(f"warped: expected at least 2 timepoints on axis 1, got shape {tuple(warped.shape)}")
        # All but the diagonal, by views: a mask would have to be read from a GPU.
        nmi = self.pairwise(warped).flatten(1)[:, 1:].unflatten(1, (timepoints - 1, timepoints + 1))[..., :-1]
        return nmi.contiguous().mean()
