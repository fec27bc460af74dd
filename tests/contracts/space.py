"""Contracts of linear operators, transformations and alignments."""

import pytest
import torch

from groupmorph_monai.space import ScalingAndSquaring, compose, voxel_grid
from groupmorph_monai.space.chunks import all_at_once

from .base import TIMEPOINTS, Contract, random


class LinearOperatorContract(Contract):
    """Contract of a linear operator.

    ``apply`` maps ``(1, 1, *domain)`` to ``(1, 1, *range)`` and ``transposed`` maps back; ``oracle`` is ``apply`` in
    NumPy, for one volume without the two leading axes.
    """

    domain = (7, 5, 6)
    tolerances = {"oracle": (1e-9, 1e-10), "linearity": (1e-7, 1e-7), "adjoint": (1e-9, 0.0)}

    def apply(self, x):
        raise NotImplementedError

    def transposed(self, y):
        raise NotImplementedError

    def oracle(self, x):
        raise NotImplementedError

    def test_equals_the_oracle(self):
        x = random(1, 1, *self.domain)
        expected = torch.as_tensor(self.oracle(x[0, 0].numpy()))
        self.assert_close("oracle", self.apply(x)[0, 0], expected)

    def test_is_linear(self):
        x, y = random(1, 1, *self.domain), random(1, 1, *self.domain, seed=1)
        self.assert_close("linearity", self.apply(2 * x - 3 * y), 2 * self.apply(x) - 3 * self.apply(y))

    def test_transpose_is_the_adjoint(self):
        x = random(1, 1, *self.domain)
        transformed = self.apply(x)
        y = random(*transformed.shape, seed=1)
        self.assert_close("adjoint", (transformed * y).sum(), (x * self.transposed(y)).sum())


class FlowContract:
    """Contract of the flow of a velocity.

    Attributes:
        size: size of the fields in voxels.
        tolerance: greatest error for a linear velocity, voxels.
        inversion_tolerance: greatest error of the inverse, voxels.
        independence_tolerance: greatest difference between a field integrated alone and with others, voxels.
    """

    size, tolerance, inversion_tolerance, independence_tolerance = (15, 17, 13), 2e-3, 5e-3, 1e-9
    inside = (..., *[slice(4, -4)] * 3)

    @pytest.fixture
    def flow(self):
        raise NotImplementedError

    def linear(self, matrix):
        places = voxel_grid(self.size, torch.empty(0, dtype=torch.float64))
        centre = (torch.tensor(self.size).double().view(3, 1, 1, 1) - 1) / 2
        return torch.einsum("de,eijk->dijk", matrix, places - centre)

    def velocities(self, timepoints):
        matrices = 0.2 * (random(timepoints, 3, 3) - 0.5)
        return matrices, torch.stack([self.linear(m) for m in matrices])[None]

    def test_zero_velocity_is_the_identity(self, flow):
        assert not flow(torch.zeros(1, 2, 3, *self.size)).any()

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_linear_velocity_equals_the_matrix_exponential(self, flow, timepoints):
        matrices, z = self.velocities(timepoints)
        expected = torch.stack([self.linear(torch.linalg.matrix_exp(m) - torch.eye(3).double()) for m in matrices])
        assert (flow(z)[0] - expected)[self.inside].abs().max() < self.tolerance

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_inverse_composes_to_the_identity(self, flow, timepoints):
        _, z = self.velocities(timepoints)
        assert compose(flow.inverse(z), flow(z))[self.inside].abs().max() < self.inversion_tolerance

    def test_timepoints_are_independent(self, flow):
        _, z = self.velocities(3)
        apart = torch.stack([flow(z[:, k : k + 1])[:, 0] for k in range(3)], dim=1)
        torch.testing.assert_close(flow(z), apart, atol=self.independence_tolerance, rtol=0)


class AlignmentContract(Contract):
    """Contract of an alignment, tested with velocities that do not commute.

    Attributes:
        size: size of the fields in voxels.
        fixed: index of the timepoint that does not move; None if all do.
    """

    size, fixed = (17, 17, 17), None
    tolerances = {"inverse": (0.0, 2e-3), "constraint": (1e-7, 1e-7), "order": (1e-7, 1e-7)}
    inside = (..., *[slice(5, -5)] * 3)
    exp = ScalingAndSquaring(8)

    def alignment(self):
        raise NotImplementedError

    def velocities(self, timepoints):
        places = voxel_grid(self.size, torch.empty(0, dtype=torch.float64)) - 8
        matrices = 0.25 * (random(timepoints, 3, 3, seed=4) - 0.5)
        return torch.stack([torch.einsum("de,eijk->dijk", m, places) for m in matrices])[None]

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_inverse_composes_to_the_identity(self, timepoints):
        z, alignment = self.velocities(timepoints), self.alignment()
        back = compose(alignment.inverse(z, self.exp), alignment(z, self.exp))
        self.assert_close("inverse", back[self.inside], torch.zeros_like(back[self.inside]))
        assert alignment(z, self.exp)[self.inside].abs().max() > 0.1

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_fixed_timepoint_does_not_move(self, timepoints):
        ddf = self.alignment()(self.velocities(timepoints), self.exp)[0]
        for k in range(timepoints):
            assert bool(ddf[k].any()) == (k != self.fixed)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_constrained_velocities_stay_the_same(self, timepoints):
        alignment = self.alignment()
        z = alignment.constrain(self.velocities(timepoints))
        self.assert_close("constraint", alignment.anchored(alignment.centred(z)), z)
        self.assert_close("constraint", alignment.constrain(z), z)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_the_shared_part_is_what_the_constraint_removes(self, timepoints):
        z, alignment = self.velocities(timepoints), self.alignment()
        constrained = alignment.constrain(alignment.anchored(z))
        for chunks in (all_at_once, lambda k: [slice(n, n + 1) for n in range(k)]):
            self.assert_close("constraint", z - alignment.shared(z, chunks), constrained)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_reordered_timepoints_give_reordered_fields(self, timepoints):
        z, moving = self.velocities(timepoints), [k for k in range(timepoints) if k != self.fixed]
        order = list(range(timepoints))
        for here, mirrored in zip(moving, reversed(moving)):
            order[here] = mirrored
        ddf = self.alignment()(z, self.exp)
        self.assert_close("order", self.alignment()(z[:, order], self.exp), ddf[:, order])
