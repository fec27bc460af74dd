"""Every likelihood under the contract that they share."""

import pytest
from contracts import LikelihoodContract

from groupmorph_monai.probability import (
    GaussianCorrelation,
    GroupNMI,
    LocalCorrelation,
    LowRank,
    NormalisedGradient,
    SquaredError,
    WindowCorrelation,
)


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
