"""Contracts of priors."""

import numpy as np
import pytest
import torch
from scipy.fft import idctn

from .base import SeriesContract, random


class PriorContract(SeriesContract):
    """Contract of a prior.

    Attributes:
        shape: shape of z of one timepoint, ``(C, *S)``.
        posterior: posterior that the parameters belong to; None for one without smoothing.
    """

    shape, posterior, difference_step = (3, 3, 4, 2), None, 1e-5
    tolerances = {**SeriesContract.tolerances, "oracle": (1e-9, 1e-9), "gradient": (1e-6, 1e-9)}

    def inputs(self, timepoints, batch=2):
        """Generate a mean and a log variance of z."""
        return tuple(random(batch, timepoints, *self.shape, seed=seed) - 0.5 for seed in (0, 1))

    def value(self, mean, log_variance):
        return self.subject()(mean, log_variance, self.posterior)


class VelocityPriorContract(PriorContract):
    """Contract of a Gaussian prior of velocities; ``precision`` is the dense matrix of a component, ``(N, N)``."""

    tolerances = {**PriorContract.tolerances, "precision": (1e-9, 1e-9)}

    def precision(self, size):
        raise NotImplementedError

    @pytest.mark.parametrize("size", [(3, 4, 2), (4, 1, 3), (3, 5)])
    def test_terms_are_the_precision_in_cosine_coordinates(self, size):
        unit = np.eye(np.prod(size)).reshape(-1, *size)
        cosines = idctn(unit, axes=range(1, len(size) + 1), norm="ortho").reshape(len(unit), -1)  # in rows
        spectrum = sum(self.subject().terms(size)).flatten().numpy()
        dense = torch.from_numpy(cosines.T @ np.diag(spectrum) @ cosines)
        self.assert_close("precision", dense, torch.as_tensor(self.precision(size)))
