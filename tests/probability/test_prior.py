import pytest
import torch
from contracts import dense_laplacian

from groupmorph_monai.probability import FluidPrior, TemporalPrior
from groupmorph_monai.space.cosine_transform import CosineTransform

SIZE = (3, 4, 2)


def dense_precision(lambda_u, lambda_v, lambda_b=0.0, lambda_c=0.0):
    laplacian = dense_laplacian(SIZE)
    square, eye = laplacian @ laplacian, torch.eye(24, dtype=torch.float64)
    return lambda_v * eye + lambda_u * laplacian + lambda_b * square + lambda_c * square @ laplacian


def parameters(timepoints=2):
    generator = torch.Generator().manual_seed(1)
    shape = (1, timepoints, 3, *SIZE)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2))


def test_log_determinant_is_exact():
    _, expected = torch.linalg.slogdet(dense_precision(1.3, 0.02))
    assert FluidPrior(1.3, 0.02).log_determinant(SIZE) == pytest.approx(expected.item(), abs=1e-9)


def test_without_lambda_v_the_constant_field_is_left_out_of_the_determinant():
    eigenvalues = torch.linalg.eigvalsh(dense_precision(2.0, 0.0))[1:]
    assert FluidPrior(2.0, 0.0).log_determinant(SIZE) == pytest.approx(eigenvalues.log().sum().item(), abs=1e-9)


def test_energy_is_the_quadratic_form():
    mean, _ = parameters()
    flat = mean[0].flatten(2)
    expected = torch.einsum("kdi,ij,kdj->kd", flat, dense_precision(0.7, 0.05), flat)
    torch.testing.assert_close(FluidPrior(0.7, 0.05).energy(mean)[0], expected, atol=1e-9, rtol=0)


def test_a_field_that_alternates_from_voxel_to_voxel_costs_most():
    alternating = torch.ones(1, 1, 3, 8, 8, 8)
    alternating[..., ::2] = -1
    smooth = torch.linspace(-1, 1, 8).expand(1, 1, 3, 8, 8, 8)
    prior = FluidPrior(1.0, 0.0)
    assert prior.energy(alternating).sum() > 20 * prior.energy(smooth).sum()


def test_the_loss_does_not_change_with_the_number_of_timepoints_or_copies():
    mean, log_variance = parameters()
    prior = FluidPrior()
    once = prior(mean, log_variance)
    torch.testing.assert_close(prior(mean.repeat(3, 2, 1, 1, 1, 1), log_variance.repeat(3, 2, 1, 1, 1, 1)), once)
    assert once.item() == pytest.approx(prior.kl(mean, log_variance).mean().item() / 24)


def test_its_minimum_over_the_variance_is_the_inverse_of_the_precisions_diagonal():
    _, log_variance = parameters(1)
    prior = FluidPrior(0.7, 0.05)
    diagonal = dense_precision(0.7, 0.05).diagonal().view(SIZE)
    at_best = (-diagonal.log()).expand_as(log_variance).clone().requires_grad_()
    (slope,) = torch.autograd.grad(prior(torch.zeros_like(at_best), at_best), at_best)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-12, rtol=0)


def test_weights_that_make_no_density_are_refused():
    with pytest.raises(ValueError, match="lambda"):
        FluidPrior(0, 0)
    with pytest.raises(ValueError, match="-1"):
        FluidPrior(-1, 1)


def test_a_field_keeps_its_energy_on_a_coarser_lattice():
    line = torch.exp(-0.5 * ((torch.arange(97, dtype=torch.float64) - 48) / 10) ** 2)
    bump = (line[:, None] * line).view(1, 1, 1, 97, 97, 1).expand(1, 1, 3, 97, 97, 1)
    for order in ("lambda_u", "lambda_b", "lambda_c", "lambda_v"):
        prior = FluidPrior(**{"lambda_u": 0.0, "lambda_v": 0.0, order: 2.0})
        fine = prior.energy(bump)[0, 0, 0]
        coarse = bump[..., ::2, ::2, :] / 2  # in voxels of the lattice
        size = coarse.shape[3:]
        spectrum = prior.spectrum(size, step=2.0) / 2  # one voxel thick: the third axis is no coarser
        energy = (spectrum * CosineTransform(size, coarse)(coarse).square())[0, 0, 0].sum()
        assert energy.item() == pytest.approx(fine.item(), rel=0.06), order


def test_temporal_weights_follow_the_acquisition_times_of_each_series():
    mean, log_variance = (torch.cat([x, x + 0.1]) for x in parameters(3))
    prior, times = TemporalPrior(0.4, lambda_u=0.7, lambda_v=0.05), torch.tensor([[0.0, 90, 150], [10, 11, 20]])
    alone = [prior.kl(mean[[b]], log_variance[[b]], times=times[[b]])[0] for b in range(2)]
    torch.testing.assert_close(prior.kl(mean, log_variance, times=times), torch.stack(alone))
    evenly = prior(mean, log_variance, times=torch.tensor([[0.0, 60, 120], [5, 5, 5]]))  # equal times are no order
    assert evenly.item() == pytest.approx(prior(mean, log_variance).item(), rel=1e-10)
    nearly = torch.tensor([[0.0, 0, 120], [0, 0, 120]])
    assert prior(mean, log_variance, times=nearly) < 2 * prior(mean, log_variance)


def test_without_a_temporal_weight_it_is_the_fluid_prior():
    fields = parameters(3)
    actual = TemporalPrior(0.0, lambda_u=0.7, lambda_v=0.05)(*fields)
    assert actual.item() == pytest.approx(FluidPrior(0.7, 0.05)(*fields).item(), rel=1e-10)
