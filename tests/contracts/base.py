"""Base class and functions that the contracts share."""

import inspect

import numpy as np
import pytest
import torch

TIMEPOINTS = (2, 3, 6)


def random(*shape, seed=0):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def another_order(timepoints):
    """Return a permutation other than the identity: (1, 0), (1, 0, 2) and (1, 4, 3, 5, 2, 0)."""
    return torch.randperm(timepoints, generator=torch.Generator().manual_seed(16))


def one_at_a_time(timepoints):
    """Divide K timepoints into chunks of one."""
    return [slice(k, k + 1) for k in range(timepoints)]


def dense_laplacian(size):
    """Return the graph Laplacian ``(N, N)`` of a lattice whose neighbours along each axis are connected."""
    number = torch.arange(torch.Size(size).numel()).view(*size)
    adjacency = torch.zeros(number.numel(), number.numel(), dtype=torch.float64)
    for axis, n in enumerate(size):
        a, b = number.narrow(axis, 0, n - 1).flatten(), number.narrow(axis, 1, n - 1).flatten()
        adjacency[a, b] = adjacency[b, a] = 1
    return torch.diag(adjacency.sum(1)) - adjacency


class Contract:
    """Base class of contracts.

    Attributes:
        tolerances: relative and absolute tolerance of each comparison.
    """

    tolerances: dict[str, tuple[float, float]]

    def subject(self):
        """Return the object to be tested."""
        raise NotImplementedError

    def assert_close(self, comparison, actual, expected, msg=None):
        rtol, atol = self.tolerances[comparison]
        torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=msg and (lambda m: f"{msg}: {m}"))


def missing_contracts(package, base, namespace):
    """List the public classes of a package that derive from ``base``, can be instantiated, and are the subject of no
    contract in the ``namespace`` of a test file."""
    contracts = [c for c in namespace.values() if inspect.isclass(c) and issubclass(c, Contract)]
    subjects = {type(c().subject()) for c in contracts if c.__module__ == namespace["__name__"]}
    public = {getattr(package, name) for name in package.__all__}
    return {
        c for c in public - subjects if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)
    } - {base}


class SeriesContract(Contract):
    """Contract of a function that maps K timepoints to a scalar, the mean over a batch of series.

    Attributes:
        difference_step: step of the finite differences.
    """

    difference_step = 1e-6
    tolerances = {"oracle": (1e-9, 1e-12), "gradient": (1e-5, 1e-9), "order": (1e-7, 1e-12), "batch": (1e-9, 1e-12)}

    def inputs(self, timepoints, batch=2):
        """Generate tensors ``(B, K, ...)`` that differ between series and timepoints."""
        raise NotImplementedError

    def oracle(self, *inputs):
        """Compute the value of one series from NumPy arrays ``(K, ...)``."""
        raise NotImplementedError

    def value(self, *inputs):
        """Compute the subject's value."""
        return self.subject()(*inputs)

    def order(self, timepoints):
        """Return an order of the timepoints that has the same value."""
        return another_order(timepoints)

    @pytest.fixture(params=TIMEPOINTS)
    def series(self, request):
        return self.inputs(request.param)

    def expected(self, *inputs):
        """Average the oracle over a batch."""
        values = [self.oracle(*series) for series in zip(*(x.numpy() for x in inputs))]
        return torch.tensor(np.mean(values), dtype=torch.float64)

    def test_value_equals_the_oracle(self, series):
        self.assert_close("oracle", self.value(*series), self.expected(*series))

    def test_gradient_equals_finite_differences_of_the_oracle(self, series):
        starts = [x.clone().requires_grad_() if x.is_floating_point() else x for x in series]
        at = [n for n, x in enumerate(starts) if x.requires_grad]
        gradients = torch.autograd.grad(self.value(*starts), [starts[n] for n in at], materialize_grads=True)
        for n, gradient in zip(at, gradients):
            along = random(*gradient.shape, seed=7 + n) - 0.5
            after, before = (
                self.expected(*series[:n], series[n] + step * along, *series[n + 1 :])
                for step in (self.difference_step, -self.difference_step)
            )
            slope = (after - before) / (2 * self.difference_step)
            self.assert_close("gradient", (gradient * along).sum(), slope, f"input {n}")

    def test_order_of_timepoints_does_not_matter(self, series):
        order = self.order(series[0].shape[1])
        self.assert_close("order", self.value(*(x[:, order] for x in series)), self.value(*series))

    def test_a_batch_is_the_mean_of_its_series(self, series):
        first, second = (self.value(*(x[n : n + 1] for x in series)) for n in range(2))
        self.assert_close("batch", self.value(*series), (first + second) / 2)
        assert abs(first - second) > 1e-6 * abs(first)
