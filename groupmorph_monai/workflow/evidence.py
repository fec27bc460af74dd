"""What a refinement asks of a series at one level: which voxels count, and the likelihood's model near a field."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..probability.likelihood import Likelihood, Linearised
from ..space.field import Field
from ..space.grid import displace, inside, upsample_field
from ..space.lattice import coarsen, gradient, restrict

__all__ = ["EVERYWHERE", "Evidence", "Level", "Pieces", "Quadratic"]

_LEAST_SIGNAL_SHARE = 0.1  # of a curvature


@dataclass
class Quadratic:
    """``value + <force, d> - <d, curvature d> / 2`` of K fields on their lattice: the log likelihood near z, to second
    order.

    ``value`` ``(1, 1, *S)`` holds the voxels' shares for all K and ``number``, of the same shape, the volumes of which
    each tells; ``force`` is ``(K, D, *C)``; ``curvature`` holds a symmetric D x D matrix for each voxel of the lattice,
    ``(K, D, D, *C)``.
    """

    value: Tensor
    number: Tensor
    force: Tensor
    curvature: Tensor

    def product(self, d: Tensor) -> Tensor:
        return (self.curvature * d.unsqueeze(1)).sum(dim=2)

    def damped(self, damping: Tensor) -> "Quadratic":
        return replace(self, curvature=(1 + damping) * self.curvature)

    def unless(self, condition: Tensor, other: "Quadratic") -> "Quadratic":
        """This model, or where ``condition``, a scalar bool that is never read, holds the other."""
        ours, others = ((q.value, q.number, q.force, q.curvature) for q in (self, other))
        return Quadratic(*(torch.where(condition, b, a) for a, b in zip(ours, others)))

    def above(self, other: "Quadratic") -> Tensor:
        """By how much this value is above another's, at the voxels that tell of as many volumes in both: a step that
        carries others into or out of view is none the worse for it."""
        return ((self.number == other.number) * (self.value - other.value)).sum()

    @property
    def voxels(self) -> Tensor:
        """How many of the images tell of two timepoints or more, a scalar."""
        return (self.number > 1).sum()

    @property
    def mean_curvature(self) -> Tensor:
        return self.curvature.diagonal(dim1=1, dim2=2).mean()


@dataclass(frozen=True)
class Evidence:
    """Which voxels of a series count.

    Args:
        seen: ``(B, K, *S)``, 1 where a timepoint has seen the voxel and 0 where its value is extrapolated; None is
            everywhere.
        mask: ``(B, K, *S)``, or ``(B, 1, *S)`` of timepoint ``home``, which then holds where its voxels go: 1 where the
            user wants voxels to count; None is everywhere.
        home: see above.
    """

    seen: Tensor | None = None
    mask: Tensor | None = None
    home: int = 0

    def of(self, item: int) -> "Evidence":
        """That of one series of the batch."""
        parts = (None if part is None else part[item : item + 1] for part in (self.seen, self.mask))
        return Evidence(*parts, self.home)


EVERYWHERE = Evidence()


class Pieces:
    """z of T velocities, one flow after the other, ``(1, K, T * D, *C)``, as what they share and what sets them apart.
    A stationary velocity is one that shares all with itself."""

    def __init__(self, z: Field):
        pieces = z.values.unflatten(2, (-1, len(z.size)))
        self.number, self.shared = pieces.shape[2], z.like(pieces.mean(dim=2))
        self._apart = z.like((pieces - self.shared.values.unsqueeze(2)).flatten(2, 3))

    def whole(self, shared: Field) -> Field:
        """z on the lattice of ``shared`` ``(1, K, D, *C)``."""
        if self.number == 1:
            return shared
        return shared.like(self._apart.at(shared.step).values + torch.cat([shared.values] * self.number, dim=2))


class Level:
    """The images of one level, with what of them was seen and what of it counts.

    Args:
        images: ``(1, K, *S)``.
        seen: ``(1, K, *S)``, 1 where a timepoint has seen the voxel; None is everywhere.
        mask: ``(1, K, *S)``, or ``(1, 1, *S)`` of timepoint ``home``, 1 where voxels count; None is everywhere.
        factor: voxels of the images between those of the level.
        step: voxels of the images between those of z.
    """

    def __init__(self, images: Tensor, seen: Tensor | None, mask: Tensor | None, home: int, factor: int, step: int):
        self.images = coarsen(images, factor)
        # Beside what was seen a smoothed image holds a share of what was not.
        self.seen = None if _everywhere(seen) else (coarsen(seen, factor) > 0.9).float()
        self.mask = None if _everywhere(mask) else coarsen(mask, factor)
        self.home, self.factor, self.stride = home, factor, step // factor

    def _fine(self, ddf: Tensor, k: int) -> Tensor:
        return upsample_field(ddf[:, k : k + 1], self.stride, self.images.shape[2:])[0]

    def warped(self, ddf: Tensor) -> tuple[Tensor, Tensor | None, Tensor | int]:
        """Of displacements ``(1, K, D, *C)`` on the lattice of z: the images warped, ``(1, K, *S)``; where they were
        seen, or None where they were everywhere; and how much a voxel counts, ``(1, 1 or K, *S)`` or 1."""
        images, seen, masks = [], [], []
        for k in range(ddf.shape[1]):
            fine = self._fine(ddf, k)
            images.append(displace(self.images[:, k : k + 1], fine))
            seen.append(inside(fine).unsqueeze(1))
            if self.seen is not None:
                seen[-1] &= displace(self.seen[:, k : k + 1], fine) > 0.5
            if self.mask is not None and (self.mask.shape[1] > 1 or k == self.home):
                masks.append(displace(self.mask[:, min(k, self.mask.shape[1] - 1)].unsqueeze(1), fine))
        seen = torch.cat(seen, dim=1)
        # On a CPU it is worth looking: without what was seen everything is faster. A GPU would have to be waited for.
        everywhere = seen.device.type == "cpu" and bool(seen.all())
        return torch.cat(images, dim=1), None if everywhere else seen, torch.cat(masks, dim=1) if masks else 1

    def model(self, likelihood: Likelihood, ddf: Tensor) -> Quadratic:
        """Of the likelihood near the displacements ``ddf`` ``(1, K, D, *C)``, on the lattice of z."""
        images, seen, mask = self.warped(ddf)
        linear, factor = likelihood.linearise(images, seen), self.stride
        score, weight, guide = linear.score * mask, linear.weight * mask, linear.guide
        force, curvature = [], []
        # The guide's gradient is in voxels of the images, z in voxels of its lattice: ``factor`` times as long.
        for k in range(images.shape[1]):
            if k < guide.shape[1]:
                slope = gradient(guide[:, k : k + 1])[0, 0] * factor
                square = torch.cat([restrict((s * slope)[None], factor) for s in slope])
            share = restrict(weight[:, k : k + 1], factor)[0] / factor ** (images.dim() - 2)
            force.append(restrict((score[0, k] * slope)[None], factor)[0])
            curvature.append(share * square)
        value, number = _told(linear, images.shape[1], mask)
        return Quadratic(value, number, torch.stack(force), torch.stack(curvature))

    def determined(self, model: Quadratic, likelihood: Likelihood, ddf: Tensor) -> Quadratic:
        """``model`` near ``ddf`` with the curvature that the anatomy alone has, without what the guide's noise adds to
        its slopes: noise makes every place look determined, the more the fewer volumes the guide is a mean of."""
        images, seen, mask = self.warped(ddf)
        weight, factor, dimensions = likelihood.linearise(images, seen).weight * mask, self.stride, images.dim() - 2
        # A central difference of white noise has half its variance, along each axis.
        noise = 0.5 * dimensions * factor**2 * weight * likelihood.guide_noise(images, seen)
        noise = restrict(noise, factor)[0]
        trace = model.curvature.diagonal(dim1=1, dim2=2).sum(dim=-1).clamp_min(1e-12)
        share = (1 - noise / trace).clamp(_LEAST_SIGNAL_SHARE, 1)
        return replace(model, curvature=share[:, None, None] * model.curvature)

    def values(self, likelihood: Likelihood, fields: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compare N displacements.

        Returns: log likelihood of a voxel and timepoint under each of them, ``(1, N, *S)``, and the voxels that it is
            known at, 1 or 0, ``(1, 1, *S)``. A timepoint counts where it has seen a voxel under all of them, as what
            was not seen is no evidence for either, and a voxel where two or more do.
        """
        warped = [self.warped(ddf) for ddf in fields]
        views = [seen for _, seen, _ in warped if seen is not None]
        seen = torch.stack(views).all(dim=0) if views else None
        models = [_told(likelihood.linearise(images, seen), images.shape[1], mask) for images, _, mask in warped]
        counts = torch.cat([number for _, number in models], dim=1).amin(dim=1, keepdim=True) > 1
        values = torch.cat([value / number.clamp_min(1) for value, number in models], dim=1)
        return counts * values, counts.to(values)


def _everywhere(counts: Tensor | None) -> bool:
    return counts is None or bool((counts == 1).all())


def _told(linear: Linearised, timepoints: int, mask: Tensor | int) -> tuple[Tensor, Tensor]:
    """Value as the mask weighs it, and of how many volumes it tells: of none outside of the mask."""
    number = torch.full_like(linear.value, timepoints) if linear.number is None else linear.number
    if isinstance(mask, int):
        return linear.value, number
    weight = mask.mean(dim=1, keepdim=True)
    return linear.value * weight, number * (weight > 0)
