"""Contracts of all likelihoods, with their formulas in NumPy or SciPy."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from contracts import CalibratedContract, LikelihoodContract, SeriesContract, missing_contracts, random
from scipy.ndimage import binary_erosion, gaussian_filter, map_coordinates, uniform_filter
from torch import nn

from groupmorph_monai import probability
from groupmorph_monai.probability import (
    GaussianCorrelation,
    GroupNMI,
    Likelihood,
    LocalCorrelation,
    LowRank,
    NegativeELBO,
    NormalisedGradient,
    SquaredError,
    SurfaceDistance,
    WindowCorrelation,
)


def entropy(p):
    return -(p[p > 0] * np.log(p[p > 0])).sum()


def imputed(x, valid):
    """Replace each volume's invalid samples, on the last axis, with the mean of its valid ones."""
    mean = (valid * x).sum(-1, keepdims=True) / valid.sum(-1, keepdims=True).clip(1)
    return np.where(valid, x, mean)


class TestGroupNMI(LikelihoodContract):
    """GroupMorph, Eq. 2, pair by pair from the joint histogram of Gaussian Parzen windows."""

    bins, width, kind = 12, 0.6, "uncertainty"

    def subject(self):
        return GroupNMI(self.bins, self.width, kind=self.kind)

    def oracle(self, x, valid):
        distance = x[..., None] * (self.bins - 1) - np.arange(self.bins)
        windows = np.exp(-0.5 * (distance / self.width) ** 2)
        windows /= windows.sum(-1, keepdims=True)
        return np.mean(
            [self.nmi(*(windows[k][valid[i] & valid[j]] for k in (i, j))) for i, j in permutations(range(len(x)), 2)]
        )

    def nmi(self, a, b):
        joint = a.T @ b / len(a)
        h_a, h_b, h_ab = entropy(joint.sum(1)), entropy(joint.sum(0)), entropy(joint)
        return (h_a + h_b) / h_ab if self.kind == "studholme" else 2 * (h_a + h_b - h_ab) / (h_a + h_b)


class TestStudholmesNMI(TestGroupNMI):
    kind = "studholme"


class TestSlabbedGroupNMI(TestGroupNMI):
    """With few voxels per slab, a volume needs several slabs."""

    @pytest.fixture(autouse=True)
    def small_slabs(self, monkeypatch):
        monkeypatch.setattr("groupmorph_monai.probability.likelihood._SLAB_VOXELS", 800)


class TestSquaredError(CalibratedContract):
    """VoxelMorph-diff, Eq. 6, as the mean over pairs; a latent image leaves K - 1 of K volumes."""

    invariant_to_gain, noise, true_noise = False, 0.3, 0.01

    def subject(self):
        return SquaredError(self.noise)

    def subject_for_noise(self):
        return SquaredError(2**0.5 * self.true_noise)  # noise of a difference

    def oracle(self, x, valid):
        total = count = 0
        for values in np.where(valid, x, np.nan).reshape(len(x), -1).T:
            measured = values[~np.isnan(values)]
            if len(measured) > 1:
                total -= np.mean([(a - b) ** 2 for a, b in combinations(measured, 2)]) / (2 * self.noise**2)
                count += 1
        return total / count

    def linearised(self, x, valid, slope):
        masked, compared = np.ma.masked_array(x, ~valid), valid & (valid.sum(0) > 1)
        mean = masked.mean(0, keepdims=True)
        residual = compared * (mean - masked).filled(0)
        return {
            "value": -(residual**2).sum(0, keepdims=True) / self.noise**2,
            "guide": mean.filled(0),
            "score": 2 * residual / self.noise**2,
            "weight": 2 * compared / self.noise**2,
            "volume_count": compared.sum(0, keepdims=True),
        }


class TestLocalCorrelation(CalibratedContract):
    """By regressions in windows, as in the docstring."""

    radii, noise = (1, 2), 0.02

    def inputs(self, timepoints, batch=2):
        """Flatten a part of all volumes but one, as if it lay in air."""
        (x,) = super().inputs(timepoints, batch)
        x[:, 1:, ..., :5] *= 1e-3
        return (x,)

    def subject(self):
        return LocalCorrelation(self.radii, self.noise)

    def subject_for_noise(self):
        return LocalCorrelation((2,), noise=1e-6)

    @staticmethod
    def mean(x, where, radius):
        share = uniform_filter(where.astype(float), 2 * radius + 1, mode="nearest")
        return uniform_filter(x * where, 2 * radius + 1, mode="nearest") / np.where(share > 1e-9, share, 1)

    def covariance(self, a, b, where, radius):
        return self.mean(a * b, where, radius) - self.mean(a, where, radius) * self.mean(b, where, radius)

    def template(self, x, valid, radius):
        """Return the mean of the normalised volumes, and the sum of their variances."""
        variances = np.stack([self.covariance(v, v, m, radius) for v, m in zip(x, valid)])
        means = np.stack([self.mean(v, m, radius) for v, m in zip(x, valid)])
        normalised = valid * (x - means) / np.sqrt(variances + self.noise**2)
        structure = valid * variances / (variances + self.noise**2)
        return normalised.sum(0) / valid.sum(0).clip(1), structure.sum(0)

    def regressions(self, x, valid, template, structure, radius):
        """Yield gain, residual, noise and total variance of each volume, and the share of the others."""
        for volume, where in zip(x, valid & (valid.sum(0) > 1)):
            of_template = self.covariance(template, template, where, radius) + 1e-3  # bounds the gain
            variance, covariance = (self.covariance(volume, v, where, radius) for v in (volume, template))
            gain = covariance / of_template
            residual = (
                volume - self.mean(volume, where, radius) - gain * (template - self.mean(template, where, radius))
            )
            others = (1 - variance / (variance + self.noise**2) / structure.clip(1e-12)).clip(0)
            noise = (variance - gain * covariance).clip(0) / others.clip(1e-3) + self.noise**2
            yield gain, residual, noise, variance + self.noise**2, others, where

    def oracle(self, x, valid):
        total = 0.0
        for radius in self.radii:
            template = self.template(x, valid, radius)
            for _, _, noise, variance, others, where in self.regressions(x, valid, *template, radius):
                total -= np.mean(where * others * np.log(noise / variance)) / 2
        return total / (len(x) * len(self.radii))

    def linearised(self, x, valid, slope):
        guide, shape = self.template(x, valid, self.radii[0])[0], np.ones((3, 3, 3))
        shared = valid & (valid.sum(0) > 1)
        share = np.stack([uniform_filter(s.astype(float), 2 * max(self.radii) + 1, mode="nearest") for s in shared])
        candidates = [binary_erosion(v, shape, border_value=1) for v in valid] & shared
        candidates = candidates * ((share - 0.45) / 0.1).clip(0, 1)
        counts = candidates * (candidates.sum(0) - candidates).clip(0, 1)
        value, score, weight = np.zeros_like(x[:1]), np.zeros_like(x), np.zeros_like(x)
        share = 1 / len(self.radii)
        for radius in self.radii:
            _, structure = self.template(x, valid, radius)
            for k, (gain, residual, noise, variance, others, _) in enumerate(
                self.regressions(x, valid, guide, structure, radius)
            ):
                value -= counts[k] * share * others * np.log(noise / variance) / 2
                # A volume beside others without structure has no weight.
                factor = counts[k] * share * (others / 1e-3).clip(0, 1) * gain / noise
                score[k] -= factor * residual
                weight[k] += factor * gain
        expected = {"value": value, "guide": guide[None], "score": score, "weight": weight}
        return expected | ({} if valid.all() else {"volume_count": counts.sum(0, keepdims=True)})


class TestGaussianCorrelation(LikelihoodContract):
    """Krebs et al. 2018, Eq. 2, over all pairs."""

    def subject(self):
        return GaussianCorrelation(1.5, 7, epsilon=1e-4)

    def oracle(self, x, valid):
        def mean(a, where):
            return gaussian_filter(a * where, 1.5, mode="nearest", radius=3)

        def correlation(a, b, where):
            return (mean(a * b, where) ** 2 / (mean(a * a, where) * mean(b * b, where) + 1e-4)).mean()

        return np.mean([correlation(x[i], x[j], valid[i] & valid[j]) for i, j in combinations(range(len(x)), 2)])


class TestWindowCorrelation(LikelihoodContract):
    """AVSM, Eq. 2: NumPy's covariances of pairs in dilated windows."""

    def subject(self):
        return WindowCorrelation((0.25, 0.5), (0.3, 0.7), step=0.25, dilation=2, noise=0.01)

    def oracle(self, x, valid):
        total = 0.0
        for side, weight in ((3, 0.3), (6, 0.7)):  # a quarter and half of the smallest extent, 12; so is the step
            span, correlations = 2 * (side - 1) + 1, []
            for corner in np.ndindex(*[(n - span) // 3 + 1 for n in x.shape[1:]]):
                box = (slice(None), *[slice(3 * c, 3 * c + span, 2) for c in corner])
                windows = imputed(*(part[box].reshape(len(x), -1) for part in (x, valid)))
                covariance = np.cov(windows, bias=True) + 0.01**2 * np.eye(len(x))
                deviation = np.sqrt(covariance.diagonal())
                correlations.append((covariance / np.outer(deviation, deviation))[np.triu_indices(len(x), 1)].mean())
            total += weight * np.mean(correlations)
        return total


class TestLowRank(LikelihoodContract):
    """Huizinga et al. 2016: eigenvalues of NumPy's correlation matrix, weighted by their rank."""

    def subject(self):
        return LowRank()

    def oracle(self, x, valid):
        eigenvalues = np.linalg.eigvalsh(np.corrcoef(imputed(x.reshape(len(x), -1), valid.reshape(len(x), -1))))
        return -(np.arange(len(x), 0, -1) * eigenvalues).sum() / len(x)


class TestNormalisedGradient(LikelihoodContract):
    """Haber and Modersitzki 2006, from NumPy's gradients, pair by pair."""

    def subject(self):
        return NormalisedGradient(0.1)

    def oracle(self, x, valid):
        normals = []
        for volume, where in zip(x, valid):
            slope = np.stack(np.gradient(volume)) * binary_erosion(where, np.ones((3, 3, 3)), border_value=1)
            normals.append(slope / np.sqrt((slope**2).sum(0) + 0.1**2))
        return np.mean([((a * b).sum(0) ** 2).mean() for a in normals for b in normals])


class TestSurfaceDistance(SeriesContract):
    """VoxelMorph-diff, Eq. 11 with the squares of Eq. 10: each point of each surface, by SciPy's interpolation."""

    size, points, noise = (9, 7, 8), 20, 1.5

    def inputs(self, timepoints, batch=2):
        """Generate displacements to and from the timepoints, points, and distances."""
        fields = [4 * random(batch, timepoints, 3, *self.size, seed=seed) - 2 for seed in (0, 1)]
        inside = torch.tensor(self.size, dtype=torch.float64) - 1
        points = inside * random(batch, timepoints, self.points, 3, seed=2)
        return *fields, points, 5 * random(batch, timepoints, *self.size, seed=3) - 1

    def subject(self):
        return SurfaceDistance(self.noise)

    def value(self, ddf, inverse_ddf, points, distance):
        return self.subject()(ddf, inverse_ddf, {"points": points, "distance": distance})

    def oracle(self, ddf, inverse_ddf, points, distance):
        def at(image, places):
            return map_coordinates(image, places.T, order=1, mode="nearest")

        def moved(places, field):
            return places + np.stack([at(component, places) for component in field], axis=1)

        squares = [
            at(distance[j], moved(moved(points[i], inverse_ddf[i]), ddf[j])) ** 2
            for i, j in permutations(range(len(ddf)), 2)
        ]
        return -np.mean(squares) / (2 * self.noise**2)


def test_every_likelihood_is_under_contract():
    missing = missing_contracts(probability, nn.Module, globals())
    assert missing == {Likelihood, NegativeELBO}  # the base class and the loss
