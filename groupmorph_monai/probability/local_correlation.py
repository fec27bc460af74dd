"""Local correlation of K volumes: the likelihood of images that agree up to an affine change of intensity nearby."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..space.chunks import Chunks, all_at_once, total
from ..space.grid import full_precision
from ..space.lattice import gaussian_filter, valid_mean, window_mean, window_moments, window_normalise
from .likelihood import Likelihood, Linearised

__all__ = ["GaussianCorrelation", "LocalCorrelation", "WindowCorrelation"]


class LocalCorrelation(Likelihood):
    """In the window around every voxel each volume is an affine function of one unseen template, plus Gaussian noise.

    Offset, gain and noise variance of every window are profiled out by least squares, which leaves ``-log(1 - rho^2) /
    2`` nats a voxel: the local correlation rho of Avants et al. (2008), of K volumes with their template instead of a
    pair, so that the cost is linear in K. The template is the mean over K of the volumes, each brought to zero mean and
    unit variance in its window. Several radii are averaged with ``radius_weights``.

    The template contains the volume itself, so a residual holds only ``(K - 1) / K`` of the noise variance. With the
    template integrated out under a flat prior, as in restricted maximum likelihood (Patterson and Thompson 1971), the
    noise variance is ``K / (K - 1)`` times that of the residuals, and K volumes count as K - 1:

    ``value = -(K - 1) / K * sum_k log(noise_k / variance_k) / 2``,
    ``noise_k = K / (K - 1) * mean(residual_k^2) + noise^2``.

    Volumes of noise alone then have value 0, whatever K is.

    Args:
        radii_voxels: half widths of the windows.
        radius_weights: share of each; none for equal ones.
        noise: standard deviation of noise below which nothing is explained, on the images' scale of [0, 1].
    """

    calibrated = True
    couples_all = False  # the template and the number of volumes at a voxel are all that they share

    def __init__(
        self, radii_voxels: Sequence[int] = (2,), radius_weights: Sequence[float] | None = None, noise: float = 0.02
    ):
        super().__init__()
        weights = [1.0] * len(radii_voxels) if radius_weights is None else list(radius_weights)
        if not radii_voxels or min(radii_voxels) < 1 or len(weights) != len(radii_voxels):
            raise ValueError(
                f"radii_voxels, radius_weights: expected radii of 1 or more and a weight for each, got {radii_voxels} "
                f"and {radius_weights}"
            )
        self.radii_voxels = tuple(radii_voxels)
        self.radius_weights = tuple(w / sum(weights) for w in weights)
        self.variance = noise**2

    @full_precision
    def _template(
        self, warped: Tensor, radius: int, valid: Tensor | None = None, chunks: Chunks = all_at_once
    ) -> Tensor:
        template, number = torch.zeros_like(warped[:, :1]), warped.shape[1]
        for c in chunks(number):
            for k in range(c.start, c.stop):
                own = None if valid is None else valid[:, k : k + 1].to(warped)
                normalised = window_normalise(warped[:, k : k + 1], radius, self.variance, own)
                template += normalised if own is None else normalised * own
        return template / (number if valid is None else _number(valid, warped, chunks).clamp_min(1))

    def _regressions(
        self, warped: Tensor, template: Tensor, radius: int, number: Tensor | int, counted: Tensor | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """Regress each volume on the template, the mean of ``number`` volumes, over its voxels that are ``counted``.

        Returns: of each volume the gain, the residual, the variance of its noise, and its own variance, ``(B, 1, *S)``.
        """
        moments = window_moments(template, radius) if counted is None else None
        for k, volume in enumerate(warped.split(1, dim=1)):
            own = None if counted is None else counted[:, k : k + 1]
            share = None if own is None else window_mean(own, radius)
            mean_t, variance_t = moments or window_moments(template, radius, own, share)
            variance_t = variance_t + 1e-3  # it is 1 where K volumes agree: a thousandth is none
            mean, variance = window_moments(volume, radius, own, share)
            covariance = valid_mean(volume * template, radius, own, share) - mean * mean_t
            gain = covariance / variance_t
            unexplained = (variance - gain * covariance).clamp_min(0) / (1 - 1 / number) + self.variance
            yield gain, volume - mean - gain * (template - mean_t), unexplained, variance + self.variance

    @full_precision
    def forward(self, warped: Tensor) -> Tensor:
        total = warped.new_zeros(())
        for radius, share in zip(self.radii_voxels, self.radius_weights):
            template = self._template(warped, radius)
            for _, _, unexplained, variance in self._regressions(warped, template, radius, warped.shape[1]):
                total = total - 0.5 * share * torch.log(unexplained / variance).mean()
        return (1 - 1 / warped.shape[1]) * total / warped.shape[1]

    @full_precision
    @torch.no_grad()
    def linearise(self, warped: Tensor, valid: Tensor | None = None) -> Linearised:
        """In closed form, for displacements of mean 0 over K, which leave the template as it is: with offset, gain and
        variance held, a residual falls by ``gain * <grad template, d>``. Then ``score = -gain * residual / noise`` and
        ``weight = gain^2 / noise``. The template is the guide: its gradient has K times less noise than a volume's
        own.

        Windows, and the template, are of the ``valid`` voxels; the regressions of those that are valid in two volumes.
        A volume counts where its neighbours are valid too, without which the template has no gradient there,
        and where at least half of the window counts."""
        ((_, linear),) = self.parts(warped, valid)
        return linear

    @torch.no_grad()
    def parts(
        self, warped: Tensor, valid: Tensor | None = None, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Linearised]]:
        """`linearise`, in chunks of timepoints that meet in the template and in how many count at a voxel."""
        guide = self._template(warped, self.radii_voxels[0], valid, chunks)
        if valid is None:
            for c in chunks(warped.shape[1]):
                yield c, self._explained(warped[:, c], guide, warped.shape[1])
            return
        number = _number(valid, warped, chunks)
        counted = self._counted(valid, number)
        told = total(counted(c.start, c.stop).sum(dim=1, keepdim=True) for c in chunks(warped.shape[1]))
        for c in chunks(warped.shape[1]):
            counts = counted(c.start, c.stop) & (told > 1)
            shared = _shared(valid[:, c], number)
            yield c, self._explained(warped[:, c], guide, number.clamp_min(2), shared, counts, told * (told > 1))

    def _counted(self, valid: Tensor, number: Tensor) -> Callable[[int, int], Tensor]:
        """Where timepoints of a range count, if another one does; the latest range is remembered."""

        @lru_cache(maxsize=1)
        @full_precision
        def counted(start: int, stop: int) -> Tensor:
            own = valid[:, start:stop].to(number)
            shared = _shared(own, number)
            return _surrounded(own) & (window_mean(shared, max(self.radii_voxels)) > 0.5) & (shared > 0)

        return counted

    @full_precision
    def _explained(
        self,
        warped: Tensor,
        guide: Tensor,
        number: Tensor | int,
        shared: Tensor | None = None,
        counts: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Linearised:
        """The model of some volumes, from the guide and how many ``number`` is the mean of. They are ``shared`` where
        another one is valid and count where ``counts``; ``told`` is how many do."""
        value, score, weight = torch.zeros_like(guide), torch.zeros_like(warped), torch.zeros_like(warped)
        for radius, share in zip(self.radii_voxels, self.radius_weights):
            for k, (gain, residual, unexplained, variance) in enumerate(
                self._regressions(warped, guide, radius, number, shared)
            ):
                own = 1 if counts is None else counts[:, k : k + 1]
                value -= 0.5 * share * (1 - 1 / number) * torch.log(unexplained / variance) * own
                precise = share * gain / unexplained * own
                score[:, k : k + 1] -= precise * residual
                weight[:, k : k + 1] += precise * gain
        return Linearised(value, guide, score, weight, told)

    @full_precision
    @torch.no_grad()
    def guide_noise(self, warped: Tensor, valid: Tensor | None = None) -> Tensor:
        """The volumes' mean noise variance in the template's units over their number, and at most the template's own
        variance."""
        number: Tensor | int = warped.shape[1]
        radius, shared = self.radii_voxels[0], None
        guide = self._template(warped, radius, valid)
        if valid is not None:
            measured = _number(valid, warped)
            shared, number = _shared(valid, measured), measured.clamp_min(2)
        noise = torch.zeros_like(guide)
        for k, (gain, _, unexplained, _) in enumerate(self._regressions(warped, guide, radius, number, shared)):
            own = (unexplained - self.variance) / gain.square().clamp_min(1e-8)
            noise = noise + (own if shared is None else own * shared[:, k : k + 1])
        anywhere = None if shared is None else shared.amax(dim=1, keepdim=True)
        return torch.minimum(noise / number**2, window_moments(guide, radius, anywhere)[1])


def _number(valid: Tensor, like: Tensor, chunks: Chunks = all_at_once) -> Tensor:
    """How many volumes are valid at a voxel, ``(B, 1, *S)``, of the images' type."""
    return total(valid[:, c].sum(dim=1, keepdim=True) for c in chunks(valid.shape[1])).to(like)


def _shared(valid: Tensor, number: Tensor) -> Tensor:
    """Where volumes are valid and another one is, ``(B, K, *S)``, of the images' type."""
    return valid.to(number) * (number > 1)


def _surrounded(valid: Tensor) -> Tensor:
    """Where all neighbours are ``valid``, ``(B, K, *S)``."""
    return window_mean(valid, 1) > 1 - 0.5 / 3 ** (valid.dim() - 2)


class GaussianCorrelation(Likelihood):
    """Squared local cross-correlation in Gaussian windows, ``mean(a b)^2 / (mean(a^2) mean(b^2))``, averaged over
    voxels and all pairs of volumes (Krebs et al. 2018, Eq. 2, for K volumes). As there, no local mean is subtracted.

    The paper's pair meets half-way, ``exp(-v / 2)`` and ``exp(v / 2)``: that is `MeanAlignment` with ``remove_mean``.

    Args:
        smoothing_voxels, kernel_voxels: standard deviation and width of the window.
        epsilon: added to the denominator.
    """

    def __init__(self, smoothing_voxels: float = 2.0, kernel_voxels: int = 9, epsilon: float = 1e-5):
        super().__init__()
        self.smoothing_voxels, self.radius, self.epsilon = smoothing_voxels, kernel_voxels // 2, epsilon

    @full_precision
    def forward(self, warped: Tensor) -> Tensor:
        timepoints = warped.shape[1]
        first, second = torch.triu_indices(timepoints, timepoints, 1, device=warped.device)
        squares = gaussian_filter(warped.square(), self.smoothing_voxels, self.radius)
        products = gaussian_filter(warped[:, first] * warped[:, second], self.smoothing_voxels, self.radius)
        return (products.square() / (squares[:, first] * squares[:, second] + self.epsilon)).mean()


class WindowCorrelation(Likelihood):
    """Multi-kernel local normalised cross-correlation (AVSM, Eq. 2): the correlation of two volumes in cubic windows,
    averaged over windows, all pairs of volumes and, weighted, sizes of window.

    Volumes are brought to zero mean and unit length in each window. The mean over pairs is then that of the squared
    length of their sum, less K, so that the cost is linear in K.

    Args:
        extents: voxels a window takes of each axis, shares of the volume's smallest extent.
        extent_weights: of the correlation in these windows.
        step: from window to window, the same kind of share. No window reaches beyond the border.
        dilation: step from one voxel that a window takes to the next.
        noise: standard deviation of noise below which nothing is explained, on the images' scale of [0, 1].
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
        """``(B, K, windows, voxels of one)``."""
        for axis in range(2, warped.dim()):
            warped = warped.unfold(axis, self.dilation * (voxels - 1) + 1, step)[..., :: self.dilation]
        return warped.flatten(-3).flatten(2, -2)

    @full_precision
    def forward(self, warped: Tensor) -> Tensor:
        timepoints, smallest, total = warped.shape[1], min(warped.shape[2:]), warped.new_zeros(())
        for extent, weight in zip(self.extents, self.extent_weights):
            voxels, step = (max(n, round(smallest * share)) for n, share in ((2, extent), (1, self.step)))
            windows = self._windows(warped, voxels, step)
            centred = windows - windows.mean(dim=3, keepdim=True)
            squares = centred.square().mean(dim=3, keepdim=True) + self.variance
            unit = centred / (squares * windows.shape[3]).sqrt()
            pairs = unit.sum(dim=1).square().sum(dim=2) - unit.square().sum(dim=(1, 3))
            total = total + weight * pairs.mean() / (timepoints * (timepoints - 1))
        return total
