import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from groupmorph_monai.space import MultiGaussian


def test_it_is_the_weighted_sum_of_scipys_gaussians():
    size = (40, 30, 24)
    momentum = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = np.zeros((2, 3, *size))
    for width, weight in ((0.1, 0.3), (0.2, 0.5)):
        sigma = [0, 0, *[width * n for n in size]]
        expected += weight * gaussian_filter(momentum.numpy(), sigma, mode="reflect", truncate=8)
    actual = MultiGaussian((0.1, 0.2), (0.3, 0.5))(momentum)
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-5)
    assert np.abs(expected).max() > 0.01


def test_a_constant_keeps_the_sum_of_the_weights():
    assert MultiGaussian()(torch.ones(1, 3, 8, 9, 7)).mean().item() == pytest.approx(1.0, abs=1e-4)


def test_widths_without_weights_are_refused():
    with pytest.raises(ValueError, match="weights"):
        MultiGaussian((0.1, 0.2), (1.0,))
