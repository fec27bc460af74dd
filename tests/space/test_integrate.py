import pytest
import torch

from groupmorph_monai.evaluation.metrics import jacobian_determinant
from groupmorph_monai.space import Displacement, ScalingAndSquaring, compose, voxel_grid

SIZE = (17, 15, 19)
INSIDE = (..., *[slice(4, -4)] * 3)
MATRIX = torch.tensor([[0.05, 0.12, 0.0], [-0.1, 0.03, 0.04], [0.02, -0.05, -0.04]], dtype=torch.float64)


def linear(matrix):
    grid = voxel_grid(SIZE, torch.empty(0, dtype=torch.float64))
    centred = grid - (torch.tensor(SIZE, dtype=torch.float64).view(3, 1, 1, 1) - 1) / 2
    return torch.einsum("de,eijk->dijk", matrix, centred)[None, None]


def smooth(amplitude):
    grid = voxel_grid(SIZE, torch.empty(0, dtype=torch.float64)) / 19 * 2 * torch.pi
    x, y, z = grid
    return amplitude * torch.stack([y.sin() * z.cos(), z.sin() * x.cos(), x.sin() * y.cos()])[None, None]


def test_exp_of_a_translation_is_it():
    velocity = torch.tensor([1.5, -0.5, 0.25], dtype=torch.float64).view(1, 1, 3, 1, 1, 1).expand(1, 2, 3, *SIZE)
    torch.testing.assert_close(ScalingAndSquaring(7)(velocity), velocity, atol=1e-12, rtol=0)


def test_exp_of_a_linear_velocity_is_the_matrix_exponential():
    expected = linear(torch.linalg.matrix_exp(MATRIX) - torch.eye(3, dtype=torch.float64))
    ddf = ScalingAndSquaring(7)(linear(MATRIX))
    assert (ddf - expected)[INSIDE].abs().max() < 1e-3 * expected[INSIDE].abs().max() + 1e-3


def test_more_squarings_come_closer_by_a_half_each():
    expected = linear(torch.linalg.matrix_exp(MATRIX) - torch.eye(3, dtype=torch.float64))
    errors = [(ScalingAndSquaring(n)(linear(MATRIX)) - expected)[INSIDE].abs().max() for n in (2, 3, 4)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


def test_jacobian_is_the_exponential_of_the_trace():
    determinant = jacobian_determinant(ScalingAndSquaring(9)(linear(MATRIX))[0])
    expected = torch.full_like(determinant, torch.trace(MATRIX).exp().item())
    torch.testing.assert_close(determinant[INSIDE], expected[INSIDE], atol=1e-3, rtol=0)


def test_the_inverse_undoes_it():
    velocity, exp = smooth(0.8), ScalingAndSquaring(7)
    there_and_back = compose(exp.inverse(velocity), exp(velocity))
    assert velocity.abs().max() > 0.7
    assert there_and_back[INSIDE].abs().max() < 2e-2
    assert there_and_back[INSIDE].abs().mean() < 5e-3


def test_displacement_is_itself_and_its_inverse_undoes_it_to_rounding():
    ddf, transformation = smooth(0.8), Displacement(60)
    torch.testing.assert_close(transformation(ddf), ddf, atol=0, rtol=0)
    back = compose(ddf, transformation.inverse(ddf))
    torch.testing.assert_close(back[INSIDE], torch.zeros_like(back[INSIDE]), atol=1e-8, rtol=0)


def test_gradient_of_the_exponential():
    velocity = 0.1 * torch.randn(1, 1, 3, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Off the voxels' corners, where linear interpolation has no derivative.
    assert torch.autograd.gradcheck(ScalingAndSquaring(2), (velocity + 0.123).requires_grad_())


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="steps.*-1"):
        ScalingAndSquaring(-1)
