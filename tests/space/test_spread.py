import numpy as np
import torch

from groupmorph_monai.space import standard_deviation


def test_a_small_spread_of_long_displacements_is_not_lost():
    rng = np.random.default_rng(0)
    fields = (15 + 0.01 * rng.standard_normal((20, 3, 6, 5, 4))).astype(np.float32)
    actual = standard_deviation(torch.from_numpy(u) for u in fields)
    np.testing.assert_allclose(actual.numpy(), fields.astype(np.float64).std(axis=0, ddof=1), rtol=1e-3)


def test_one_field_spreads_nowhere():
    assert standard_deviation([torch.full((2, 3), 7.0)]).abs().max() == 0
