"""Local correlation of K volumes: likelihoods of images that agree up to a local affine change of intensity."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..space.chunks import Chunks, all_at_once, total
from ..space.filters import gaussian_filter, surrounded, valid_mean, window_mean, window_moments
from ..space.sampling import full_precision
from .likelihood import Likelihood, Linearised, comparable

# Share of the largest window that must enter a regression for its voxel to contribute: half, as single voxels fit any
# template; the weight rises over a transition, so that it is continuous.
_LEAST_WINDOW_SHARE, _WINDOW_SHARE_TRANSITION = 0.45, 0.1
_LEAST_REMAINING = 1e-3  # share of the other volumes in a template below which a volume is compared with itself alone


class LocalCorrelation(Likelihood):
    """Local correlation with a common template: in the window around every voxel, each volume is an affine function of
    one latent template plus Gaussian noise.

    Offset, gain and noise variance of every window are profiled out by least squares, which leaves ``-log(1 - rho^2) /
    2`` nats per voxel, where rho is the local correlation of Avants et al. (2008), between each of the K volumes and
    the template instead of between pairs: the cost is linear in K. The template is the mean over K of the volumes, each
    normalised to zero mean and unit variance in the window around every voxel.

    The template contains the volume itself, so residuals contain only ``(K - 1) / K`` of the noise variance.
    Integrating the template out under a flat prior, as in restricted maximum likelihood (Patterson and Thompson 1971),
    gives ``K / (K - 1)`` times the variance of the residuals, and K volumes count as K - 1:

    ``value = -sum_k remaining_k * log(noise_k / variance_k) / 2``,
    ``noise_k = mean(residual_k^2) / remaining_k + noise^2``,

    where ``remaining_k``, ``(K - 1) / K`` if all volumes have structure in the window, is the share of the other
    volumes in the template. Volumes whose variance is below the noise floor, such as air, have hardly any. Unrelated
    volumes then have value 0 for any K, and so has a volume of structure beside volumes without any.

    Args:
        radii_voxels: half widths of the windows; the values of several radii are averaged.
        noise: standard deviation of the noise floor, on the images' scale of [0, 1].
    """

    calibrated = True
    couples_all = False  # timepoints share only the template and the number of volumes observed at each voxel
    unrelated = 0.0

    def __init__(self, radii_voxels: Sequence[int] = (2,), noise: float = 0.02):
        super().__init__()
        if not radii_voxels or min(radii_voxels) < 1:
            raise ValueError(f"radii_voxels: expected radii of 1 or more, got {radii_voxels}")
        self.radii_voxels, self.variance = tuple(radii_voxels), noise**2

    @full_precision
    def _template(
        self, warped: Tensor, radii: Sequence[int], valid: Tensor | None = None, chunks: Chunks = all_at_once
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the template of the first radius, and the volumes' `_structure` for each radius, summed over K."""
        template, timepoints = torch.zeros_like(warped[:, :1]), warped.shape[1]
        structures = [torch.zeros_like(template) for _ in radii]
        for k in (k for c in chunks(timepoints) for k in range(c.start, c.stop)):
            volume, mask = warped[:, k : k + 1], None if valid is None else valid[:, k : k + 1].to(warped)
            for radius, structure in zip(radii, structures):
                mean, variance = window_moments(volume, radius, mask)
                structure += _masked(self._structure(variance), mask)
                if structure is structures[0]:
                    template += _masked((volume - mean) * (variance + self.variance).rsqrt(), mask)
        count = timepoints if valid is None else _valid_count(valid, warped, chunks).clamp_min(1e-6)
        return template / count, structures

    def _structure(self, variance: Tensor) -> Tensor:
        """Compute the variance of a normalised volume, to which its share in the template is proportional."""
        return variance / (variance + self.variance)

    def _regressions(
        self, warped: Tensor, template: Tensor, radius: int, structure: Tensor, masks: Tensor | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Regress each volume on the template, in which the K volumes have a total ``structure``, with the weights of
        its mask.

        Yields:
            Gain, residual, noise variance and total variance of each volume, and the share of the other volumes in the
            template, ``(B, 1, *S)``.
        """
        moments = window_moments(template, radius) if masks is None else None
        for k, volume in enumerate(warped.split(1, dim=1)):
            mask = None if masks is None else masks[:, k : k + 1]
            share = None if mask is None else window_mean(mask, radius)
            mean_t, variance_t = moments or window_moments(template, radius, mask, share)
            variance_t = variance_t + 1e-3  # keeps the gain finite; the variance is 1 if all volumes agree
            mean, variance = window_moments(volume, radius, mask, share)
            covariance = valid_mean(volume * template, radius, mask, share) - mean * mean_t
            gain = covariance / variance_t
            own = _masked(self._structure(variance), mask)
            remaining = (1 - own / structure.clamp_min(1e-12)).clamp_min(0)
            noise_variance = (variance - gain * covariance).clamp_min(0) / remaining.clamp_min(_LEAST_REMAINING)
            yield (
                gain,
                volume - mean - gain * (template - mean_t),
                noise_variance + self.variance,
                variance + self.variance,
                remaining,
            )

    @full_precision
    def forward(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        value = warped.new_zeros(())
        weights = None if valid is None else comparable(valid, _valid_count(valid, warped))
        for radius in self.radii_voxels:
            template, (structure,) = self._template(warped, [radius], valid)
            for k, (_, _, noise_variance, variance, remaining) in enumerate(
                self._regressions(warped, template, radius, structure, weights)
            ):
                mask = 1 if weights is None else weights[:, k : k + 1]
                nats = remaining * torch.log(noise_variance / variance) * mask
                value = value - 0.5 * nats.mean()
        return value / (warped.shape[1] * len(self.radii_voxels))

    @full_precision
    @torch.no_grad()
    def linearise(self, warped: Tensor, valid: Tensor | None = None) -> Linearised:
        """Approximate in closed form, for displacements of mean 0 over K, which leave the template unchanged.

        With offset, gain and variance fixed, a displacement lowers a residual by ``gain * <grad template, d>``, so that
        ``score = -gain * residual / noise`` and ``weight = gain^2 / noise``. The guide is the template of the first
        radius, for all radii; its gradient has K times less noise variance than a single volume's.

        The template and its windows weight the voxels by ``valid``, the regressions by what is valid in another volume
        too. A volume contributes at a voxel as far as all neighbours are valid, as the template's gradient needs them,
        if about half of the largest window or more enters the regression, and as far as another volume contributes too.
        """
        ((_, model),) = self.parts(warped, valid)
        return model

    @torch.no_grad()
    def parts(
        self, warped: Tensor, valid: Tensor | None = None, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Linearised]]:
        """Linearise in chunks of timepoints, which share the template and the number of contributing volumes."""
        guide, structures = self._template(warped, self.radii_voxels, valid, chunks)
        if valid is None:
            for c in chunks(warped.shape[1]):
                yield c, self._chunk_model(warped[:, c], guide, structures)
            return
        valid_count = _valid_count(valid, warped, chunks)
        candidates = self._contribution_candidates(valid, valid_count)
        candidate_count = total(candidates(c.start, c.stop).sum(dim=1, keepdim=True) for c in chunks(warped.shape[1]))
        count = total(
            comparable(candidates(c.start, c.stop), candidate_count).sum(dim=1, keepdim=True)
            for c in chunks(warped.shape[1])
        )
        for c in chunks(warped.shape[1]):
            contributes = comparable(candidates(c.start, c.stop), candidate_count)
            weights = comparable(valid[:, c], valid_count)
            yield c, self._chunk_model(warped[:, c], guide, structures, weights, contributes, count)

    def _contribution_candidates(self, valid: Tensor, valid_count: Tensor) -> Callable[[int, int], Tensor]:
        """Return a function that maps a range of timepoints to the weights, ``(B, k, *S)``, with which they contribute
        if other timepoints do, and caches its latest value."""

        @lru_cache(maxsize=1)
        @full_precision
        def candidates(start: int, stop: int) -> Tensor:
            valid_chunk = valid[:, start:stop].to(valid_count)
            weights = comparable(valid_chunk, valid_count)
            share = window_mean(weights, max(self.radii_voxels))
            enough = ((share - _LEAST_WINDOW_SHARE) / _WINDOW_SHARE_TRANSITION).clamp(0, 1)
            return torch.minimum(surrounded(valid_chunk), weights) * enough

        return candidates

    @full_precision
    def _chunk_model(
        self,
        warped: Tensor,
        guide: Tensor,
        structures: Sequence[Tensor],
        weights: Tensor | None = None,
        contributes: Tensor | None = None,
        count: Tensor | None = None,
    ) -> Linearised:
        """Linearise a chunk of volumes around a given template.

        Args:
            warped: volumes of the chunk, ``(B, k, *S)``.
            guide: the template, ``(B, 1, *S)``.
            structures: structure of all K volumes for each radius, ``(B, 1, *S)`` each.
            weights: weights of the regressions, ``(B, k, *S)``; None is 1 everywhere.
            contributes: weights of the contributions, ``(B, k, *S)``; None is 1 everywhere.
            count: sum of the weights of the contributions of all chunks, ``(B, 1, *S)``.
        """
        value, score, weight = torch.zeros_like(guide), torch.zeros_like(warped), torch.zeros_like(warped)
        radius_weight = 1 / len(self.radii_voxels)
        for radius, structure in zip(self.radii_voxels, structures):
            for k, (gain, residual, noise_variance, variance, remaining) in enumerate(
                self._regressions(warped, guide, radius, structure, weights)
            ):
                mask = 1 if contributes is None else contributes[:, k : k + 1]
                value -= 0.5 * radius_weight * remaining * torch.log(noise_variance / variance) * mask
                scaled_gain = radius_weight * gain / noise_variance * (remaining / _LEAST_REMAINING).clamp_max(1) * mask
                score[:, k : k + 1] -= scaled_gain * residual
                weight[:, k : k + 1] += scaled_gain * gain
        return Linearised(value, guide, score, weight, count)

    @full_precision
    @torch.no_grad()
    def guide_noise(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """Estimate the template's noise variance: the volumes' mean noise variance, in the template's units, divided by
        their number, and at most the template's variance."""
        count: Tensor | int = warped.shape[1]
        radius, weights = self.radii_voxels[0], None
        guide, (structure,) = self._template(warped, [radius], valid)
        if valid is not None:
            valid_count = _valid_count(valid, warped)
            weights, count = comparable(valid, valid_count), valid_count.clamp_min(2)
        noise = torch.zeros_like(guide)
        for k, (gain, _, noise_variance, *_) in enumerate(self._regressions(warped, guide, radius, structure, weights)):
            in_template_units = (noise_variance - self.variance) / gain.square().clamp_min(1e-8)
            noise = noise + (in_template_units if weights is None else in_template_units * weights[:, k : k + 1])
        largest = None if weights is None else weights.amax(dim=1, keepdim=True)
        return torch.minimum(noise / count**2, window_moments(guide, radius, largest)[1])


def _masked(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


def _valid_count(valid: Tensor, like: Tensor, chunks: Chunks = all_at_once) -> Tensor:
    """Sum the weights of the volumes at each voxel: ``(B, 1, *S)``, with the dtype and device of ``like``."""
    return total(valid[:, c].sum(dim=1, keepdim=True) for c in chunks(valid.shape[1])).to(like)


class GaussianCorrelation(Likelihood):
    """Squared local cross-correlation in Gaussian windows, ``mean(a b)^2 / (mean(a^2) mean(b^2))``, averaged over
    voxels and all pairs of volumes (Krebs et al. 2018, Eq. 2, for K volumes). As there, no local mean is subtracted.

    The paper warps both images of a pair halfway, by ``exp(-v / 2)`` and ``exp(v / 2)``, which is
    `GeodesicMeanAlignment`.

    Args:
        smoothing_voxels: standard deviation of the window.
        kernel_voxels: width of the window, odd.
        epsilon: added to the denominator.
    """

    def __init__(self, smoothing_voxels: float = 2.0, kernel_voxels: int = 9, epsilon: float = 1e-5):
        super().__init__()
        if kernel_voxels < 3 or kernel_voxels % 2 == 0:
            raise ValueError(f"kernel_voxels: expected an odd number of 3 or more, got {kernel_voxels}")
        self.smoothing_voxels, self.radius, self.epsilon = smoothing_voxels, kernel_voxels // 2, epsilon

    @full_precision
    def forward(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        timepoints = warped.shape[1]
        first, second = torch.triu_indices(timepoints, timepoints, 1, device=warped.device)
        weight = 1 if valid is None else (valid[:, first] * valid[:, second]).to(warped)
        first_squares, second_squares, products = (
            gaussian_filter(warped[:, i] * warped[:, j] * weight, self.smoothing_voxels, self.radius)
            for i, j in ((first, first), (second, second), (first, second))
        )
        return (products.square() / (first_squares * second_squares + self.epsilon)).mean()


class WindowCorrelation(Likelihood):
    """Multi-kernel local normalised cross-correlation (AVSM, Eq. 2): the correlation of two volumes in cubic windows,
    averaged over windows and pairs of volumes, and over window sizes by their weights.

    Volumes are normalised to zero mean and unit length in each window; the sum over ordered pairs is then the squared
    length of the volumes' sum, less K: the cost is linear in K.

    Args:
        extents: samples per axis of the windows, as fractions of the volume's smallest extent.
        extent_weights: weight of each window size.
        step: distance between windows, as a fraction of the volume's smallest extent. No window crosses the border.
        dilation: voxels between the samples of a window.
        noise: standard deviation of the noise floor, on the images' scale of [0, 1].
    """

    def __init__(
        self,
        extents: Sequence[float] = (0.25, 0.5),
        extent_weights: Sequence[float] = (0.3, 0.7),
        step: float = 0.25,
        dilation: int = 2,
        noise: float = 0.01,
    ):
        super().__init__()
        if not extents or max(extents) * dilation > 1 or len(extents) != len(extent_weights):
            raise ValueError(
                "extents, dilation, extent_weights: expected windows that fit into a volume and a weight for each, got "
                f"{extents}, {dilation} and {extent_weights}"
            )
        self.extents, self.step, self.dilation = tuple(extents), step, dilation
        self.extent_weights = tuple(w / sum(extent_weights) for w in extent_weights)
        self.variance = noise**2

    def _windows(self, warped: Tensor, voxels: int, step: int) -> Tensor:
        """Extract the dilated windows: ``(B, K, *S)`` to ``(B, K, windows, samples)``."""
        for axis in range(2, warped.dim()):
            warped = warped.unfold(axis, self.dilation * (voxels - 1) + 1, step)[..., :: self.dilation]
        return warped.flatten(-3).flatten(2, -2)

    @full_precision
    def forward(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        timepoints, smallest, value = warped.shape[1], min(warped.shape[2:]), warped.new_zeros(())
        for extent, weight in zip(self.extents, self.extent_weights):
            voxels, step = (max(n, round(smallest * fraction)) for n, fraction in ((2, extent), (1, self.step)))
            windows = self._windows(warped, voxels, step)
            if valid is None:
                centred = windows - windows.mean(dim=3, keepdim=True)
            else:
                mask = self._windows(valid.to(warped), voxels, step)
                mean = (windows * mask).sum(dim=3, keepdim=True) / mask.sum(dim=3, keepdim=True).clamp_min(1)
                centred = (windows - mean) * mask
            squares = centred.square().mean(dim=3, keepdim=True) + self.variance
            unit = centred / (squares * windows.shape[3]).sqrt()
            pairs = unit.sum(dim=1).square().sum(dim=2) - unit.square().sum(dim=(1, 3))
            value = value + weight * pairs.mean() / (timepoints * (timepoints - 1))
        return value
