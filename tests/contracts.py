"""Contracts that every linear operator, likelihood, prior, flow and alignment must fulfil.

A test class inherits the tests of its contract. It supplies the object to be tested, a dense or closed-form oracle if
there is one, and tolerances if its own differ from those of the contract:
``tolerances = {**LikelihoodContract.tolerances, "gradient": (1e-3, 0.0)}``.
"""

import pytest
import torch

from groupmorph_monai.space import ScalingAndSquaring, compose, voxel_grid
from groupmorph_monai.space.chunks import all_at_once

TIMEPOINTS = (2, 3, 6)


def random(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def another_order(timepoints):
    """Return a permutation other than the identity: (1, 0), (1, 0, 2) and (1, 4, 3, 5, 2, 0)."""
    return torch.randperm(timepoints, generator=torch.Generator().manual_seed(16))


def dense_laplacian(size):
    """Graph Laplacian of a lattice, whose neighbours along each axis are joined: ``(N, N)``."""
    number = torch.arange(torch.Size(size).numel()).view(*size)
    adjacency = torch.zeros(number.numel(), number.numel(), dtype=torch.float64)
    for axis, n in enumerate(size):
        a, b = number.narrow(axis, 0, n - 1).flatten(), number.narrow(axis, 1, n - 1).flatten()
        adjacency[a, b] = adjacency[b, a] = 1
    return torch.diag(adjacency.sum(1)) - adjacency


class _Contract:
    """Base class of contracts.

    Attributes:
        tolerances: relative and absolute tolerance of each comparison.
    """

    tolerances: dict[str, tuple[float, float]]

    def assert_close(self, comparison, actual, expected, msg=None):
        rtol, atol = self.tolerances[comparison]
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=msg)


class LinearOperatorContract(_Contract):
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


class LikelihoodContract(_Contract):
    """Contract of a likelihood.

    Attributes:
        size: volume size in voxels.
        invariant_to_gain: whether volumes that differ by a factor are aligned perfectly.
        difference_step: step of the finite differences.
        least_effect: voxels change the value by more than this if they are valid.
    """

    size, invariant_to_gain, difference_step, least_effect = (13, 12, 14), True, 1e-6, 1e-4
    tolerances = {
        "order": (1e-7, 1e-7),
        "linearised order": (1e-5, 1e-8),
        "batch": (1e-7, 1e-7),
        "gradient": (1e-4, 0.0),
        "invalid voxels": (1e-9, 1e-12),
        "full mask": (1e-6, 1e-9),
        "linearised full mask": (1e-6, 1e-6),
        "fewer voxels": (0.1, 0.0),
    }

    @pytest.fixture
    def likelihood(self):
        raise NotImplementedError

    def volumes(self, timepoints, seed=0, batch=1):
        """Generate different images that share some structure."""
        shared = random(batch, 1, *self.size, seed=seed)
        return 0.1 + 0.5 * shared + 0.3 * random(batch, timepoints, *self.size, seed=seed + 1)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_order_of_timepoints_does_not_matter(self, likelihood, timepoints):
        x, order = self.volumes(timepoints), another_order(timepoints)
        self.assert_close("order", likelihood(x[:, order]), likelihood(x))
        model, reordered = likelihood.linearise(x), likelihood.linearise(x[:, order])
        for name in ("value", "guide", "score", "weight"):
            expected = getattr(model, name)
            expected = expected[:, order] if expected.shape[1] == timepoints else expected
            self.assert_close("linearised order", getattr(reordered, name), expected, name)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_a_batch_is_the_mean_of_its_series(self, likelihood, timepoints):
        x = self.volumes(timepoints, batch=2)
        self.assert_close("batch", likelihood(x), (likelihood(x[:1]) + likelihood(x[1:])) / 2)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_gradient_equals_finite_differences(self, likelihood, timepoints):
        x, along = self.volumes(timepoints), random(1, timepoints, *self.size, seed=7) - 0.5
        start = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(likelihood(start), start)
        change = self.difference_step * along
        slope = (likelihood(x + change) - likelihood(x - change)) / (2 * self.difference_step)
        self.assert_close("gradient", (gradient * along).sum(), slope)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_aligned_volumes_are_more_likely(self, likelihood, timepoints):
        x = self.volumes(timepoints)
        gains = torch.linspace(0.6, 1.4, timepoints).view(1, -1, 1, 1, 1).double() if self.invariant_to_gain else 1
        alike = gains * x[:, :1].expand_as(x)
        shifted = torch.cat([v.roll(2 * k, dims=2) for k, v in enumerate(alike.split(1, dim=1))], dim=1)
        assert likelihood(alike) > likelihood(x) and likelihood(alike) > likelihood(shifted)

    @pytest.mark.parametrize("values", ["zero", "constant", "noise"])
    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_invalid_voxels_have_no_score(self, likelihood, timepoints, values):
        x, covered = self.volumes(timepoints), torch.ones(1, timepoints, *self.size, dtype=torch.bool)
        covered[:, 0, :5], covered[:, 1, :, -3:] = False, False
        unseen = {"zero": 0.0, "constant": 0.9, "noise": 0.9 * random(*x.shape, seed=5)}[values]
        other = torch.where(covered, x, unseen)
        model, same = likelihood.linearise(x, covered), likelihood.linearise(other, covered)
        for name in ("value", "guide", "score", "weight"):
            self.assert_close("invalid voxels", getattr(same, name), getattr(model, name), name)
        assert (model.score[~covered] == 0).all() and (model.weight[~covered] == 0).all() and model.score.any()

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_full_mask_equals_no_mask(self, likelihood, timepoints):
        x = self.volumes(timepoints)
        model, masked = likelihood.linearise(x), likelihood.linearise(x, torch.ones_like(x, dtype=torch.bool))
        for name in ("value", "guide", "score", "weight"):
            self.assert_close("linearised full mask", getattr(masked, name), getattr(model, name), name)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_value_depends_on_valid_voxels_only(self, likelihood, timepoints):
        x, valid = self.volumes(timepoints), torch.ones(1, timepoints, *self.size, dtype=torch.bool)
        self.assert_close("full mask", likelihood(x, valid), likelihood(x))
        valid[:, 0, :5], valid[:, 1, :, -4:] = False, False
        other = torch.where(valid, x, 0.9 * random(*x.shape, seed=5)).requires_grad_()
        self.assert_close("invalid voxels", likelihood(other, valid), likelihood(x, valid))
        (gradient,) = torch.autograd.grad(likelihood(other, valid), other)
        assert (gradient[~valid] == 0).all() and gradient[valid].any()
        assert abs(likelihood(other) - likelihood(x)) > self.least_effect  # they would change it, if they counted
        assert torch.isfinite(likelihood(x, torch.zeros_like(valid)))

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_leaving_the_field_of_view_gains_nothing(self, likelihood, timepoints):
        x, valid = self.volumes(timepoints), torch.ones(1, timepoints, *self.size, dtype=torch.bool)
        valid[:, 1:, : self.size[0] // 2] = False  # one volume alone covers this half
        before, (tolerance, _) = likelihood(x), self.tolerances["fewer voxels"]
        assert likelihood(x, valid) - before < tolerance * before.abs()  # estimates from fewer voxels differ slightly


class PriorContract(_Contract):
    """Contract of a prior.

    Attributes:
        shape: shape of z of one timepoint, ``(C, *S)``.
        posterior: posterior that the parameters belong to; None for one without smoothing.
        difference_step: step of the finite differences.
    """

    shape, posterior, difference_step = (3, 5, 4, 6), None, 1e-5
    tolerances = {"order": (1e-10, 0.0), "batch": (1e-10, 0.0), "gradient": (1e-6, 0.0)}

    @pytest.fixture
    def prior(self):
        raise NotImplementedError

    def order(self, timepoints):
        """Return an order of the timepoints in which they are as likely."""
        return another_order(timepoints)

    def parameters(self, timepoints, batch=1):
        """Generate a mean and a log variance of z, different for each series and timepoint."""
        return tuple(random(batch, timepoints, *self.shape, seed=seed) - 0.5 for seed in (0, 1))

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_order_of_timepoints_does_not_matter(self, prior, timepoints):
        parameters, order = self.parameters(timepoints), self.order(timepoints)
        reordered = prior(*(p[:, order] for p in parameters), self.posterior)
        self.assert_close("order", reordered, prior(*parameters, self.posterior))

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_a_batch_is_the_mean_of_its_series(self, prior, timepoints):
        parameters = self.parameters(timepoints, batch=2)
        first, second = (prior(*(p[n : n + 1] for p in parameters), self.posterior) for n in range(2))
        self.assert_close("batch", prior(*parameters, self.posterior), (first + second) / 2)

    @pytest.mark.parametrize("timepoints", TIMEPOINTS)
    def test_gradient_equals_finite_differences(self, prior, timepoints):
        parameters = self.parameters(timepoints)
        directions = [random(*p.shape, seed=seed) - 0.5 for seed, p in enumerate(parameters, start=7)]
        starts = [p.clone().requires_grad_() for p in parameters]
        gradients = torch.autograd.grad(prior(*starts, self.posterior), starts, materialize_grads=True)
        for name, at, direction, gradient in zip(("mean", "log variance"), range(2), directions, gradients):
            changes = [self.difference_step * direction * (n == at) for n in range(2)]
            after, before = (
                prior(*(p + sign * c for p, c in zip(parameters, changes)), self.posterior) for sign in (1, -1)
            )
            slope = (after - before) / (2 * self.difference_step)
            self.assert_close("gradient", (gradient * direction).sum(), slope, name)


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


class AlignmentContract(_Contract):
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
