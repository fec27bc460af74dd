"""Alignments of a series: constraints on z and displacements to the series' mean or to a reference timepoint."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from .chunks import Chunks, all_at_once, total
from .field import AnyField, DisplacementField, VelocityField
from .integrate import Transformation
from .warping import compose

Parts = Iterator[tuple[slice, DisplacementField]]  # chunks of timepoints, and their displacements


def check_reference(reference: int | None, timepoints: int) -> None:
    """Check the index of the reference timepoint; None is always valid.

    Raises:
        InputError: If a series of this number of timepoints has no timepoint with this index.
    """
    if reference is not None and not 0 <= reference < timepoints:
        raise InputError(
            f"reference: expected one of the series' {timepoints} timepoints, 0 to {timepoints - 1}, got {reference}; "
            "choose one of these"
        )


class Alignment(ABC):
    """Base class of alignments: the constraint on z, its displacements, and its conversion to and from the form in
    which a refinement, whose steps have mean 0 over K, changes it.

    For any z, ``constrain(anchored(z)) == z - shared(z)``, by which chunks of timepoints are constrained.

    Attributes:
        reference: index of the fixed timepoint; None if all timepoints move.
    """

    reference: int | None = None

    @abstractmethod
    def constrain_values(self, values: Tensor) -> Tensor:
        """Project the values of z, or parameters that determine z linearly, ``(B, K, ...)``."""

    def constrain(self, z: VelocityField) -> VelocityField:
        """Project z ``(B, K, D, *C)`` onto the fields that fulfil the constraint."""
        return z.with_values(self.constrain_values(z.values))

    def centred(self, z: VelocityField) -> VelocityField:
        """Convert z to fields whose mean over K a refinement may leave unchanged."""
        return z

    def anchored(self, z: VelocityField) -> VelocityField:
        """Convert centred fields back to z."""
        return z

    @abstractmethod
    def shared(self, z: VelocityField, chunks: Chunks = all_at_once) -> VelocityField:
        """Compute the common part of z, which moves no timepoint relative to another, ``(B, 1, D, *C)``."""

    @abstractmethod
    def displacements(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        """Yield chunks of the displacements from the common space to each timepoint, ``(B, k, D, *C)``."""

    @abstractmethod
    def inverses(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        """Yield chunks of the displacements from each timepoint to the common space, ``(B, k, D, *C)``."""

    def __call__(self, z: VelocityField, transformation: Transformation) -> DisplacementField:
        """Compute the displacements from the common space to each timepoint, ``(B, K, D, *C)``."""
        return _joined(self.displacements(z, transformation))

    def inverse(self, z: VelocityField, transformation: Transformation) -> DisplacementField:
        """Compute the displacements from each timepoint to the common space, ``(B, K, D, *C)``."""
        return _joined(self.inverses(z, transformation))


def _joined(parts: Parts) -> DisplacementField:
    fields = [ddf for _, ddf in parts]
    return fields[0].with_values(torch.cat([ddf.values for ddf in fields], dim=1))


def _mean(z: VelocityField, chunks: Chunks) -> VelocityField:
    count = z.timepoint_count
    return z.with_values(total(z.values[:, c].sum(dim=1, keepdim=True) for c in chunks(count)) / count)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=1, keepdim=True)


class MeanAlignment(Alignment):
    """All-moving alignment: all timepoints are registered to a common space that none of them defines, and that only
    the prior keeps near their mean (GroupMorph, Section 2)."""

    def constrain_values(self, values: Tensor) -> Tensor:
        """Return the values unchanged."""
        return values

    def shared(self, z: VelocityField, chunks: Chunks = all_at_once) -> VelocityField:
        return z.with_values(torch.zeros_like(z.values[:, :1]))

    def displacements(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        shared = self.shared(z, chunks)
        return ((c, transformation(z.timepoints(c) - shared)) for c in chunks(z.timepoint_count))

    def inverses(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        shared = self.shared(z, chunks)
        return ((c, transformation.inverse(z.timepoints(c) - shared)) for c in chunks(z.timepoint_count))


class GeodesicMeanAlignment(MeanAlignment):
    """All-moving alignment to the geodesic mean of the series: the mean of z over K is subtracted."""

    def constrain_values(self, values: Tensor) -> Tensor:
        """Subtract the mean over K."""
        return _centred(values)

    def shared(self, z: VelocityField, chunks: Chunks = all_at_once) -> VelocityField:
        return _mean(z, chunks)


class ReferenceAlignment(Alignment):
    """All-to-one alignment: the common space is timepoint ``reference``, whose deformation is exactly the identity.

    The other timepoints are composed with its inverse, ``phi_k o phi_reference^-1``; subtracting velocities would be
    exact only where they commute. For K = 2 this is pair-wise registration.

    Args:
        reference: index of the fixed timepoint, from 0.
    """

    reference: int

    def __init__(self, reference: int = 0):
        if reference < 0:
            raise ValueError(f"reference: expected a timepoint's index from 0, got {reference}")
        self.reference = reference

    def constrain_values(self, values: Tensor) -> Tensor:
        """Subtract the mean over K: common motion moves no timepoint relative to the reference."""
        return _centred(values)

    def shared(self, z: VelocityField, chunks: Chunks = all_at_once) -> VelocityField:
        return _mean(z, chunks)

    def _pinned(self, values: Tensor, start: int = 0) -> Tensor:
        """Set the reference's values to 0 in a chunk of timepoints that begins at ``start``."""
        index = self.reference - start
        if not 0 <= index < values.shape[1]:
            return values
        return torch.cat([values[:, :index], torch.zeros_like(values[:, :1]), values[:, index + 1 :]], dim=1)

    def _pin(self, field: AnyField, start: int) -> AnyField:
        return field.with_values(self._pinned(field.values, start))

    def _reference_field(self, z: VelocityField) -> VelocityField:
        check_reference(self.reference, z.timepoint_count)
        return z.timepoints(slice(self.reference, self.reference + 1))

    def displacements(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        from_reference = transformation.inverse(self._reference_field(z))
        for c in chunks(z.timepoint_count):
            yield c, self._pin(compose(transformation(z.timepoints(c)), from_reference), c.start)

    def inverses(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        to_reference = transformation(self._reference_field(z))
        for c in chunks(z.timepoint_count):
            yield c, self._pin(compose(to_reference, transformation.inverse(z.timepoints(c))), c.start)


class OneWayAlignment(ReferenceAlignment):
    """All-to-one alignment as in VoxelMorph-diff and AVSM for pairs: each timepoint is registered to the reference by
    its own velocity, and the velocity predicted for the reference is ignored.

    Unlike with `ReferenceAlignment`, the map of a pair and that of the exchanged pair need not be inverse to each
    other.

    Args:
        reference: index of the fixed timepoint, from 0.
    """

    def constrain_values(self, values: Tensor) -> Tensor:
        """Set the reference's velocity to 0."""
        check_reference(self.reference, values.shape[1])
        return self._pinned(values)

    def centred(self, z: VelocityField) -> VelocityField:
        """Subtract the mean over K, which to first order preserves the timepoints' relative motion."""
        return z.with_values(_centred(self.constrain_values(z.values)))

    def anchored(self, z: VelocityField) -> VelocityField:
        """Subtract the reference's field."""
        return z - self._reference_field(z)

    def shared(self, z: VelocityField, chunks: Chunks = all_at_once) -> VelocityField:
        return self._reference_field(z)

    def displacements(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        check_reference(self.reference, z.timepoint_count)
        return ((c, transformation(self._pin(z.timepoints(c), c.start))) for c in chunks(z.timepoint_count))

    def inverses(self, z: VelocityField, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        check_reference(self.reference, z.timepoint_count)
        return ((c, transformation.inverse(self._pin(z.timepoints(c), c.start))) for c in chunks(z.timepoint_count))
