import pytest
import torch
from refinements import displacement, images, start

from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.space.cosine_transform import CosineTransform
from groupmorph_monai.workflow import LikeliestWeights
from groupmorph_monai.workflow.evidence import Evidence, Level, Quadratic
from groupmorph_monai.workflow.precision import FreeLinearPrecision


def test_linear_fields_cost_nothing_where_only_higher_differences_do():
    prior = FluidPrior(0, 0, 0.2, 2.0)
    axes = torch.meshgrid(*[torch.arange(n).double() for n in (6, 5, 7)], indexing="ij")
    linear = CosineTransform((6, 5, 7), axes[0])(2 * axes[0] - 0.5 * axes[1] + 3 * axes[2] + 1)
    precision = FreeLinearPrecision(prior.terms((6, 5, 7)), [1.0, 3.0])
    assert prior.linear_is_free and not FluidPrior(0.1, 0, 0, 2.0).linear_is_free
    assert precision.energy(linear) < 1e-20 * linear.square().sum()
    square = CosineTransform((6, 5, 7), axes[0])(axes[0] ** 2)
    assert precision.energy(square) > 1
    torch.testing.assert_close(precision.without_linear(linear + square), precision.without_linear(square))


def test_the_priors_weights_are_the_likeliest_times_the_factor(phantom):
    z = start(phantom).at(2)
    z = z.with_values(z.values + 0.1 * torch.randn(z.values.shape, generator=torch.Generator().manual_seed(0)))
    model = Level(images(phantom), Evidence(), 2, 2).model(LocalCorrelation(), displacement(z))
    precision = FreeLinearPrecision(
        [FluidPrior(0, 0, 0, 60).spectrum(z.lattice.shape, z.lattice.step).to(z.values)], [1.0]
    )
    likeliest, held = (LikeliestWeights(factor=f)(precision, z.values[0], model).weights for f in (1.0, 1.4))
    assert [float(w) for w in held] == pytest.approx([1.4 * float(w) for w in likeliest])


def test_the_evidence_finds_the_weight_that_fields_were_drawn_with():
    size, generator = (12, 10, 11), torch.Generator().manual_seed(0)
    prior = FluidPrior(0, 1e-3, 0, 2.0)
    like = torch.zeros(4, 3, *size, dtype=torch.float64)
    white = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    z = CosineTransform(size, like).inverse(white * prior.spectrum(size).rsqrt())
    z = z - z.mean(0)
    precision = FreeLinearPrecision([FluidPrior(0, 0, 0, 2.0).spectrum(size)], [1.0])
    curvature = 1e6 * torch.eye(3, dtype=z.dtype).view(1, 3, 3, 1, 1, 1).expand(4, 3, 3, *size)
    model = Quadratic(torch.tensor(0.0), torch.tensor(4), torch.zeros_like(z), curvature)
    (weight,) = LikeliestWeights(independent_share=1.0)(precision, z, model).weights
    assert weight == pytest.approx(1, rel=0.1)
