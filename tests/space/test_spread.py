import numpy as np
import torch

from groupmorph_monai.space import DisplacementField, Lattice, standard_deviation


def test_a_small_spread_of_long_displacements_is_not_lost():
    rng = np.random.default_rng(0)
    fields = (15 + 0.01 * rng.standard_normal((20, 3, 6, 5, 4))).astype(np.float32)
    lattice = Lattice((12, 9, 8), 2)
    actual = standard_deviation(DisplacementField(torch.from_numpy(u)[None, None], lattice) for u in fields)
    assert actual.lattice == lattice
    np.testing.assert_allclose(actual.values[0, 0].numpy(), fields.astype(np.float64).std(axis=0, ddof=1), rtol=1e-3)


def test_one_field_spreads_nowhere():
    field = DisplacementField.on_voxels(torch.full((1, 1, 3, 2, 2, 2), 7.0))
    assert standard_deviation([field]).values.abs().max() == 0
