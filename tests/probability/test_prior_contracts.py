"""Contracts of all priors, with their densities from dense matrices."""

from itertools import permutations

import numpy as np
import torch
from contracts import PriorContract, VelocityPriorContract, dense_laplacian, missing_contracts
from scipy.fft import dctn, idctn
from scipy.linalg import block_diag, expm
from scipy.stats import norm

from groupmorph_monai import probability
from groupmorph_monai.probability import (
    AffineNorm,
    FluidPrior,
    MomentumNorm,
    Posterior,
    Prior,
    TemporalPrior,
    UnitGaussian,
)
from groupmorph_monai.space import GeodesicMeanAlignment, MultiGaussian, OneWayAlignment


def gaussian_filter(size, widths):
    """Return the dense matrix ``(N, N)`` of a Gaussian filter with free borders and these standard deviations, in
    voxels."""
    axes, unit = range(1, len(size) + 1), np.eye(np.prod(size)).reshape(-1, *size)
    for axis, n, width in zip(axes, size, widths):
        frequency = np.pi * np.arange(n) / n
        response = np.exp(-0.5 * (width * frequency) ** 2).reshape(
            [-1 if a == axis else 1 for a in range(len(size) + 1)]
        )
        unit = idctn(response * dctn(unit, axes=[axis], norm="ortho"), axes=[axis], norm="ortho")
    return unit.reshape(len(unit), -1)


def gaussian_kl(mean, covariance, precision):
    """Compute the KL divergence of a Gaussian from one of mean 0, on the range of its precision."""
    eigenvalues = np.linalg.eigvalsh(precision)
    log_determinants = np.log(eigenvalues[eigenvalues > 1e-9]).sum() + np.linalg.slogdet(covariance)[1]
    return 0.5 * (np.trace(precision @ covariance) - len(mean) + mean @ precision @ mean - log_determinants)


class TestFluidPrior(VelocityPriorContract):
    """GroupMorph, Eq. 1 and the KL of Eq. 7, with the dense graph Laplacian."""

    weights = {"lambda_u": 0.7, "lambda_v": 0.05, "lambda_b": 0.3, "lambda_c": 0.2}

    def subject(self):
        return FluidPrior(**self.weights)

    def precision(self, size):
        laplacian = dense_laplacian(size).numpy()
        powers = {"lambda_v": 0, "lambda_u": 1, "lambda_b": 2, "lambda_c": 3}
        return sum(w * np.linalg.matrix_power(laplacian, powers[name]) for name, w in self.weights.items())

    def covariance(self, log_variance):
        """Return ``C Sigma C^T`` of a component."""
        smoothing = gaussian_filter(self.shape[1:], [self.posterior.smoothing_voxels if self.posterior else 0] * 3)
        return smoothing @ np.diag(np.exp(log_variance.ravel())) @ smoothing.T

    def oracle(self, mean, log_variance):
        precision = self.precision(self.shape[1:])
        components = zip(*(x.reshape(-1, *self.shape[1:]) for x in (mean, log_variance)))
        total = sum(gaussian_kl(m.ravel(), self.covariance(v), precision) for m, v in components)
        return total / len(mean) / np.prod(self.shape[1:])


class TestFluidPriorOfASmoothedPosterior(TestFluidPrior):
    posterior = Posterior(0.8)


class TestFirstDifferencesAlone(TestFluidPrior):
    """VoxelMorph-diff's prior: constant fields have no energy and no share in the determinant."""

    weights = {"lambda_u": 20.0, "lambda_v": 0.0}


class TestThirdDifferencesAlone(TestFluidPrior):
    weights = {"lambda_u": 0.0, "lambda_v": 0.0, "lambda_c": 2.0}


class TestTemporalPrior(TestFluidPrior):
    """Dense over time and space; as likely in reverse, but not in any other order."""

    weights, lambda_t, times = {"lambda_u": 0.7, "lambda_v": 0.05}, 0.4, None

    def subject(self):
        return TemporalPrior(self.lambda_t, **self.weights)

    def order(self, timepoints):
        return torch.arange(timepoints).flip(0)

    def chain(self, timepoints):
        """Return the Laplacian of the chain of timepoints."""
        return dense_laplacian((timepoints,)).numpy()

    def oracle(self, mean, log_variance):
        k, n = len(mean), np.prod(self.shape[1:])
        spatial = np.kron(np.eye(k), self.precision(self.shape[1:]))
        precision = spatial + self.lambda_t * np.kron(self.chain(k), np.eye(n))
        total = 0.0
        for d in range(self.shape[0]):
            covariance = block_diag(*(self.covariance(v) for v in log_variance[:, d]))
            total += gaussian_kl(mean[:, d].ravel(), covariance, precision)
        return total / k / n


class TestTemporalPriorOfASmoothedPosterior(TestTemporalPrior):
    posterior = Posterior(0.8)


class TestTemporalPriorOfUnevenTimes(TestTemporalPrior):
    """Differences are weighted by the mean interval over theirs; intervals are symmetric, so that time may run back."""

    intervals = {2: [3.0], 3: [2.0, 2.0], 6: [10.0, 1.0, 4.0, 1.0, 10.0]}

    def value(self, mean, log_variance):
        times = torch.tensor([0.0, *np.cumsum(self.intervals[mean.shape[1]])]) + 7
        return self.subject()(mean, log_variance, self.posterior, times.expand(len(mean), -1))

    def chain(self, timepoints):
        intervals = np.array(self.intervals[timepoints])
        differences = np.diff(np.eye(timepoints), axis=0)
        return differences.T @ np.diag(intervals.mean() / intervals) @ differences


class TestUnitGaussian(PriorContract):
    """Krebs et al. 2018, Eq. 1: the KL from SciPy's entropy and expected log density."""

    shape = (8, 1, 1, 1)

    def subject(self):
        return UnitGaussian()

    def oracle(self, mean, log_variance):
        q = norm(mean, np.exp(log_variance / 2))
        expected_log_density = norm.logpdf(0) - 0.5 * (q.mean() ** 2 + q.var())
        return -(q.entropy() + expected_log_density).sum() / len(mean)


class TestMomentumNorm(VelocityPriorContract):
    """AVSM, Eqs. 8 and 9, with dense Gaussian filters."""

    weight, widths, shares = 2.5, (0.05, 0.2), (0.4, 0.6)

    def subject(self):
        return MomentumNorm(self.weight, MultiGaussian(self.widths, self.shares))

    def filter(self, size):
        parts = zip(self.widths, self.shares)
        return sum(share * gaussian_filter(size, [width * n for n in size]) for width, share in parts)

    def precision(self, size):
        return self.weight / max(size) ** 2 * np.linalg.inv(self.filter(size))

    def oracle(self, mean, log_variance):
        size, smoothing = self.shape[1:], self.filter(self.shape[1:])
        products = [m.ravel() @ smoothing @ m.ravel() for m in mean.reshape(-1, *size)]
        return self.weight * sum(products) / max(size) ** 2 / np.prod(size) / len(mean)


class TestAffineNorm(PriorContract):
    """AVSM, Eq. 4, of the maps between all pairs by SciPy's matrix exponential."""

    shape = (12, 1, 1, 1)

    def subject(self):
        return AffineNorm(GeodesicMeanAlignment())

    def constrained(self, mean):
        return mean - mean.mean(0)

    def oracle(self, mean, log_variance):
        maps = []
        for components in self.constrained(mean.reshape(len(mean), 12)):
            logarithm = np.zeros((4, 4))
            logarithm[:3, :3], logarithm[:3, 3] = components[:9].reshape(3, 3), components[9:]
            maps.append(expm(logarithm))
        return np.mean([((a @ np.linalg.inv(b) - np.eye(4)) ** 2).sum() for a, b in permutations(maps, 2)])


class TestAffineNormOfAReference(TestAffineNorm):
    def subject(self):
        return AffineNorm(OneWayAlignment(1))

    def constrained(self, mean):
        return mean * (np.arange(len(mean)) != 1)[:, None]

    def order(self, timepoints):
        """Exchange timepoints that move."""
        order = torch.arange(timepoints)
        order[2:] = order[2:].flip(0)
        return order


def test_every_prior_is_under_contract():
    assert not missing_contracts(probability, Prior, globals())
