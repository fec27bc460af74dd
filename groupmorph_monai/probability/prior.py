"""p(z): a Gaussian whose precision controls the fluid energy of the velocity fields."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError
from ..space.alignment import MeanAlignment, ReferenceAlignment
from ..space.grid import full_precision, placed_once
from ..space.lattice import CosineTransform
from ..space.smoothing import MultiGaussian
from .posterior import Posterior

__all__ = ["AffineNorm", "FluidPrior", "MomentumNorm", "TemporalPrior", "UnitGaussian", "fading_weight"]


@lru_cache(maxsize=64)
def _terms(size: tuple[int, ...], step: float) -> tuple[Tensor, ...]:
    """Spectra of the orders 0 to 3 for a field on every ``step``-th voxel, float64."""
    laplacian = CosineTransform.laplacian(size)
    # A field of voxels of the lattice is ``step`` times as long in voxels of the image, a difference spans ``step`` of
    # them, and a lattice voxel stands for ``step**D``.
    return tuple(laplacian**order * step ** (2 + len(size) - 2 * order) for order in range(4))


class FluidPrior:
    """``p(z) = N(0, Lambda^-1)`` with ``Lambda`` a polynomial of L, for every component of every field:
    ``Lambda = lambda_v I + lambda_u L + lambda_b L^2 + lambda_c L^3``.

    ``L = D - A`` is the Laplacian of the voxel grid with 2*D neighbours inside and fewer at the borders. The first two
    terms are GroupMorph's (Eq. 1); the second order is the bending energy of the velocity and the third the change of
    its curvature. All are diagonal in cosine coordinates, so that the KL, the log determinant and draws stay in closed
    form. The paper prints ``mu^T Lambda^-1 mu`` in Eq. 7 where ``mu^T Lambda mu`` is meant, as its own expansion and
    supplement show; the latter is computed here.

    Args:
        lambda_u: weight of the field's differences between neighbours (viscous fluid energy).
        lambda_v: weight of its magnitude; 0 gives VoxelMorph-diff's prior.
        lambda_b: weight of its second differences.
        lambda_c: weight of its third differences.
    """

    def __init__(self, lambda_u: float = 1.0, lambda_v: float = 0.01, lambda_b: float = 0.0, lambda_c: float = 0.0):
        weights = {"lambda_v": lambda_v, "lambda_u": lambda_u, "lambda_b": lambda_b, "lambda_c": lambda_c}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"{', '.join(weights)}: expected numbers >= 0, not all 0, got {list(weights.values())}")
        self.weights = tuple(float(w) for w in weights.values())

    @property
    def linear_is_free(self) -> bool:
        """Whether only second and higher differences have a weight, which a linear field does not have."""
        return not any(self.weights[:2])

    def terms(self, size: Sequence[int], step: float = 1.0) -> list[Tensor]:
        """Eigenvalues of each order's part of Lambda that has a weight, one ``(*S)`` float64 tensor an order.

        Args:
            size: of the field's lattice.
            step: voxels between the lattice's. The weights hold for ``step`` 1; with another the same field in space
                keeps its energy, on whatever lattice it lies.
        """
        spectra = _terms(tuple(size), float(step))
        return [weight * spectrum for weight, spectrum in zip(self.weights, spectra) if weight]

    def spectrum(self, size: Sequence[int], step: float = 1.0) -> Tensor:
        """Eigenvalues of Lambda in cosine coordinates, ``(*S)``, float64."""
        return torch.stack(self.terms(size, step)).sum(dim=0)

    def log_determinant(self, size: Sequence[int]) -> float:
        """log |Lambda| for one component on a grid of ``size``, exact."""
        eigenvalues = self.spectrum(size)
        # With lambda_v = 0 (VoxelMorph's prior) a constant field has no density: the pseudo-determinant leaves it out.
        return eigenvalues[eigenvalues > 1e-12].log().sum().item()

    def energy(self, z: Tensor) -> Tensor:
        """``z^T Lambda z`` of every field component: ``(B, K, D, *S)`` to ``(B, K, D)``."""
        size = z.shape[3:]
        coefficients = CosineTransform(size, z)(z)
        return (placed_once(self.spectrum, size, like=z) * coefficients.square()).flatten(3).sum(dim=3)

    def kl(self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None) -> Tensor:
        """``KL(q || p)``, one number per field: ``(B, K, D, *S)`` twice to ``(B, K)``, summed over components and
        voxels, constants included (GroupMorph, supplement). ``posterior`` says what the two are of; none is one that
        does not smooth."""
        of_size = mean.shape[3:], (posterior or Posterior()).smoothing_voxels
        diagonal, constant = (placed_once(make, *of_size, like=mean) for make in (self._diagonal, self._constant))
        trace = (diagonal * log_variance.exp() - log_variance).flatten(3).sum(dim=3)
        return 0.5 * (trace + self.energy(mean) - constant).sum(dim=2)

    def _diagonal(self, size: Sequence[int], smoothing_voxels: float) -> Tensor:
        """That of ``C^T Lambda C``, ``(*S)``, with C the posterior's filter."""
        return CosineTransform.diagonal(self.spectrum(size) * Posterior(smoothing_voxels).spectrum(size).square())

    def _constant(self, size: Sequence[int], smoothing_voxels: float) -> Tensor:
        """What of twice the KL of one component does not depend on the posterior's mean and variance."""
        log_smoothing = Posterior(smoothing_voxels).spectrum(size).log().sum().item()
        return torch.tensor(math.prod(size) + self.log_determinant(size) + 2 * log_smoothing, dtype=torch.float64)

    def __call__(self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None) -> Tensor:
        """The loss term: KL averaged over voxels, timepoints and batch, summed over components; a scalar.

        Eq. 7 sums it over voxels beside a mean NMI in [0, 1]: taken literally it drowns the images by a factor of the
        number of voxels, and its weight would change with the patch size. The average over timepoints answers the
        likelihood's average over pairs, so that the balance does not change with K either.
        """
        return self.kl(mean, log_variance, posterior).mean() / math.prod(mean.shape[3:])


class TemporalPrior(FluidPrior):
    """A `FluidPrior` that also holds neighbouring timepoints together: ``lambda_t`` weighs the squared differences
    between the fields of timepoints k and k + 1, for series in the order of their times (4D smoothness, GroupMorph,
    Section 6). The precision ``Lambda + lambda_t L_t``, with L_t the Laplacian of the line of K timepoints, is diagonal
    in cosine coordinates over K and space, so that all stays in closed form.

    Args:
        lambda_t: see above; the other weights as in `FluidPrior`.
    """

    def __init__(self, lambda_t: float, **weights: float):
        super().__init__(**weights)
        if lambda_t < 0:
            raise ValueError(f"lambda_t: expected 0 or more, got {lambda_t}")
        self.lambda_t = float(lambda_t)

    def _spectrum(self, timepoints: int, size: Sequence[int]) -> Tensor:
        """Eigenvalues over K and space, ``(K, *S)``, float64."""
        line = CosineTransform.laplacian((timepoints,)).view(-1, *[1] * len(size))
        return self.spectrum(size) + self.lambda_t * line

    def energy(self, z: Tensor) -> Tensor:
        """``z^T Lambda z`` of a series, shared equally among its timepoints: ``(B, K, D, *S)`` to ``(B, K, D)``."""
        series = z.transpose(1, 2)  # (B, D, K, *S)
        coefficients = CosineTransform(series.shape[2:], z)(series)
        spectrum = placed_once(self._spectrum, z.shape[1], z.shape[3:], like=z)
        total = (spectrum * coefficients.square()).flatten(2).sum(dim=2)
        return (total / z.shape[1]).unsqueeze(1).expand(-1, z.shape[1], -1)

    def kl(self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None) -> Tensor:
        """As `FluidPrior.kl`, the series' total shared equally among its timepoints."""
        timepoints, size = mean.shape[1], mean.shape[3:]
        of_size = timepoints, size, (posterior or Posterior()).smoothing_voxels
        makers = self._diagonal_of_series, self._constant_of_series
        diagonal, constant = (placed_once(make, *of_size, like=mean) for make in makers)
        trace = (diagonal.unsqueeze(1) * log_variance.exp() - log_variance).flatten(3).sum(dim=3)
        return 0.5 * (trace.mean(dim=1, keepdim=True) + self.energy(mean) - constant).sum(dim=2)

    def _diagonal_of_series(self, timepoints: int, size: Sequence[int], smoothing_voxels: float) -> Tensor:
        """As `FluidPrior._diagonal`, ``(K, *S)``."""
        smoothing = Posterior(smoothing_voxels).spectrum(size)
        return CosineTransform.diagonal(self._spectrum(timepoints, size) * smoothing.square())

    def _constant_of_series(self, timepoints: int, size: Sequence[int], smoothing_voxels: float) -> Tensor:
        spectrum, smoothing = self._spectrum(timepoints, size), Posterior(smoothing_voxels).spectrum(size)
        determined = spectrum[spectrum > 1e-12].log().sum().item() / timepoints
        return torch.tensor(math.prod(size) + determined + 2 * smoothing.log().sum().item(), dtype=torch.float64)


class UnitGaussian:
    """``p(z) = N(0, I)``, of codes (Krebs et al. 2018, Eq. 1)."""

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """``KL(q || p)``, one number per timepoint: ``(B, K, C, *S)`` twice to ``(B, K)``, summed over the code."""
        return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).flatten(2).sum(dim=2)

    def __call__(self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None) -> Tensor:
        """The loss term: KL averaged over timepoints and batch, a scalar. ``posterior`` is one that does not smooth."""
        return self.kl(mean, log_variance).mean()


class MomentumNorm:
    """``-log p(m) = weight <m, v>`` with ``v`` the smoothed momentum (AVSM, Eqs. 8 and 9): a Gaussian with the inverse
    filter's covariance. Of point estimates, so that there is no log variance to weigh. Of velocities, as a refinement
    takes them, it is the Gaussian whose covariance is the filter.

    The inner product is the integral over an image whose longest side is 1, as the paper scales it: with ``n`` voxels
    along that side, the mean over voxels of ``m . v / n^2``.

    Args:
        weight: lambda_vr.
        smoothing: from momentum to velocity.
    """

    def __init__(self, weight: float = 10.0, smoothing: MultiGaussian | None = None):
        if weight < 0:
            raise ValueError(f"weight: expected 0 or more, got {weight}")
        self.weight, self.smoothing = weight, smoothing or MultiGaussian()
        self.linear_is_free = False

    def terms(self, size: Sequence[int], step: float = 1.0) -> list[Tensor]:
        """Eigenvalues of a velocity's precision, as `FluidPrior.terms` gives them: one ``(*S)``, float64."""
        # What the filter leaves a millionth of is held as firmly as anything need be.
        filtered = self.smoothing.spectrum(size).clamp_min(1e-6)
        # Of one voxel's share of the mean; on a lattice each stands for ``step**D`` voxels of the image.
        return [self.weight * step ** len(size) / max(size) ** 2 / filtered]

    def __call__(self, mean: Tensor, log_variance: Tensor | None = None, posterior: Posterior | None = None) -> Tensor:
        """The loss term of momenta ``(B, K, D, *S)``, voxels: the mean over timepoints and batch, a scalar. The last
        two arguments are those of the other priors."""
        return self.weight * (mean * self.smoothing(mean)).sum(dim=2).mean() / max(mean.shape[3:]) ** 2


class AffineNorm:
    """``-log p = |A - I|^2 + |b|^2`` of the affine maps ``A x + b`` from each timepoint to each other: AVSM's pull of
    the composed map to the identity (Eq. 4). Of point estimates: no log variance is weighed.

    Args:
        alignment: what of the logarithms moves the timepoints.
    """

    def __init__(self, alignment: MeanAlignment | ReferenceAlignment):
        self.alignment = alignment

    @full_precision
    def __call__(self, mean: Tensor, log_variance: Tensor | None = None, posterior: Posterior | None = None) -> Tensor:
        """The loss term of logarithms ``(B, K, 12, 1, 1, 1)``, a matrix, row by row, then a translation, of all steps:
        the mean over ordered pairs of timepoints and batch, a scalar. The last two arguments are those of the other
        priors."""
        numbers = self.alignment.constrain(mean).flatten(2)
        logarithms = torch.cat([numbers[..., :9].unflatten(2, (3, 3)), numbers[..., 9:].unsqueeze(3)], dim=3)
        logarithms = pad(logarithms, (0, 0, 0, 1))
        to_each, from_each = torch.linalg.matrix_exp(logarithms), torch.linalg.matrix_exp(-logarithms)
        composed = to_each.unsqueeze(2) @ from_each.unsqueeze(1)  # (B, K, K, 4, 4), the identity where both are one
        squares = (composed - torch.eye(4, dtype=composed.dtype, device=composed.device)).square().sum(dim=(3, 4))
        timepoints = mean.shape[1]
        return squares.mean() * timepoints / (timepoints - 1)


def fading_weight(constant: float, decay: float, current_step: int) -> float:
    """AVSM's weight of the pull to the identity, ``C K / (K + exp(n / K))`` (Eq. 13).

    Args:
        constant, decay: C and K.
        current_step: number of the epoch, from 1, as MONAI's ParamSchedulerHandler gives it; n is from 0.
    """
    if constant < 0 or decay <= 0:
        raise InputError(f"affine_pull, affine_pull_decay: expected 0 or more and above 0, got {constant} and {decay}")
    # Beyond 700 the exponential overflows, and nothing is left of the weight long before.
    return constant * decay / (decay + math.exp(min((current_step - 1) / decay, 700.0)))
