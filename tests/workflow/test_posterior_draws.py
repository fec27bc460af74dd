from dataclasses import replace

import pytest
import torch
from refinements import EXP, dense_precision, displacement, images, refinement, start

from groupmorph_monai.errors import InputError
from groupmorph_monai.probability import FluidPrior, GroupNMI, LocalCorrelation, SquaredError
from groupmorph_monai.space import (
    FlowSequence,
    Lattice,
    ScalingAndSquaring,
    VelocityField,
    standard_deviation,
)
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.space.transforms import interpolate
from groupmorph_monai.workflow import LikeliestWeights, Refinement
from groupmorph_monai.workflow.conjugate_gradients import solve
from groupmorph_monai.workflow.evidence import Level, Quadratic
from groupmorph_monai.workflow.posterior_draws import _TAILS, posterior_draws
from groupmorph_monai.workflow.precision import FreeLinearPrecision, Precision


@pytest.mark.parametrize("pieces", [1, 3])
def test_each_piece_of_a_velocity_pays_for_what_all_share(pieces):
    size, prior, timepoints = (12, 10, 8), FluidPrior(0.5, 2.0), 3
    refinement = Refinement(SquaredError(1.0), prior)
    z = VelocityField(torch.zeros(1, timepoints, 3 * pieces, 6, 5, 4), Lattice(size, 2))
    flat = torch.full((1, timepoints, *size), 0.5)
    samples = refinement.draws(z, flat, FlowSequence(ScalingAndSquaring(2), pieces), number=200)
    draws = torch.stack([draw.values[0].unflatten(1, (pieces, 3)) for draw in samples])
    assert torch.equal(draws, draws[:, :, :1].expand_as(draws))
    coefficients = CosineTransform((6, 5, 4), draws)(draws[:, :, 0])
    # N(0, (T Lambda)^-1) for each of K fields, without their mean.
    expected = (1 - 1 / timepoints) / (pieces * prior.spectrum((6, 5, 4), 2.0))
    ratio = (coefficients / _TAILS).square().mean(dim=(0, 1, 2)) / expected
    assert ratio.mean().item() == pytest.approx(1, abs=0.02) and ratio.std() < 0.1


@pytest.mark.parametrize("prior", [FluidPrior(0.3, 0.5), FluidPrior(0, 0, 0.3, 0.5)], ids=["held", "linear free"])
@pytest.mark.parametrize("timepoints", [2, 3])
@pytest.mark.parametrize(("pieces", "factor"), [(1, 1.0), (2, 1.0), (1, 1.5)])
def test_draws_have_the_covariance_of_the_posterior(timepoints, pieces, factor, prior, monkeypatch):
    size, generator = (2, 3, 2), torch.Generator().manual_seed(0)
    fields = (timepoints, 3, *size)
    number = timepoints * 3 * 12
    root = torch.randn(timepoints, 3, 3, *size, generator=generator, dtype=torch.float64)
    curvature = torch.einsum("kde...,kfe...->kdf...", root, root)
    model = Quadratic(torch.tensor(0.0), torch.tensor(2), torch.zeros(fields, dtype=torch.float64), curvature)
    ask = Refinement(LocalCorrelation(), prior, prior_weights=LikeliestWeights(factor=factor))
    # Weights of 1, `factor` times as large as those that the fields of the series have.
    monkeypatch.setattr(LikeliestWeights, "__call__", lambda self, precision, *arguments: precision)
    signal = torch.rand(timepoints, 1, 1, *size, generator=generator, dtype=torch.float64)
    determined = replace(model, curvature=signal * curvature)
    monkeypatch.setattr(Level, "model", lambda *arguments: model)
    monkeypatch.setattr(Level, "without_guide_noise", lambda *arguments: determined)
    # A draw is linear in its white noise: unit vectors in its place give the covariance without chance.
    units = iter(torch.eye(2 * number, dtype=torch.float64).reshape(-1, *fields))
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: next(units))
    z = torch.ones(1, timepoints, 3 * pieces, *size, dtype=torch.float64)
    images = torch.zeros(1, timepoints, *size)
    flow = FlowSequence(ScalingAndSquaring(0), pieces)
    draws = ask.draws(VelocityField.on_voxels(z), images, flow, number=2 * number)
    scaled = (torch.cat([draw.values for draw in draws]) - z) / _TAILS
    shared = scaled.unflatten(2, (pieces, 3))[:, :, 0].reshape(2 * number, number)
    terms = [pieces * term for term in prior.terms(size)]
    kind = FreeLinearPrecision if prior.linear_is_free else Precision
    one = dense_precision(kind(terms, [1.0] * 2), size)

    def precision(curvature, factor=1.0):
        dense = torch.block_diag(*[factor * one] * (3 * timepoints)).reshape(timepoints, 3, 12, timepoints, 3, 12)
        for k in range(timepoints):
            for d in range(3):
                for e in range(3):
                    dense[k, d, :, k, e] += torch.diag(curvature[k, d, e].flatten())
        return basis.T @ dense.reshape(number, number) @ basis

    # An orthonormal basis of the fields of mean 0 over K.
    free = torch.linalg.eigh(torch.eye(timepoints).double() - 1 / timepoints).eigenvectors[:, 1:]
    basis = torch.einsum("km,ab->kamb", free, torch.eye(36, dtype=torch.float64)).reshape(number, -1)
    bread = torch.linalg.inv(precision(determined.curvature))
    expected = basis @ bread @ precision(curvature, factor) @ bread @ basis.T
    # The solver stops at a hundredth of the residual's length.
    assert (shared.T @ shared - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("share", [0.03, 0.3])
def test_draws_have_the_priors_weights_of_the_mode(share, phantom, monkeypatch):
    ask, x, precisions = refinement(prior_weights=LikeliestWeights(share)), images(phantom), {}

    def observe(name, function):
        def observed(*arguments):
            precisions[name] = next(a for a in arguments if isinstance(a, Precision))
            return function(*arguments)

        monkeypatch.setattr(f"groupmorph_monai.workflow.refinement.{name}", observed)

    observe("solve", solve)
    observe("posterior_draws", posterior_draws)
    z = ask(start(phantom), x, displacement)
    next(ask.draws(z, x, displacement, number=1))
    (mode,), (of_draws,) = (precisions[name].weights for name in ("solve", "posterior_draws"))
    assert of_draws == pytest.approx(float(mode), rel=0.05) and mode != pytest.approx(1.0, rel=0.05)


def test_draws_need_a_likelihood_in_nats():
    refinement().check_draws(20)
    with pytest.raises(InputError, match="std_draws .--std.: expected 0 with GroupNMI.*got 20.*multi_kernel"):
        refinement(likelihood=GroupNMI()).check_draws(20)


def test_most_true_errors_lie_within_the_interval_that_draws_give(phantom):
    ask, x = refinement(), images(phantom)
    z = ask(start(phantom), x, displacement)
    spread = standard_deviation(displacement(draw) for draw in ask.draws(z, x, displacement, number=12))
    ddf, inverse, std = (field.on_image()[0] for field in (EXP(z), EXP(-z), spread))
    points = phantom["landmarks"]
    common = torch.stack([p + interpolate(u, p) for p, u in zip(points, inverse)])
    shares = []
    for i, j in ((0, 1), (1, 2), (3, 0)):
        error = common[i] + interpolate(ddf[j], common[i]) - points[j]
        interval = 1.645 * (interpolate(std[i], common[i]).square() + interpolate(std[j], common[i]).square()).sqrt()
        shares.append((error.abs() < interval).float().mean())
    assert 0.75 < torch.stack(shares).mean() < 0.99
