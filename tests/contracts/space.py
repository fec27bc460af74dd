"""Contracts of linear operators, transformations and alignments."""

import pytest
import torch

from groupmorph_monai.space import AffineFlow, VelocityField, compose, voxel_grid
from groupmorph_monai.space.chunks import all_at_once

from .base import TIMEPOINTS, Contract, another_order, one_at_a_time, random


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


def linear_field(map_, size):
    """Sample ``A (x - c) + b`` of an affine ``map_`` ``(..., 4, 4)`` about the grid's centre c: ``(..., 3, *size)``."""
    centred = voxel_grid(size, map_) - (torch.tensor(size).view(3, 1, 1, 1) - 1) / 2
    return torch.einsum("...de,eijk->...dijk", map_[..., :3, :3], centred) + map_[..., :3, 3, None, None, None]


def logarithms(*shape, scale, seed=0):
    """Generate logarithms of affine maps that do not commute, ``(*shape, 4, 4)``, with translations in voxels."""
    matrices = 2 * random(*shape, 4, 4, seed=seed) - 1
    matrices[..., :3, :3] *= scale
    matrices[..., 3, :] = 0
    return matrices


class TransformationContract(Contract):
    """Contract of a transformation, tested with affine velocities, whose flows are matrix exponentials.

    Attributes:
        size: size of the fields in voxels.
        pieces: number of velocities per timepoint.
        tolerances: greatest errors in voxels. "independence" compares a field transformed alone and with others.
    """

    size, pieces = (15, 17, 13), 1
    tolerances = {"oracle": (0.0, 2e-3), "inverse": (0.0, 5e-3), "gradient": (2e-3, 0.0), "independence": (0.0, 1e-9)}
    inside = (..., *[slice(5, -5)] * 3)

    def oracle(self, pieces):
        """Compute the map of velocities ``(..., T, 4, 4)``, the first piece applied first: ``(..., 4, 4)``."""
        result = torch.eye(4).double()
        for piece in pieces.unbind(-3):
            result = torch.linalg.matrix_exp(piece / self.pieces) @ result
        return result

    def velocities(self, timepoints):
        """Generate logarithms ``(1, K, T, 4, 4)``."""
        return self.pieces**0.5 * logarithms(1, timepoints, self.pieces, scale=0.1)

    def fields(self, velocities):
        """Sample the velocities: ``(1, K, T * 3, *S)``."""
        return VelocityField.on_voxels(linear_field(velocities, self.size).flatten(2, 3))

    def displaced(self, velocities, sign=1):
        """Compute the displacement of the oracle or of its inverse inside of the grid."""
        maps = self.oracle(velocities)
        maps = maps if sign > 0 else torch.linalg.inv(maps)
        return linear_field(maps - torch.eye(4), self.size)[self.inside]

    def test_zero_is_the_identity(self):
        zero = VelocityField.on_voxels(torch.zeros(1, 2, 3 * self.pieces, *self.size))
        assert not self.subject()(zero).values.any()

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_affine_velocity_equals_the_matrix_exponential(self, timepoints):
        velocities = self.velocities(timepoints)
        ddf = self.subject()(self.fields(velocities)).values[self.inside]
        self.assert_close("oracle", ddf, self.displaced(velocities))
        assert ddf.abs().amax(dim=(2, 3, 4, 5)).min() > 0.2

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_inverse_equals_the_inverse_of_the_oracle(self, timepoints):
        velocities, transformation = self.velocities(timepoints), self.subject()
        z = self.fields(velocities)
        self.assert_close("inverse", transformation.inverse(z).values[self.inside], self.displaced(velocities, -1))
        back = compose(transformation.inverse(z), transformation(z)).values[self.inside]
        self.assert_close("inverse", back, torch.zeros_like(back))

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_gradient_equals_finite_differences_of_the_oracle(self, timepoints):
        velocities, step = self.velocities(timepoints), 1e-5
        along = logarithms(1, timepoints, self.pieces, scale=0.1, seed=1)
        z = self.fields(velocities)
        ddf = self.subject()(z.with_values(z.values.requires_grad_())).values[self.inside]
        weights = random(*ddf.shape, seed=2)
        (gradient,) = torch.autograd.grad((weights * ddf).sum(), z.values)
        after, before = ((weights * self.displaced(velocities + s * along)).sum() for s in (step, -step))
        self.assert_close("gradient", (gradient * self.fields(along).values).sum(), (after - before) / (2 * step))

    def test_timepoints_are_independent(self):
        z, transformation = self.fields(self.velocities(3)), self.subject()
        apart = [transformation(z.timepoints(slice(k, k + 1))).values for k in range(3)]
        self.assert_close("independence", transformation(z).values, torch.cat(apart, dim=1))


class AlignmentContract(Contract):
    """Contract of an alignment, tested with affine velocities that do not commute, for every reference.

    ``subject`` takes the reference; it and the oracle ignore it if the alignment has none.

    Attributes:
        size: size of the fields in voxels.
        has_reference: whether one timepoint does not move.
    """

    size, has_reference = (15, 17, 13), True
    tolerances = {"oracle": (0.0, 1e-8), "constraint": (1e-9, 1e-9), "chunks": (0.0, 1e-12), "order": (0.0, 1e-9)}
    inside = (..., *[slice(5, -5)] * 3)
    exp = AffineFlow()

    def subject(self, reference=0):
        raise NotImplementedError

    def oracle(self, velocities, reference):
        """Compute the maps from the common space to the timepoints from logarithms: ``(K, 4, 4)`` both."""
        raise NotImplementedError

    def constrained(self, velocities, reference):
        """Compute the logarithms that fulfil the constraint."""
        raise NotImplementedError

    @pytest.fixture(params=TIMEPOINTS)
    def velocities(self, request):
        return logarithms(request.param, scale=0.06, seed=4)

    def every(self, velocities):
        """Yield each reference with its alignment."""
        for reference in range(len(velocities) if self.has_reference else 1):
            yield reference, self.subject(reference)

    def fields(self, velocities):
        return VelocityField.on_voxels(linear_field(velocities, self.size)[None])

    def test_displacements_equal_the_oracles(self, velocities):
        for reference, alignment in self.every(velocities):
            assert alignment.reference == (reference if self.has_reference else None)
            maps, z = self.oracle(velocities, reference), self.fields(velocities)
            for actual, expected in (
                (alignment(z, self.exp), maps),
                (alignment.inverse(z, self.exp), torch.linalg.inv(maps)),
            ):
                displaced = self.fields(expected - torch.eye(4))
                self.assert_close("oracle", actual.values[self.inside], displaced.values[self.inside])
            assert not self.has_reference or not alignment(z, self.exp).values[:, reference].any()

    def test_constraint_equals_the_oracles(self, velocities):
        for reference, alignment in self.every(velocities):
            expected, z = self.fields(self.constrained(velocities, reference)), self.fields(velocities)
            constrained = alignment.constrain(z)
            self.assert_close("constraint", constrained.values, expected.values)
            self.assert_close("constraint", alignment.constrain(constrained).values, constrained.values)
            centred = alignment.centred(constrained)
            self.assert_close("constraint", alignment.anchored(centred).values, constrained.values)
            self.assert_close("constraint", centred.values.diff(dim=1), constrained.values.diff(dim=1))

    def test_the_shared_part_is_what_the_constraint_removes(self, velocities):
        z = self.fields(velocities)
        for _, alignment in self.every(velocities):
            constrained = alignment.constrain(alignment.anchored(z))
            for chunks in (all_at_once, one_at_a_time):
                self.assert_close("constraint", (z - alignment.shared(z, chunks)).values, constrained.values)

    def test_a_timepoint_at_a_time_gives_the_same_fields(self, velocities):
        z = self.fields(velocities)
        for _, alignment in self.every(velocities):
            for whole, parts in (
                (alignment(z, self.exp), alignment.displacements(z, self.exp, one_at_a_time)),
                (alignment.inverse(z, self.exp), alignment.inverses(z, self.exp, one_at_a_time)),
            ):
                slices, fields = zip(*parts)
                assert list(slices) == one_at_a_time(len(velocities))
                self.assert_close("chunks", torch.cat([ddf.values for ddf in fields], dim=1), whole.values)

    def test_reordered_timepoints_give_reordered_fields(self, velocities):
        z, order = self.fields(velocities), another_order(len(velocities))
        for reference, alignment in self.every(velocities):
            reordered = self.subject(order.tolist().index(reference))
            ddf = alignment(z, self.exp).values
            of_reordered = reordered(z.with_values(z.values[:, order]), self.exp).values
            self.assert_close("order", of_reordered, ddf[:, order])
