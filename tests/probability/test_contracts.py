"""Every likelihood and every prior under the contract that they share."""

import pytest
import torch
from contracts import LikelihoodContract, PriorContract

from groupmorph_monai.probability import (
    AffineNorm,
    FluidPrior,
    GaussianCorrelation,
    GroupNMI,
    LocalCorrelation,
    LowRank,
    MomentumNorm,
    NormalisedGradient,
    Posterior,
    SquaredError,
    TemporalPrior,
    UnitGaussian,
    WindowCorrelation,
)
from groupmorph_monai.space import MeanAlignment


class TestLocalCorrelation(LikelihoodContract):
    @pytest.fixture
    def likelihood(self):
        return LocalCorrelation((1, 2))


class TestGaussianCorrelation(LikelihoodContract):
    @pytest.fixture
    def likelihood(self):
        return GaussianCorrelation()


class TestWindowCorrelation(LikelihoodContract):
    @pytest.fixture
    def likelihood(self):
        return WindowCorrelation((0.25, 0.5))


class TestGroupNMI(LikelihoodContract):
    @pytest.fixture
    def likelihood(self):
        return GroupNMI(bins=12)


class TestSlabbedGroupNMI(TestGroupNMI):
    """A slab holds so few voxels that a volume takes many."""

    @pytest.fixture(autouse=True)
    def small_slabs(self, monkeypatch):
        monkeypatch.setattr("groupmorph_monai.probability.likelihood._SLAB_VOXELS", 100)


class TestSquaredError(LikelihoodContract):
    invariant_to_gain = False

    @pytest.fixture
    def likelihood(self):
        return SquaredError(0.3)


class TestLowRank(LikelihoodContract):
    @pytest.fixture
    def likelihood(self):
        return LowRank()


class TestNormalisedGradient(LikelihoodContract):
    @pytest.fixture
    def likelihood(self):
        return NormalisedGradient()


class TestFluidPrior(PriorContract):
    @pytest.fixture
    def prior(self):
        return FluidPrior(0.7, 0.05, 0.3, 0.2)


class TestFluidPriorOfASmoothedPosterior(TestFluidPrior):
    posterior = Posterior(0.8)


class TestTemporalPrior(PriorContract):
    """As likely in reverse, but not in any other order."""

    def order(self, timepoints):
        return torch.arange(timepoints).flip(0)

    @pytest.fixture
    def prior(self):
        return TemporalPrior(0.4, lambda_u=0.7, lambda_v=0.05)


class TestUnitGaussian(PriorContract):
    shape = (8, 1, 1, 1)

    @pytest.fixture
    def prior(self):
        return UnitGaussian()


class TestMomentumNorm(PriorContract):
    @pytest.fixture
    def prior(self):
        return MomentumNorm(2.5)


class TestAffineNorm(PriorContract):
    shape = (12, 1, 1, 1)

    @pytest.fixture
    def prior(self):
        return AffineNorm(MeanAlignment(remove_mean=True))
