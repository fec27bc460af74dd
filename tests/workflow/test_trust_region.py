import pytest
import torch

from groupmorph_monai.data.storage import IN_MEMORY
from groupmorph_monai.probability import FluidPrior, LocalCorrelation
from groupmorph_monai.space import Displacement, Lattice, VelocityField
from groupmorph_monai.workflow import Refinement, Schedule
from groupmorph_monai.workflow.evidence import Level, Quadratic
from groupmorph_monai.workflow.precision import Precision
from groupmorph_monai.workflow.trust_region import TrustRegion, take_step


def test_the_mean_step_is_half_a_voxel_of_the_lattice_at_most():
    z = VelocityField(torch.zeros(1, 2, 3, 4, 4, 4), Lattice((8, 8, 8), 2))
    for length, taken in ((0.2, 0.28), (3.0, 0.5)):
        dz = torch.zeros(2, 3, 4, 4, 4)
        dz[:, 1] = length
        after, mean = take_step(z, dz, IN_MEMORY)
        assert mean == pytest.approx(2 * taken) and torch.allclose(after.values[0, :, 1], torch.tensor(taken))


def test_a_step_too_far_is_taken_back_and_a_shorter_one_follows(monkeypatch):
    """Where the model has a quarter of the true curvature, each step goes four times as far as it should.

    Two timepoints move apart or together by one number, which the prior leaves free and whose best value is 0.
    """
    size, places = (4, 3, 5), []

    def model(level, likelihood, ddf):
        z = ddf.values[0]
        places.append(z[0, 0].mean().item())
        curvature = 0.25 * torch.eye(3, dtype=z.dtype).view(1, 3, 3, 1, 1, 1).expand(2, 3, 3, *size)
        return Quadratic(-0.5 * z.square().sum(), torch.tensor(2), -z, curvature)

    monkeypatch.setattr(Level, "model", model)
    schedule = Schedule(levels=(1,), iterations=(14,), tolerance=1e-6, lattice_voxels=1)
    ask = Refinement(LocalCorrelation(), FluidPrior(1.0, 0.0), schedule)
    begin = torch.zeros(1, 2, 3, *size, dtype=torch.float64)
    begin[:, 0, 0], begin[:, 1, 0] = 0.3, -0.3
    ask(VelocityField.on_voxels(begin), torch.zeros(1, 2, *size), Displacement())
    # Half a voxel is the longest step: 0.3, then -0.2, then 0.3 again, which is worse. From -0.2 once more, with 1 + 8
    # times the curvature: 4 / 9 of the way and not 4 times it.
    assert places[:4] == pytest.approx([0.3, -0.2, 0.3, -0.2 + 0.2 * 1.4 * 4 / 9])
    assert abs(places[-1]) < 0.02


def test_a_step_that_only_costs_prior_energy_is_taken_back():
    size = (4, 3, 5)
    near, far = (VelocityField.on_voxels(length * torch.rand(1, 2, 3, *size)) for length in (0.01, 10.0))
    model = Quadratic(torch.tensor(-1.0), torch.tensor(2), torch.zeros(2, 3, *size), torch.zeros(2, 3, 3, *size))
    precision = Precision(FluidPrior(1.0, 0.1).terms(size), [1.0] * 2)
    for first, last in ((near, far), (far, near)):
        region = TrustRegion(first)
        for z in (first, last):
            region.accept(z, model, precision)
        assert torch.equal(region.z.values, near.values)
