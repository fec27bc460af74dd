"""Contracts of all transformations and alignments, with matrix exponentials."""

import pytest
import torch
from contracts import AlignmentContract, TransformationContract, missing_contracts

from groupmorph_monai import space
from groupmorph_monai.space import (
    AdaptiveSolver,
    AffineFlow,
    Alignment,
    Displacement,
    Euler,
    FlowSequence,
    GeodesicMeanAlignment,
    MeanAlignment,
    MidpointSquaring,
    OneWayAlignment,
    ReferenceAlignment,
    RungeKutta4,
    ScalingAndSquaring,
    StepSequence,
    Transformation,
)


def within(oracle, inverse, **others):
    """Return tolerances in voxels."""
    return {**TransformationContract.tolerances, "oracle": (0.0, oracle), "inverse": (0.0, inverse), **others}


class TestScalingAndSquaring(TransformationContract):
    def subject(self):
        return ScalingAndSquaring(8)


class TestMidpointSquaring(TransformationContract):
    tolerances = within(1e-3, 2e-3)

    def subject(self):
        return MidpointSquaring(4)


class TestEuler(TransformationContract):
    tolerances = within(2e-2, 4e-2, gradient=(2e-2, 0.0))

    def subject(self):
        return Euler(32)


class TestRungeKutta(TransformationContract):
    tolerances = within(1e-8, 1e-6, gradient=(1e-6, 0.0))

    def subject(self):
        return RungeKutta4(8)


class TestAdaptiveSolver(TransformationContract):
    tolerances = within(1e-4, 1e-3, independence=(0.0, 1e-3))  # the steps are chosen for all fields together

    def subject(self):
        return AdaptiveSolver(1e-4)


class TestAffineFlow(TransformationContract):
    tolerances = within(1e-9, 1e-9, gradient=(1e-7, 0.0))

    def subject(self):
        return AffineFlow()


class TestDisplacement(TransformationContract):
    """A displacement is not integrated."""

    tolerances = within(1e-12, 1e-8, gradient=(1e-9, 0.0))

    def subject(self):
        return Displacement(60)

    def oracle(self, pieces):
        return torch.eye(4) + pieces[..., 0, :, :]


class TestFlowSequence(TransformationContract):
    pieces, tolerances = 3, within(1e-8, 1e-6, gradient=(1e-6, 0.0))

    def subject(self):
        return FlowSequence(RungeKutta4(4), self.pieces)


class TestStepSequence(TestFlowSequence):
    """AVSM, Eq. 12, ``phi_t = phi_(t-1) o exp(v_t)``: the last step is applied first."""

    def subject(self):
        return StepSequence(RungeKutta4(4))

    def fields(self, velocities):
        z = None
        for step in (velocities / self.pieces).flip(2).unbind(2):
            z = self.subject().joined(z, super().fields(step.unsqueeze(2)))
        return z


class TestMeanAlignment(AlignmentContract):
    has_reference = False

    def subject(self, reference=0):
        return MeanAlignment()

    def oracle(self, velocities, reference):
        return torch.linalg.matrix_exp(velocities)

    def constrained(self, velocities, reference):
        return velocities


class TestGeodesicMeanAlignment(TestMeanAlignment):
    def subject(self, reference=0):
        return GeodesicMeanAlignment()

    def oracle(self, velocities, reference):
        return torch.linalg.matrix_exp(velocities - velocities.mean(dim=0))

    def constrained(self, velocities, reference):
        return velocities - velocities.mean(dim=0)


class TestReferenceAlignment(AlignmentContract):
    """Composed with the reference's inverse: velocities that do not commute must not be subtracted."""

    def subject(self, reference=0):
        return ReferenceAlignment(reference)

    def oracle(self, velocities, reference):
        maps = torch.linalg.matrix_exp(velocities)
        return maps @ torch.linalg.inv(maps[reference])

    def constrained(self, velocities, reference):
        return velocities - velocities.mean(dim=0)


class TestOneWayAlignment(AlignmentContract):
    """The velocity of the reference has no effect."""

    def subject(self, reference=0):
        return OneWayAlignment(reference)

    def oracle(self, velocities, reference):
        return torch.linalg.matrix_exp(self.constrained(velocities, reference))

    def constrained(self, velocities, reference):
        moves = torch.arange(len(velocities)) != reference
        return velocities * moves.view(-1, 1, 1)


@pytest.mark.parametrize("base", [Transformation, Alignment])
def test_every_class_is_under_contract(base):
    assert not missing_contracts(space, base, globals())
