"""The evidence of a series at one level of a refinement: which voxels count, and the likelihood's quadratic model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.storage import IN_MEMORY, Storage
from ..probability.likelihood import Likelihood, Linearised, comparable
from ..space.field import DisplacementField, VelocityField
from ..space.filters import gradient
from ..space.lattice import Lattice, coarsen, restrict
from ..space.warping import warp, warp_observed

Displace = Callable[[VelocityField], DisplacementField]  # maps z to displacements on the same lattice

# Minimum share of a voxel's curvature that is not noise, see `Level.without_guide_noise`: the noise is an estimate
# from a few volumes, and without any curvature the voxel would be left to the prior.
_LEAST_SIGNAL_SHARE = 0.1
_LEAST_MEASURED_SHARE = 0.9  # minimum measured share of a coarse voxel's smoothing window; the rest is extrapolated


@dataclass
class Quadratic:
    """Second-order model of the log likelihood of K fields near z: ``value + <force, d> - <d, curvature d> / 2``.

    Args:
        value: log likelihood per voxel of the images, summed over K, ``(1, 1, *S)``.
        count: number of volumes that the value covers at each voxel, ``(1, 1, *S)``.
        force: gradient on the lattice of z, ``(K, D, *C)``.
        curvature: symmetric matrix for each voxel of the lattice, ``(K, D, D, *C)``.
        damping: the curvature is multiplied by ``1 + damping``.
        storage: where tensors of all K timepoints are kept.
    """

    value: Tensor
    count: Tensor
    force: Tensor
    curvature: Tensor
    damping: Tensor | float = 0.0
    storage: Storage = IN_MEMORY

    def product(self, d: Tensor, chunk: slice = slice(None)) -> Tensor:
        """Multiply d by the curvature of a chunk of timepoints."""
        curvature = self.curvature[chunk]
        result = curvature[:, :, 0] * d[:, :1]
        for column in range(1, d.shape[1]):  # all columns at once would take three times the memory
            result.addcmul_(curvature[:, :, column], d[:, column : column + 1])
        return result.mul_(1 + self.damping)

    def damped(self, damping: Tensor) -> "Quadratic":
        return replace(self, damping=damping)

    def unless(self, condition: Tensor, other: "Quadratic") -> "Quadratic":
        """Return this model, or ``other`` if ``condition``, a scalar bool tensor, holds. It is never read on a GPU."""
        if self.storage.scans_at_once:
            return other if condition else self
        own, alternative = ((q.value, q.count, q.force, q.curvature) for q in (self, other))
        value, count, force, curvature = (torch.where(condition, b, a) for a, b in zip(own, alternative))
        return Quadratic(value, count, force, curvature, storage=self.storage)

    def gain_over(self, other: "Quadratic") -> Tensor:
        """Subtract another model's value per volume, for the volumes that both cover at each voxel: a step is not
        penalised for moving voxels out of view, nor rewarded for moving them into view."""
        own, others = (q.value / q.count.clamp_min(1e-6) for q in (self, other))
        return (torch.minimum(self.count, other.count) * (own - others)).sum()

    @property
    def voxels(self) -> Tensor:
        """Number of voxels of the images that two timepoints or more cover, a sum of weights, a scalar."""
        return (self.count - 1).clamp(0, 1).sum()

    @property
    def mean_curvature(self) -> Tensor:
        """Mean diagonal element of the curvature, a scalar."""
        diagonal = self.storage.sum(lambda h: h.diagonal(dim1=1, dim2=2).sum(), self.curvature, dim=0)
        return (1 + self.damping) * diagonal / (self.curvature.numel() / self.curvature.shape[1])


@dataclass(frozen=True)
class Evidence:
    """Voxels of a series that count.

    Args:
        coverage: ``(B, K, *S)``, 1 where a timepoint was measured and 0 where its values are extrapolated; None is 1
            everywhere.
        mask: 1 where voxels count, ``(B, K, *S)``, or ``(B, 1, *S)`` on timepoint ``mask_timepoint``, whose motion it
            then follows; None is 1 everywhere.
        mask_timepoint: index of the timepoint on which a mask with a single channel is defined.
    """

    coverage: Tensor | None = None
    mask: Tensor | None = None
    mask_timepoint: int = 0

    def of_series(self, item: int) -> "Evidence":
        """Select one series of the batch."""
        coverage, mask = (None if part is None else part[item : item + 1] for part in (self.coverage, self.mask))
        return Evidence(coverage, mask, self.mask_timepoint)


EVERYWHERE = Evidence()


class Pieces:
    """z of T velocities whose flows are composed, ``(1, K, T * D, *C)``, split into their mean, ``shared``, and the
    deviations from it. A stationary velocity, T = 1, has no deviation."""

    def __init__(self, z: VelocityField):
        self.count, self.shared = z.values.shape[2] // len(z.lattice.size), z
        if self.count == 1:
            return
        velocities = z.values.unflatten(2, (self.count, -1))
        self.shared = z.with_values(velocities.mean(dim=2))
        self._deviations = z.with_values((velocities - self.shared.values.unsqueeze(2)).flatten(2, 3))

    def combine(self, shared: VelocityField) -> VelocityField:
        """Add the deviations to a mean ``(1, K, D, *C)``, on the lattice of this mean."""
        if self.count == 1:
            return shared
        of_all = shared.with_values(torch.cat([shared.values] * self.count, dim=2))
        return self._deviations.at(shared.lattice.step) + of_all


class Level:
    """The images of one level, with their coverage and mask.

    Args:
        images: ``(1, K, *S)``.
        evidence: voxels of the images that count.
        factor: spacing of the level's images, in voxels of the images.
        step: spacing of z, in voxels of the images.
        storage: where tensors of all K timepoints are kept.
    """

    def __init__(self, images: Tensor, evidence: Evidence, factor: int, step: int, storage: Storage = IN_MEMORY):
        def coarsened(x: Tensor) -> Tensor:
            return x if factor == 1 else storage.map(lambda part: coarsen(part, factor), x)

        def coarsened_coverage(x: Tensor) -> Tensor:
            return (coarsen(x, factor) > _LEAST_MEASURED_SHARE).float()

        self.images, self.storage = coarsened(images), storage
        coverage, mask = (unless_one(x, storage) for x in (evidence.coverage, evidence.mask))
        self.coverage = None if coverage is None else storage.map(coarsened_coverage, coverage)
        self.mask = None if mask is None else coarsened(mask)
        self.mask_timepoint, self.factor, self.stride = evidence.mask_timepoint, factor, step // factor
        self.lattice = Lattice(images.shape[2:], step)

    def _of_timepoint(self, ddf: DisplacementField, k: int) -> DisplacementField:
        return ddf.timepoints(slice(k, k + 1)).at(self.factor)

    def warped(self, ddf: DisplacementField) -> tuple[Tensor, Tensor | None, Tensor | int]:
        """Warp the images by displacements ``(1, K, D, *C)`` on the lattice of z.

        Returns:
            Warped images, ``(1, K, *S)``; their measured weights, of the same shape, or None if they were measured
            everywhere; and the warped mask, ``(1, 1 or K, *S)``, or 1 without one.
        """
        if ddf.lattice != self.lattice:
            raise ValueError(f"ddf: expected the lattice of z, {self.lattice}, got {ddf.lattice}")
        timepoints = ddf.timepoint_count
        images, valid, *mask = self.storage.collect(
            ((c, self._warp_chunk(ddf, c)) for c in self.storage.chunks(timepoints)), timepoints
        )
        if self.mask is not None and self.mask.shape[1] == 1:
            mask = [warp(self.mask, self._of_timepoint(ddf, self.mask_timepoint))]
        # Everything is faster without `valid`. On a GPU, the check would cost a synchronisation.
        all_valid = valid.device.type == "cpu" and bool(self.storage.sum(lambda part: (part != 1).sum(), valid) == 0)
        return images, None if all_valid else valid, mask[0] if mask else 1

    def _warp_chunk(self, ddf: DisplacementField, chunk: slice) -> tuple[Tensor, ...]:
        """Warp a chunk of timepoints as `warped` does; the mask only if it has a channel per timepoint."""
        parts = []
        for k in range(chunk.start, chunk.stop):
            displacement = self._of_timepoint(ddf, k)
            coverage = None if self.coverage is None else self.coverage[:, k : k + 1]
            parts.append([*warp_observed(self.images[:, k : k + 1], coverage, displacement)])
            if self.mask is not None and self.mask.shape[1] > 1:
                parts[-1].append(warp(self.mask[:, k : k + 1], displacement))
        return tuple(torch.cat(part, dim=1) for part in zip(*parts))

    def model(self, likelihood: Likelihood, ddf: DisplacementField) -> Quadratic:
        """Expand the log likelihood near the displacements ``ddf`` ``(1, K, D, *C)``, on the lattice of z."""
        images, valid, mask = self.warped(ddf)
        value: Tensor = images.new_zeros(())
        count: Tensor | None = None

        def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
            nonlocal value, count
            for c, linear in likelihood.parts(images, valid, self.storage.chunks):
                value, count = value + linear.value, linear.volume_count
                chunk_mask = mask[:, c] if isinstance(mask, Tensor) and mask.shape[1] > 1 else mask
                yield c, self._force_and_curvature(linear, chunk_mask)

        force, curvature = self.storage.collect(parts(), images.shape[1], dim=0)
        if valid is not None:
            force = self._without_common_force(force, valid)
        value, count = self._masked(value, count, images.shape[1], mask)
        return Quadratic(value, count, force, curvature, storage=self.storage)

    def _without_common_force(self, force: Tensor, valid: Tensor) -> Tensor:
        """Subtract from each volume's force its share of their sum. A motion that all compared volumes share moves the
        template along and changes no likelihood, but as the likelihood's model has a fixed template, the forces' sum is
        0 only by chance. It is removed by the mean of 0 over K where all volumes are measured; elsewhere it would move
        the compared volumes, and in return the others."""
        count = self.storage.sum(lambda part: part.sum(dim=1, keepdim=True), valid)
        weight = self.storage.map(lambda part: restrict(comparable(part, count), self.stride), valid)[0].unsqueeze(1)
        common, total_weight = (
            self.storage.sum(lambda part: part.sum(dim=0, keepdim=True), x, dim=0) for x in (force, weight)
        )
        common = common / total_weight.clamp_min(1e-6)
        return self.storage.map(lambda f, w: f - w * common, force, weight, dim=0)

    def _force_and_curvature(self, linear: Linearised, mask: Tensor | int) -> tuple[Tensor, Tensor]:
        """Restrict the model of a chunk of timepoints to the lattice of z."""
        score, weight, guide, factor = linear.score * mask, linear.weight * mask, linear.guide, self.stride
        force, curvature = [], []
        # The gradient of the guide is per voxel of the images, but z is in voxels of its lattice, ``factor`` times as
        # long.
        for k in range(score.shape[1]):
            if k < guide.shape[1]:  # otherwise all timepoints share the guide
                slope = gradient(guide[:, k : k + 1])[0, 0] * factor
                square = torch.cat([restrict((s * slope)[None], factor) for s in slope])
            share = restrict(weight[:, k : k + 1], factor)[0] / factor ** (score.dim() - 2)
            force.append(restrict((score[0, k] * slope)[None], factor)[0])
            curvature.append(share * square)
        return torch.stack(force), torch.stack(curvature)

    def without_guide_noise(self, model: Quadratic, likelihood: Likelihood, ddf: DisplacementField) -> Quadratic:
        """Remove the contribution of noise in the guide from the curvature of ``model``, expanded near ``ddf``.

        Noise adds to the guide's gradients, so that every voxel seems to be determined; more so the fewer volumes the
        guide averages.
        """
        images, valid, mask = self.warped(ddf)
        weight, factor, dimensions = likelihood.linearise(images, valid).weight * mask, self.stride, images.dim() - 2
        # A central difference of white noise has half its variance, along each axis.
        noise = 0.5 * dimensions * factor**2 * weight * likelihood.guide_noise(images, valid)
        noise = restrict(noise, factor)[0]
        trace = model.curvature.diagonal(dim1=1, dim2=2).sum(dim=-1).clamp_min(1e-12)
        share = (1 - noise / trace).clamp(_LEAST_SIGNAL_SHARE, 1)
        return replace(model, curvature=share[:, None, None] * model.curvature)

    def log_likelihoods(self, likelihood: Likelihood, fields: Sequence[DisplacementField]) -> tuple[Tensor, Tensor]:
        """Compare N displacement fields, ``(1, K, D, *C)`` each, where timepoints have the same weights under all.

        Returns:
            Log likelihood per voxel and timepoint under each field, ``(1, N, *S)``, and 1 where at least two timepoints
            can be compared, otherwise 0, ``(1, 1, *S)``.
        """
        warped = []
        valid: Tensor | None = None
        for ddf in fields:
            images, measured, mask = self.warped(ddf)
            warped.append((images, mask))
            if measured is not None:
                valid = measured if valid is None else self.storage.map(torch.minimum, valid, measured)
        models = [self._value(likelihood, images, valid, mask) for images, mask in warped]
        counts = torch.cat([count for _, count in models], dim=1).amin(dim=1, keepdim=True) > 1
        values = torch.cat([value / count.clamp_min(1) for value, count in models], dim=1)
        return counts * values, counts.to(values)

    def _value(
        self, likelihood: Likelihood, images: Tensor, valid: Tensor | None, mask: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        value: Tensor = images.new_zeros(())
        count: Tensor | None = None
        for _, linear in likelihood.parts(images, valid, self.storage.chunks):
            value, count = value + linear.value, linear.volume_count
        return self._masked(value, count, images.shape[1], mask)

    def _masked(
        self, value: Tensor, count: Tensor | None, timepoints: int, mask: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        """Weight the value by the mask, and set the number of volumes that it covers to 0 outside the mask."""
        count = torch.full_like(value, timepoints) if count is None else count
        if isinstance(mask, int):
            return value, count
        weight = self.storage.mean(mask)
        return value * weight, count * (weight > 0)


def unless_one(x: Tensor | None, storage: Storage) -> Tensor | None:
    """Return ``x``, or None if it is 1 everywhere."""
    return None if x is None or storage.sum(lambda part: (part != 1).sum(), x) == 0 else x
