"""Transformations: map z to displacements. z is a velocity field to integrate, or the displacement itself."""

from abc import ABC, abstractmethod
from functools import reduce

import torch
from torch import Tensor
from torchdiffeq import odeint

from ..errors import InputError
from .field import DisplacementField, VelocityField
from .sampling import full_precision, voxel_grid
from .warping import compose, invert, pull_back

MOST_SQUARINGS = 30  # maximum number; the first step is then 1e-9 of the field, below float32's precision


class Transformation(ABC):
    """Base class of transformations, which map z to displacements on the same lattice.

    Attributes:
        pieces: number of fields per timepoint in z, before steps are joined to it.
    """

    pieces: int = 1

    @abstractmethod
    def __call__(self, z: VelocityField) -> DisplacementField:
        """Compute the displacement ``(B, K, D, *C)`` of z ``(B, K, pieces * D, *C)``, on the lattice of z."""

    @abstractmethod
    def inverse(self, z: VelocityField) -> DisplacementField:
        """Compute the displacement of the inverse map."""

    def joined(self, z: VelocityField | None, step: VelocityField) -> VelocityField:
        """Append a step to z.

        Fields are added: ``exp(z) o exp(step) = exp(z + step)`` to first order (Baker-Campbell-Hausdorff).

        Args:
            z: z of the previous steps, or None before the first.
            step: z of the next step, ``(B, K, D, *C)``.

        Returns:
            z of all steps.
        """
        return step if z is None else z + step


class Flow(Transformation):
    """Flow of a stationary velocity: ``phi(1)`` of ``d phi / dt = z(phi)``, ``phi(0) = id`` (VoxelMorph-diff, Eq.
    1; GroupMorph, Eq. 8)."""

    @abstractmethod
    def __call__(self, z: VelocityField) -> DisplacementField:
        """Integrate a velocity ``(B, K, D, *C)`` to a displacement of the same shape."""

    def inverse(self, z: VelocityField) -> DisplacementField:
        """Compute the displacement of the inverse map, the flow of ``-z``."""
        return self(-z)


def _as_displacement(z: VelocityField) -> DisplacementField:
    """Return the displacement after a unit of time by a velocity that does not change along the path."""
    return DisplacementField(z.values, z.lattice)


class ScalingAndSquaring(Flow):
    """Scaling and squaring: ``exp(z)`` as the field divided by ``2**steps``, then composed with itself ``steps`` times
    (GroupMorph, Eq. 8).

    Args:
        steps: number of squarings.
    """

    def __init__(self, steps: int = 7):
        if not 0 <= steps <= MOST_SQUARINGS:
            raise InputError(f"integration_steps: expected 0 to {MOST_SQUARINGS} squarings, got {steps}; 7 are enough")
        self.steps = steps

    def _first_step(self, z: VelocityField) -> DisplacementField:
        """Compute the displacement after ``1 / 2**steps`` of the time, here by an Euler step."""
        return _as_displacement(z / 2**self.steps)

    def __call__(self, z: VelocityField) -> DisplacementField:
        ddf = self._first_step(z)
        for _ in range(self.steps):
            ddf = compose(ddf, ddf)
        return ddf


class MidpointSquaring(ScalingAndSquaring):
    """Scaling and squaring (GroupMorph, Eq. 8) from a step of the midpoint method: 3 squarings are more accurate than 7
    from an Euler step, in half the time."""

    def _first_step(self, z: VelocityField) -> DisplacementField:
        return super()._first_step(pull_back(z, super()._first_step(z) / 2))


class _Solver(Flow):
    """Base class of the flows integrated by torchdiffeq."""

    def _solve(self, z: VelocityField, **options: object) -> DisplacementField:
        def velocity(_: Tensor, displacements: Tensor) -> Tensor:
            return pull_back(z, DisplacementField(displacements, z.lattice)).values

        times = torch.linspace(0, 1, 2, dtype=z.values.dtype, device=z.values.device)
        *_, last = odeint(velocity, torch.zeros_like(z.values), times, **options)
        return DisplacementField(last, z.lattice)


class _FixedSteps(_Solver):
    """Base class of the flows integrated in ``steps`` equal steps of torchdiffeq's ``method``."""

    method: str

    def __init__(self, steps: int):
        if steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {steps}")
        self.steps = steps

    def _grid(self, func: object, y0: Tensor, times: Tensor) -> Tensor:
        return torch.linspace(0, 1, self.steps + 1, dtype=times.dtype, device=times.device)

    def __call__(self, z: VelocityField) -> DisplacementField:
        return self._solve(z, method=self.method, options={"grid_constructor": self._grid})


class Euler(_FixedSteps):
    """Euler's method with ``steps`` equal steps, the paper's quadrature (VoxelMorph-diff, Section 4.4.3)."""

    method = "euler"

    def __init__(self, steps: int = 64):
        super().__init__(steps)


class RungeKutta4(_FixedSteps):
    """Runge-Kutta method of order 4 (3/8 rule) with ``steps`` equal steps of four velocity evaluations each."""

    method = "rk4"

    def __init__(self, steps: int = 8):
        super().__init__(steps)


class AdaptiveSolver(_Solver):
    """Dormand-Prince method of order 5 with adaptive steps.

    Args:
        tolerance_voxels: tolerance of the root mean square error of a step, in voxels.
    """

    def __init__(self, tolerance_voxels: float = 1e-3):
        if tolerance_voxels <= 0:
            raise ValueError(f"tolerance_voxels: expected more than 0, got {tolerance_voxels}")
        self.tolerance_voxels = tolerance_voxels

    def __call__(self, z: VelocityField) -> DisplacementField:
        return self._solve(z, rtol=0.0, atol=self.tolerance_voxels)


class AffineFlow(Flow):
    """Flow of a velocity that is an affine function of position, by the matrix exponential: exact even for points that
    leave the grid. The function is read from the first two voxels along each axis."""

    @full_precision
    def __call__(self, z: VelocityField) -> DisplacementField:
        values, shape = z.values, z.lattice.shape
        dimensions, at = len(shape), values.movedim((0, 1, 2), (-3, -2, -1))  # (*S, B, K, D)
        origin = at[(0,) * dimensions]
        slopes = [at[tuple(int(axis == d) for axis in range(dimensions))] - origin for d in range(dimensions)]
        matrix = torch.stack([*slopes, origin], dim=-1)  # (B, K, D, D + 1)
        matrix = torch.cat([matrix, torch.zeros_like(matrix[..., :1, :])], dim=-2)
        identity = torch.eye(dimensions + 1, dtype=values.dtype, device=values.device)
        displaced = torch.linalg.matrix_exp(matrix) - identity
        grid = voxel_grid(shape, values)
        linear = torch.einsum("bkde,e...->bkd...", displaced[..., :dimensions, :dimensions], grid)
        offset = displaced[..., :dimensions, -1].view(*origin.shape, *[1] * dimensions)
        return DisplacementField(linear + offset, z.lattice)


def _after(first: DisplacementField, second: DisplacementField) -> DisplacementField:
    """Compute the displacement of the map ``second o first``."""
    return compose(second, first)


class FlowSequence(Transformation):
    """Flow of a velocity that is piecewise constant in time: the composition of T flows over intervals of equal length.

    Args:
        flow: integrator of one interval.
        pieces: T. z contains the velocities of all intervals, ``(B, K, T * D, *C)``, first interval first. With T = 1
            the result is that of ``flow``.
    """

    def __init__(self, flow: Flow, pieces: int = 3):
        if pieces < 1:
            raise ValueError(f"pieces: expected 1 or more, got {pieces}")
        self.flow, self.pieces = flow, pieces

    def _parts(self, z: VelocityField) -> list[VelocityField]:
        if z.values.shape[2] % self.pieces:
            raise ValueError(f"z: expected {self.pieces} fields' components on axis 2, got {z.values.shape[2]}")
        return [z.with_values(part) / self.pieces for part in z.values.chunk(self.pieces, dim=2)]

    def __call__(self, z: VelocityField) -> DisplacementField:
        """Integrate velocities ``(B, K, T * D, *C)`` to a displacement ``(B, K, D, *C)``."""
        return reduce(_after, map(self.flow, self._parts(z)))

    def inverse(self, z: VelocityField) -> DisplacementField:
        """Compute the displacement of the inverse map: the inverse flows, last interval first."""
        return reduce(_after, map(self.flow.inverse, reversed(self._parts(z))))


class StepSequence(FlowSequence):
    """Composition of the flows of a network's steps, ``phi_t = phi_(t-1) o exp(v_t)`` (AVSM, Eq. 12). Adding the
    velocities equals this to first order.

    After T steps z contains ``T v_t``, last step first, ``(B, K, T * D, *C)``: as in any sequence, the same change of
    all pieces moves points as far as that change of a single velocity.

    Args:
        flow: integrator of one step.
    """

    def __init__(self, flow: Flow):
        super().__init__(flow, pieces=1)

    def joined(self, z: VelocityField | None, step: VelocityField) -> VelocityField:
        """Prepend a step to z, ``(B, K, T * D, *C)`` to ``(B, K, (T + 1) * D, *C)``.

        Args:
            z: z of the previous T steps, or None before the first.
            step: velocity of the next step, ``(B, K, D, *C)``.

        Returns:
            z of all steps.
        """
        if z is None:
            return step
        steps = z.values.shape[2] // step.values.shape[2]
        return z.with_values((steps + 1) * torch.cat([step.values, z.values / steps], dim=2))

    def _parts(self, z: VelocityField) -> list[VelocityField]:
        steps = z.values.shape[2] // len(z.lattice.size)
        return [z.with_values(part) / steps for part in z.values.chunk(steps, dim=2)]


class Displacement(Transformation):
    """Displacement variant: z is the displacement field itself, which may fold.

    Args:
        iterations: number of fixed-point iterations for the inverse, see `invert`.
    """

    def __init__(self, iterations: int = 20):
        self.iterations = iterations

    def __call__(self, z: VelocityField) -> DisplacementField:
        """Return z as displacements."""
        return _as_displacement(z)

    def inverse(self, z: VelocityField) -> DisplacementField:
        """Compute the displacement of the inverse map."""
        return invert(self(z), self.iterations)
