import numpy as np
import pytest
import torch

from groupmorph_monai.space import affine_std, standard_deviation


def test_a_small_spread_of_long_displacements_is_not_lost():
    rng = np.random.default_rng(0)
    fields = (15 + 0.01 * rng.standard_normal((20, 3, 6, 5, 4))).astype(np.float32)
    found = standard_deviation(torch.from_numpy(u) for u in fields)
    np.testing.assert_allclose(found.numpy(), fields.astype(np.float64).std(axis=0, ddof=1), rtol=1e-3)


def test_one_field_spreads_nowhere():
    assert standard_deviation([torch.full((2, 3), 7.0)]).abs().max() == 0


def test_an_affine_map_carries_the_covariance():
    rng = torch.Generator().manual_seed(0)
    std = torch.rand(2, 3, 4, 3, 2, generator=rng)
    maps = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    maps[:, :3] += torch.randn(2, 3, 4, generator=rng, dtype=torch.float64)
    found = affine_std(std, maps)
    for k, place in ((0, (0, 0, 0)), (1, (3, 2, 1))):
        linear, own = maps[k, :3, :3], std[(k, slice(None), *place)].double()
        covariance = linear @ torch.diag(own.square()) @ linear.T
        torch.testing.assert_close(found[(k, slice(None), *place)].double().square(), covariance.diagonal(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("degrees", [0, 30, 90])
def test_a_rotation_keeps_the_length_and_turns_the_components(degrees):
    angle = torch.tensor(degrees * torch.pi / 180, dtype=torch.float64)
    turn = torch.eye(4, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]])
    std = torch.tensor([0.3, 0.1, 0.2]).view(1, 3, 1, 1, 1)
    found = affine_std(std, turn[None])
    torch.testing.assert_close(found.norm(), std.norm())
    if degrees == 90:
        torch.testing.assert_close(found.flatten(), torch.tensor([0.1, 0.3, 0.2]))
