import pytest
import torch

from groupmorph_monai.space import (
    AdaptiveSolver,
    AffineFlow,
    Displacement,
    Euler,
    FlowSequence,
    MidpointSquaring,
    RungeKutta4,
    ScalingAndSquaring,
    VelocityField,
    compose,
    voxel_grid,
)
from groupmorph_monai.space.transforms import jacobian_determinant

SIZE = (17, 15, 19)
INSIDE = (..., *[slice(4, -4)] * 3)
FLOWS = [ScalingAndSquaring(7), MidpointSquaring(3), Euler(64), RungeKutta4(8), AdaptiveSolver(1e-4)]
FLOWS_OF_FEW_STEPS = [
    ScalingAndSquaring(2),
    MidpointSquaring(1),
    Euler(2),
    RungeKutta4(1),
    AdaptiveSolver(1e-2),
]
NAMES = ["squaring", "midpoint", "euler", "runge-kutta", "adaptive"]
MATRIX = torch.tensor([[0.05, 0.12, 0.0], [-0.1, 0.03, 0.04], [0.02, -0.05, -0.04]], dtype=torch.float64)


def linear(matrix):
    grid = voxel_grid(SIZE, torch.empty(0, dtype=torch.float64))
    centred = grid - (torch.tensor(SIZE, dtype=torch.float64).view(3, 1, 1, 1) - 1) / 2
    return VelocityField.on_voxels(torch.einsum("de,eijk->dijk", matrix, centred)[None, None])


def smooth(amplitude):
    grid = voxel_grid(SIZE, torch.empty(0, dtype=torch.float64)) / 19 * 2 * torch.pi
    x, y, z = grid
    waves = torch.stack([y.sin() * z.cos(), z.sin() * x.cos(), x.sin() * y.cos()])
    return VelocityField.on_voxels(amplitude * waves[None, None])


@pytest.mark.parametrize("flow", FLOWS, ids=NAMES)
def test_the_flow_of_a_translation_is_it(flow):
    velocity = torch.tensor([1.5, -0.5, 0.25], dtype=torch.float64).view(1, 1, 3, 1, 1, 1).expand(1, 2, 3, *SIZE)
    ddf = flow(VelocityField.on_voxels(velocity)).values
    torch.testing.assert_close(ddf, velocity, atol=1e-12, rtol=0)


def error_of_a_linear_velocity(flow):
    expected = linear(torch.linalg.matrix_exp(MATRIX) - torch.eye(3, dtype=torch.float64))
    return (flow(linear(MATRIX)) - expected).values[INSIDE].abs().max().item()


@pytest.mark.parametrize("solver, order", [(Euler, 1), (RungeKutta4, 4)])
def test_twice_as_many_steps_come_closer_by_the_methods_order(solver, order):
    errors = [error_of_a_linear_velocity(solver(steps)) for steps in (2, 4, 8)]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("squaring, factor", [(ScalingAndSquaring, 2), (MidpointSquaring, 4)])
def test_more_squarings_come_closer_by_the_order_of_the_first_step(squaring, factor):
    errors = [error_of_a_linear_velocity(squaring(steps)) for steps in (2, 3, 4)]
    assert errors[0] / errors[1] == pytest.approx(factor, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(factor, rel=0.2)


def test_jacobian_is_the_exponential_of_the_trace():
    determinant = jacobian_determinant(ScalingAndSquaring(9)(linear(MATRIX)).values[0])
    expected = torch.full_like(determinant, torch.trace(MATRIX).exp().item())
    torch.testing.assert_close(determinant[INSIDE], expected[INSIDE], atol=1e-3, rtol=0)


@pytest.mark.parametrize("exp", FLOWS, ids=NAMES)
def test_the_inverse_undoes_it(exp):
    velocity = smooth(0.8)
    there_and_back = compose(exp.inverse(velocity), exp(velocity)).values
    assert velocity.values.abs().max() > 0.7
    assert there_and_back[INSIDE].abs().max() < 2e-2
    assert there_and_back[INSIDE].abs().mean() < 5e-3


def test_displacement_is_itself_and_its_inverse_undoes_it_to_rounding():
    z, transformation = smooth(0.8), Displacement(60)
    ddf = transformation(z)
    assert torch.equal(ddf.values, z.values) and torch.equal(Displacement(0).inverse(z).values, -z.values)
    back = compose(ddf, transformation.inverse(z)).values
    torch.testing.assert_close(back[INSIDE], torch.zeros_like(back[INSIDE]), atol=1e-8, rtol=0)


@pytest.mark.parametrize("flow", FLOWS_OF_FEW_STEPS, ids=NAMES)
def test_gradient_of_the_flow(flow):
    velocity = 0.1 * torch.randn(1, 1, 3, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Off the voxels' corners, where linear interpolation has no derivative.
    start = (velocity + 0.123).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: flow(VelocityField.on_voxels(v)).values, start, fast_mode=True)


def test_impossible_settings_are_refused():
    for steps in (-1, 31):
        with pytest.raises(ValueError, match=f"steps.*{steps}"):
            ScalingAndSquaring(steps)
    with pytest.raises(ValueError, match="tolerance_voxels.*0"):
        AdaptiveSolver(0)


def test_a_sequence_of_equal_pieces_is_the_stationary_flow():
    velocity = smooth(0.8)
    pieces = FlowSequence(RungeKutta4(8), 3)(velocity.with_values(velocity.values.repeat(1, 1, 3, 1, 1, 1)))
    assert (pieces - RungeKutta4(24)(velocity)).values[INSIDE].abs().max() < 2e-2
    with pytest.raises(ValueError, match="3 fields.*4"):
        FlowSequence(Euler(2), 3)(VelocityField.on_voxels(torch.zeros(1, 1, 4, 5, 5, 5)))


def test_the_affine_flow_is_exact_to_the_borders_and_so_is_its_inverse():
    shift = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64).view(3, 1, 1, 1)
    velocity = VelocityField.on_voxels(linear(MATRIX).values + shift)
    ddf, back = AffineFlow()(velocity).values, AffineFlow().inverse(velocity).values
    fine = RungeKutta4(64)(velocity).values
    torch.testing.assert_close(ddf[INSIDE], fine[INSIDE], atol=1e-6, rtol=0)
    corner = torch.tensor([0.0, 0, 0], dtype=torch.float64)
    mapped = corner + ddf[0, 0, :, 0, 0, 0]
    # Also outside of the grid, as the first voxels of an affine inverse determine it everywhere.
    slope = torch.stack([back[0, 0][(slice(None), *at)] - back[0, 0, :, 0, 0, 0] for at in torch.eye(3).int().tolist()])
    torch.testing.assert_close(mapped + back[0, 0, :, 0, 0, 0] + slope.T @ mapped, corner, atol=1e-9, rtol=0)
    values = velocity.values.requires_grad_()
    assert torch.autograd.grad(AffineFlow()(velocity).values.sum(), values)[0].isfinite().all()
