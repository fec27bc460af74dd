"""Alignments of a series: constraints on z and displacements to the series' mean or to a reference timepoint."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from .chunks import Chunks, all_at_once, total
from .integrate import Transformation
from .warping import compose

Parts = Iterator[tuple[slice, Tensor]]  # chunks of timepoints, and a tensor for each


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
    def constrain(self, z: Tensor) -> Tensor:
        """Project z ``(B, K, D, *S)`` onto the fields that fulfil the constraint."""

    def centred(self, z: Tensor) -> Tensor:
        """Convert z to fields whose mean over K a refinement may leave unchanged."""
        return z

    def anchored(self, z: Tensor) -> Tensor:
        """Convert centred fields back to z."""
        return z

    @abstractmethod
    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        """Compute the common part of z, which moves no timepoint relative to another, ``(B, 1, D, *S)``."""

    @abstractmethod
    def displacements(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        """Yield chunks of the displacements from the common space to each timepoint, ``(B, k, D, *S)``, voxels."""

    @abstractmethod
    def inverses(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        """Yield chunks of the displacements from each timepoint to the common space, ``(B, k, D, *S)``, voxels."""

    def __call__(self, z: Tensor, transformation: Transformation) -> Tensor:
        """Compute the displacements from the common space to each timepoint, ``(B, K, D, *S)``, voxels."""
        return torch.cat([ddf for _, ddf in self.displacements(z, transformation)], dim=1)

    def inverse(self, z: Tensor, transformation: Transformation) -> Tensor:
        """Compute the displacements from each timepoint to the common space, ``(B, K, D, *S)``, voxels."""
        return torch.cat([ddf for _, ddf in self.inverses(z, transformation)], dim=1)


def _mean(z: Tensor, chunks: Chunks) -> Tensor:
    return total(z[:, c].sum(dim=1, keepdim=True) for c in chunks(z.shape[1])) / z.shape[1]


class MeanAlignment(Alignment):
    """All-moving alignment: all timepoints are registered to a common space that none of them defines, and that only
    the prior keeps near their mean (GroupMorph, Section 2)."""

    def constrain(self, z: Tensor) -> Tensor:
        """Return z unchanged."""
        return z

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        return 0.0

    def displacements(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        shared = self.shared(z, chunks)
        return ((c, transformation(z[:, c] - shared)) for c in chunks(z.shape[1]))

    def inverses(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        shared = self.shared(z, chunks)
        return ((c, transformation.inverse(z[:, c] - shared)) for c in chunks(z.shape[1]))


class GeodesicMeanAlignment(MeanAlignment):
    """All-moving alignment to the geodesic mean of the series: the mean of z over K is subtracted."""

    def constrain(self, z: Tensor) -> Tensor:
        """Subtract the mean of z over K."""
        return z - z.mean(dim=1, keepdim=True)

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
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

    def constrain(self, z: Tensor) -> Tensor:
        """Subtract the mean of z over K: common motion moves no timepoint relative to the reference."""
        return z - z.mean(dim=1, keepdim=True)

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        return _mean(z, chunks)

    def _pin(self, ddf: Tensor, start: int = 0) -> Tensor:
        """Set the reference's field to 0 in a chunk of timepoints that begins at ``start``."""
        index = self.reference - start
        if not 0 <= index < ddf.shape[1]:
            return ddf
        return torch.cat([ddf[:, :index], torch.zeros_like(ddf[:, :1]), ddf[:, index + 1 :]], dim=1)

    def _reference_field(self, z: Tensor) -> Tensor:
        check_reference(self.reference, z.shape[1])
        return z[:, self.reference : self.reference + 1]

    def displacements(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        from_reference = transformation.inverse(self._reference_field(z))
        for c in chunks(z.shape[1]):
            yield c, self._pin(compose(transformation(z[:, c]), from_reference), c.start)

    def inverses(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        to_reference = transformation(self._reference_field(z))
        for c in chunks(z.shape[1]):
            yield c, self._pin(compose(to_reference, transformation.inverse(z[:, c])), c.start)


class OneWayAlignment(ReferenceAlignment):
    """All-to-one alignment as in VoxelMorph-diff and AVSM for pairs: each timepoint is registered to the reference by
    its own velocity, and the velocity predicted for the reference is ignored.

    Unlike with `ReferenceAlignment`, the map of a pair and that of the exchanged pair need not be inverse to each
    other.

    Args:
        reference: index of the fixed timepoint, from 0.
    """

    def constrain(self, z: Tensor) -> Tensor:
        """Set the reference's velocity to 0."""
        check_reference(self.reference, z.shape[1])
        return self._pin(z)

    def centred(self, z: Tensor) -> Tensor:
        """Subtract the mean over K, which to first order preserves the timepoints' relative motion."""
        z = self.constrain(z)
        return z - z.mean(dim=1, keepdim=True)

    def anchored(self, z: Tensor) -> Tensor:
        """Subtract the reference's field."""
        return z - self._reference_field(z)

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        return self._reference_field(z)

    def displacements(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        check_reference(self.reference, z.shape[1])
        return ((c, transformation(self._pin(z[:, c], c.start))) for c in chunks(z.shape[1]))

    def inverses(self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once) -> Parts:
        check_reference(self.reference, z.shape[1])
        return ((c, transformation.inverse(self._pin(z[:, c], c.start))) for c in chunks(z.shape[1]))
