"""What z may be: K fields to the series' mean, or all timepoints on one of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from .chunks import Chunks, all_at_once, total
from .field import Field
from .grid import compose, full_precision, voxel_grid
from .integrate import Displacement, Flow, FlowSequence

__all__ = [
    "MeanAlignment",
    "OneWayAlignment",
    "ReferenceAlignment",
    "affine_in_voxels",
    "affine_velocity",
    "apply_affine",
]

Transformation = Flow | FlowSequence | Displacement


class _Alignment:
    """What z means: how a refinement, whose steps have mean 0 over K, is to see it, and back."""

    def centred(self, z: Tensor) -> Tensor:
        """z as fields whose mean over K no step needs to change."""
        return z

    def anchored(self, z: Tensor) -> Tensor:
        """The opposite."""
        return z

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        """What all timepoints share that moves none against another, ``(B, 1, D, *S)``: ``constrain(anchored(z))`` is z
        without it."""
        raise NotImplementedError

    def displacements(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of the displacements from the common space to each timepoint, ``(B, k, D, *S)``, voxels."""
        raise NotImplementedError

    def inverses(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        """Chunks of the displacements from each timepoint to the common space."""
        raise NotImplementedError

    def __call__(self, z: Tensor, transformation: Transformation) -> Tensor:
        """Displacements from the common space to each timepoint, ``(B, K, D, *S)``, voxels."""
        return torch.cat([ddf for _, ddf in self.displacements(z, transformation)], dim=1)

    def inverse(self, z: Tensor, transformation: Transformation) -> Tensor:
        """Displacements from each timepoint to the common space."""
        return torch.cat([ddf for _, ddf in self.inverses(z, transformation)], dim=1)


def _mean(z: Tensor, chunks: Chunks) -> Tensor:
    return total(z[:, c].sum(dim=1, keepdim=True) for c in chunks(z.shape[1])) / z.shape[1]


class MeanAlignment(_Alignment):
    """All-moving: every timepoint goes to a common space that none of them defines (GroupMorph, Section 2).

    Args:
        remove_mean: subtract the mean over K of z, so that the common space is the series' geodesic mean by
            construction and not only by the prior's pull.
    """

    def __init__(self, remove_mean: bool = False):
        self.remove_mean = remove_mean

    def constrain(self, z: Tensor) -> Tensor:
        """What of z counts: with ``remove_mean`` all but its mean over K."""
        return z - z.mean(dim=1, keepdim=True) if self.remove_mean else z

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        return _mean(z, chunks) if self.remove_mean else 0.0

    def displacements(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        shared = self.shared(z, chunks)
        return ((c, transformation(z[:, c] - shared)) for c in chunks(z.shape[1]))

    def inverses(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        shared = self.shared(z, chunks)
        return ((c, transformation.inverse(z[:, c] - shared)) for c in chunks(z.shape[1]))


class ReferenceAlignment(_Alignment):
    """All-to-one: the common space is timepoint ``reference``, whose deformation is exactly the identity.

    The others are composed with its inverse, ``phi_k o phi_reference^-1``: subtracting velocities instead would be
    exact only where they commute. With K = 2 this is pair-wise registration.

    Args:
        reference: index of the fixed timepoint, from 0.
    """

    def __init__(self, reference: int = 0):
        if reference < 0:
            raise ValueError(f"reference: expected a timepoint's index from 0, got {reference}")
        self.reference = reference

    def constrain(self, z: Tensor) -> Tensor:
        """z without its mean over K: a motion of all timepoints together moves none of them against the reference."""
        return z - z.mean(dim=1, keepdim=True)

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        return _mean(z, chunks)

    def _pin(self, ddf: Tensor, start: int = 0) -> Tensor:
        """No displacement of the reference, if it is among timepoints from ``start`` on."""
        n = self.reference - start
        if not 0 <= n < ddf.shape[1]:
            return ddf
        return torch.cat([ddf[:, :n], torch.zeros_like(ddf[:, :1]), ddf[:, n + 1 :]], dim=1)

    def _check(self, z: Tensor) -> None:
        if self.reference >= z.shape[1]:
            raise InputError(
                f"reference: expected one of the series' {z.shape[1]} timepoints, 0 to {z.shape[1] - 1}, got "
                f"{self.reference}; choose one of these"
            )

    def _fixed(self, z: Tensor) -> Tensor:
        self._check(z)
        return z[:, self.reference : self.reference + 1]

    def displacements(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        from_reference = transformation.inverse(self._fixed(z))
        for c in chunks(z.shape[1]):
            yield c, self._pin(compose(transformation(z[:, c]), from_reference), c.start)

    def inverses(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        to_reference = transformation(self._fixed(z))
        for c in chunks(z.shape[1]):
            yield c, self._pin(compose(to_reference, transformation.inverse(z[:, c])), c.start)


class OneWayAlignment(ReferenceAlignment):
    """All-to-one as VoxelMorph-diff and AVSM have it for pairs: each other timepoint's own velocity takes it to the
    reference, and what a network says of the reference does not count. So the maps of two timepoints in the one order
    and in the other need not be each other's inverse, as those of `ReferenceAlignment` are.

    Args:
        reference: index of the fixed timepoint, from 0.
    """

    def constrain(self, z: Tensor) -> Tensor:
        """z with no velocity for the reference."""
        self._check(z)
        return self._pin(z)

    def centred(self, z: Tensor) -> Tensor:
        """The same motion of timepoints against each other, to first order, with mean 0 over K."""
        z = self.constrain(z)
        return z - z.mean(dim=1, keepdim=True)

    def anchored(self, z: Tensor) -> Tensor:
        """The same with none of the reference."""
        return z - self._fixed(z)

    def shared(self, z: Tensor, chunks: Chunks = all_at_once) -> Tensor | float:
        return self._fixed(z)

    def displacements(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        self._check(z)
        return ((c, transformation(self._pin(z[:, c], c.start))) for c in chunks(z.shape[1]))

    def inverses(
        self, z: Tensor, transformation: Transformation, chunks: Chunks = all_at_once
    ) -> Iterator[tuple[slice, Tensor]]:
        self._check(z)
        return ((c, transformation.inverse(self._pin(z[:, c], c.start))) for c in chunks(z.shape[1]))


def affine_in_voxels(maps: Tensor, grid: Tensor) -> Tensor:
    """``maps`` ``(..., 4, 4)`` in RAS mm as maps of voxel coordinates, float64.

    Args:
        grid: ``(4, 4)``, voxels to RAS mm, or as many as maps.
    """
    maps, grid = maps.cpu().double(), grid.cpu().double()
    in_voxels = torch.linalg.inv(grid) @ maps @ grid
    identity = torch.eye(4, dtype=torch.float64)
    # To the last digit, so that what does not move is not interpolated.
    return torch.where((maps == identity).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True), identity, in_voxels)


def affine_velocity(logarithms: Tensor, like: Field) -> Field:
    """The stationary velocity whose flow is an affine map, ``(1, K, 3, *C)``.

    Args:
        logarithms: of the maps, ``(K, 4, 4)``, voxel coordinates of the image.
        like: any field on the lattice that is wanted.
    """
    values = like.values
    places = like.step * voxel_grid(values.shape[-3:], values)
    return like.like(torch.stack([apply_affine(m.to(values), places) for m in logarithms])[None] / like.step)


@full_precision
def apply_affine(matrix: Tensor, points: Tensor) -> Tensor:
    """``(4, 4)`` on ``(3, i, j, k)`` points."""
    return torch.einsum("de,eijk->dijk", matrix[:3, :3], points) + matrix[:3, 3].view(3, 1, 1, 1)
