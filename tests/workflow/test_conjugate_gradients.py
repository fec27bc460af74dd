import pytest
import torch
from refinements import dense_precision

from groupmorph_monai.probability import FluidPrior
from groupmorph_monai.workflow.conjugate_gradients import ascent, solve
from groupmorph_monai.workflow.evidence import Quadratic
from groupmorph_monai.workflow.precision import FreeLinearPrecision, Precision


@pytest.mark.parametrize("kind", [Precision, FreeLinearPrecision])
def test_a_step_solves_the_normal_equations(kind):
    generator = torch.Generator().manual_seed(0)
    size, timepoints = (3, 4, 2), 3
    root = torch.randn(3, 3, *size, generator=generator, dtype=torch.float64)
    # One curvature for all timepoints, so that the dense solution of mean 0 is the mean-free part of each one's own.
    curvature = torch.einsum("de...,fe...->df...", root, root).expand(timepoints, 3, 3, *size)
    force = torch.randn(timepoints, 3, *size, generator=generator, dtype=torch.float64)
    z = torch.randn(timepoints, 3, *size, generator=generator, dtype=torch.float64)
    terms = FluidPrior(0.5, 0.1, 0.2, 0.3).terms(size)
    precision = kind(terms, [1.0] * 4)
    model = Quadratic(torch.tensor(0.0), torch.tensor(3), force, curvature)
    solution = solve(model, precision, ascent(model, precision, z), steps=400)
    prior = dense_precision(precision, size)
    dense = torch.block_diag(prior, prior, prior)
    for d in range(3):
        for e in range(3):
            dense[24 * d : 24 * d + 24, 24 * e : 24 * e + 24] += torch.diag(curvature[0, d, e].flatten())
    right = force.flatten(1) - (z.flatten(2) @ prior).flatten(1)
    expected = torch.linalg.solve(dense, (right - right.mean(0)).T).T
    # The solver stops at a hundredth of the residual's length.
    assert (solution.flatten(1) - expected).norm() < 0.05 * expected.norm()


def test_rounding_does_not_grow_where_few_voxels_determine_a_step():
    generator = torch.Generator().manual_seed(0)
    size, timepoints = (16, 14, 12), 3
    seen = torch.rand(size, generator=generator) < 0.02
    root = seen * torch.randn(timepoints, 3, 3, *size, generator=generator)
    curvature = torch.einsum("kde...,kfe...->kdf...", root, root)
    force = seen * torch.randn(timepoints, 3, *size, generator=generator)
    precision = FreeLinearPrecision([term.float() for term in FluidPrior(0, 0, 0, 0.1).terms(size)], [1.0])
    steps = []
    for factor in (1, 1 + 1e-6):
        model = Quadratic(torch.tensor(0.0), torch.tensor(3), factor * force, curvature)
        steps.append(solve(model, precision, ascent(model, precision, torch.zeros_like(force)), steps=16))
    assert steps[0].dtype == torch.float32
    assert (steps[1] - steps[0]).abs().max() < 1e-5 * steps[0].abs().max()
