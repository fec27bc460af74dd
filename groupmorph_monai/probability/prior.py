"""p(z): priors of velocity fields, codes, momenta and affine maps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import InputError
from ..space.affine import affine_logarithms
from ..space.alignment import Alignment
from ..space.cosine_transform import CosineTransform
from ..space.sampling import full_precision, placed_once
from ..space.smoothing import MultiGaussian
from .posterior import Posterior


class Prior(ABC):
    """Base class of priors p(z)."""

    @abstractmethod
    def __call__(
        self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Compute the loss term, a scalar: the KL divergence of the posterior q from the prior, or -log p of a point
        estimate, averaged over timepoints and batch.

        Args:
            mean: mean of q, ``(B, K, C, *S)``.
            log_variance: log variance of q, ``(B, K, C, *S)``; priors of point estimates ignore it.
            posterior: distribution that the two parametrise; None is `Posterior` without smoothing. Only priors of
                velocities that have a variance use it.
            times: acquisition times in any unit, ``(B, K)``; None if they are unknown. Only temporal priors use them.
        """


class VelocityPrior(Prior):
    """Base class of Gaussian priors of velocities, whose precision is diagonal in cosine coordinates."""

    @property
    def linear_is_free(self) -> bool:
        """Whether linear fields have zero energy."""
        return False

    @abstractmethod
    def terms(self, size: Sequence[int], step: float = 1.0) -> list[Tensor]:
        """Return the eigenvalues of the terms whose sum is the precision, each ``(*S)`` float64.

        Args:
            size: size of the field's lattice.
            step: image voxels between lattice voxels. The weights refer to ``step`` 1; the terms are scaled so that a
                field has the same energy on any lattice.
        """


@lru_cache(maxsize=64)
def _terms(size: tuple[int, ...], step: float) -> tuple[Tensor, ...]:
    """Return the spectra of ``L^0`` to ``L^3``, float64, for a field on every ``step``-th voxel of the image."""
    laplacian = CosineTransform.laplacian(size)
    # In voxels of the image, vectors are ``step`` times longer than in voxels of the lattice, a difference spans
    # ``step`` voxels, and a lattice voxel represents ``step**D``.
    return tuple(laplacian**order * step ** (2 + len(size) - 2 * order) for order in range(4))


def log_pseudo_determinant(eigenvalues: Tensor) -> float:
    """Compute the logarithm of the pseudo-determinant of a precision from its eigenvalues.

    With lambda_v = 0 a precision is singular, as constant fields have no energy.
    """
    return eigenvalues[eigenvalues > 1e-12].log().sum().item()


class FluidPrior(VelocityPrior):
    """Gaussian prior ``p(z) = N(0, Lambda^-1)`` of each field component, whose precision is a polynomial in the
    Laplacian: ``Lambda = lambda_v I + lambda_u L + lambda_b L^2 + lambda_c L^3``.

    ``L = D - A`` is the graph Laplacian of the voxel grid, with 2 * D neighbours inside and fewer at the borders. The
    first two terms are GroupMorph's (Eq. 1); ``L^2`` gives the velocity's bending energy, ``L^3`` the variation of its
    curvature. All are diagonal in cosine coordinates, which keeps the KL, the log determinant and draws in closed form.
    The KL contains ``mu^T Lambda mu``; Eq. 7 of the paper prints ``mu^T Lambda^-1 mu``, unlike its own expansion and
    supplement.

    Args:
        lambda_u: weight of the field's first differences (viscous fluid energy).
        lambda_v: weight of the field's magnitude; 0 gives VoxelMorph-diff's prior.
        lambda_b: weight of the field's second differences.
        lambda_c: weight of the field's third differences.
    """

    def __init__(self, lambda_u: float = 1.0, lambda_v: float = 0.01, lambda_b: float = 0.0, lambda_c: float = 0.0):
        weights = {"lambda_v": lambda_v, "lambda_u": lambda_u, "lambda_b": lambda_b, "lambda_c": lambda_c}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"{', '.join(weights)}: expected numbers >= 0, not all 0, got {list(weights.values())}")
        self.weights = tuple(float(w) for w in weights.values())

    @property
    def linear_is_free(self) -> bool:
        """Whether only second and third differences have a weight, so that linear fields have zero energy."""
        return not any(self.weights[:2])

    def terms(self, size: Sequence[int], step: float = 1.0) -> list[Tensor]:
        """Return the eigenvalues of each term of Lambda with a non-zero weight, see `VelocityPrior.terms`."""
        spectra = _terms(tuple(size), float(step))
        return [weight * spectrum for weight, spectrum in zip(self.weights, spectra) if weight]

    def spectrum(self, size: Sequence[int], step: float = 1.0) -> Tensor:
        """Return the eigenvalues of Lambda in cosine coordinates, ``(*S)`` float64."""
        return torch.stack(self.terms(size, step)).sum(dim=0)

    def log_determinant(self, size: Sequence[int]) -> float:
        """Compute ``log |Lambda|`` of one component on a grid of ``size``, exactly."""
        return log_pseudo_determinant(self.spectrum(size))

    def energy(self, z: Tensor) -> Tensor:
        """Compute ``z^T Lambda z`` of every field component: ``(B, K, D, *S)`` to ``(B, K, D)``."""
        size = z.shape[3:]
        coefficients = CosineTransform(size, z)(z)
        return (placed_once(self.spectrum, size, like=z) * coefficients.square()).flatten(3).sum(dim=3)

    def kl(
        self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Compute ``KL(q || p)`` of each field, summed over components and voxels, including constants (GroupMorph,
        Eq. 7 and supplement).

        Args:
            mean: mean of q, ``(B, K, D, *S)``.
            log_variance: log variance of q, ``(B, K, D, *S)``.
            posterior: distribution that the two parametrise; None is `Posterior` without smoothing.
            times: as in `Prior`.

        Returns:
            ``(B, K)``, nats.
        """
        arguments = mean.shape[3:], (posterior or Posterior()).smoothing_voxels
        diagonal, constant = (placed_once(make, *arguments, like=mean) for make in (self._diagonal, self._constant))
        trace = (diagonal * log_variance.exp() - log_variance).flatten(3).sum(dim=3)
        return 0.5 * (trace + self.energy(mean) - constant).sum(dim=2)

    def _diagonal(self, size: Sequence[int], smoothing_voxels: float) -> Tensor:
        """Compute the diagonal of ``C^T Lambda C``, ``(*S)``, where C is the posterior's filter."""
        return CosineTransform.diagonal(self.spectrum(size) * Posterior(smoothing_voxels).spectrum(size).square())

    def _constant(self, size: Sequence[int], smoothing_voxels: float) -> Tensor:
        """Compute the constant c of one component's ``KL = (sum(diagonal * exp(log_variance) - log_variance) + energy -
        c) / 2``."""
        log_smoothing = Posterior(smoothing_voxels).spectrum(size).log().sum().item()
        return torch.tensor(math.prod(size) + self.log_determinant(size) + 2 * log_smoothing, dtype=torch.float64)

    def __call__(
        self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Compute the loss term, a scalar: the KL averaged over voxels, timepoints and batch, summed over components.

        Eq. 7 adds the KL summed over voxels to a mean NMI in [0, 1]: taken literally, the KL dominates by a factor of
        the number of voxels, and its weight depends on the patch size. The average over timepoints matches the
        likelihood's average over pairs, so that the balance does not depend on K.
        """
        return self.kl(mean, log_variance, posterior, times).mean() / math.prod(mean.shape[3:])


class UnitGaussian(Prior):
    """Standard normal prior ``p(z) = N(0, I)`` of codes (Krebs et al. 2018, Eq. 1)."""

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Compute ``KL(q || p)`` of each timepoint, summed over the code.

        Args:
            mean: mean of q, ``(B, K, C, *S)``.
            log_variance: log variance of q, ``(B, K, C, *S)``.

        Returns:
            ``(B, K)``, nats.
        """
        return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).flatten(2).sum(dim=2)

    def __call__(
        self, mean: Tensor, log_variance: Tensor, posterior: Posterior | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Compute the loss term, a scalar: the KL averaged over timepoints and batch."""
        return self.kl(mean, log_variance).mean()


class MomentumNorm(VelocityPrior):
    """Norm of the momentum, ``-log p(m) = weight <m, v>`` with ``v`` the smoothed momentum (AVSM, Eqs. 8 and 9).

    Up to scale, this is a Gaussian of momenta whose covariance is the inverse filter, or one of velocities, as in a
    refinement, whose covariance is the filter. Momenta are point estimates: their log variance is ignored. The inner
    product is the integral over an image whose longest side is 1, as in the paper: the mean over voxels of ``m . v /
    n^2``, with ``n`` voxels along that side.

    Args:
        weight: lambda_vr.
        smoothing: filter from momentum to velocity.
    """

    def __init__(self, weight: float = 10.0, smoothing: MultiGaussian | None = None):
        if weight < 0:
            raise ValueError(f"weight: expected 0 or more, got {weight}")
        self.weight, self.smoothing = weight, smoothing or MultiGaussian()

    def terms(self, size: Sequence[int], step: float = 1.0) -> list[Tensor]:
        """Return the eigenvalues of a velocity's precision as one term, see `VelocityPrior.terms`."""
        # The floor bounds the precision's condition number.
        filter_spectrum = self.smoothing.spectrum(size).clamp_min(1e-6)
        # Per voxel of the mean; on a lattice each voxel represents ``step**D`` voxels of the image.
        return [self.weight * step ** len(size) / max(size) ** 2 / filter_spectrum]

    def __call__(
        self,
        mean: Tensor,
        log_variance: Tensor | None = None,
        posterior: Posterior | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss term of momenta ``(B, K, D, *S)``, voxels: a scalar, the mean over timepoints and batch."""
        return self.weight * (mean * self.smoothing(mean)).sum(dim=2).mean() / max(mean.shape[3:]) ** 2


class AffineNorm(Prior):
    """Distance of affine maps from the identity, ``-log p = |A - I|^2 + |b|^2``, for the maps ``A x + b`` between all
    pairs of timepoints (AVSM, Eq. 4). Affine maps are point estimates: their log variance is ignored.

    Args:
        alignment: constraint on the logarithms of the maps.
    """

    def __init__(self, alignment: Alignment):
        self.alignment = alignment

    @full_precision
    def __call__(
        self,
        mean: Tensor,
        log_variance: Tensor | None = None,
        posterior: Posterior | None = None,
        times: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss term, a scalar: the mean over ordered pairs of timepoints and batch.

        Args:
            mean: logarithms of the maps, summed over all passes, ``(B, K, 12, 1, 1, 1)``, see `affine_logarithms`.
            log_variance, posterior, times: as in `Prior`.
        """
        logarithms = affine_logarithms(self.alignment.constrain_values(mean).flatten(2))
        to_each, from_each = torch.linalg.matrix_exp(logarithms), torch.linalg.matrix_exp(-logarithms)
        composed = to_each.unsqueeze(2) @ from_each.unsqueeze(1)  # (B, K, K, 4, 4), the identity on the diagonal
        squares = (composed - torch.eye(4, dtype=composed.dtype, device=composed.device)).square().sum(dim=(3, 4))
        timepoints = mean.shape[1]
        return squares.mean() * timepoints / (timepoints - 1)


def fading_weight(constant: float, decay: float, current_step: int) -> float:
    """Compute the weight of the pull to the identity after n epochs, ``C K / (K + exp(n / K))`` (AVSM, Eq. 13).

    Args:
        constant: C.
        decay: K.
        current_step: epoch from 1, as MONAI's ParamSchedulerHandler passes it; ``n = current_step - 1``.

    Raises:
        InputError: If ``constant`` is negative, or ``decay`` is not positive.
    """
    if constant < 0 or decay <= 0:
        raise InputError(f"affine_pull, affine_pull_decay: expected 0 or more and above 0, got {constant} and {decay}")
    # The exponential overflows just above 709; the weight vanishes long before.
    return constant * decay / (decay + math.exp(min((current_step - 1) / decay, 700.0)))
