"""What a refinement asks of a series at one level: which voxels count, and the likelihood's model near a field."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.storage import IN_MEMORY, Storage
from ..probability.likelihood import Likelihood, Linearised
from ..space.field import Field
from ..space.grid import displace, displace_observed, upsample_field
from ..space.lattice import coarsen, gradient, restrict

__all__ = ["EVERYWHERE", "Evidence", "Level", "Pieces", "Quadratic"]

_LEAST_SIGNAL_SHARE = 0.1  # of a curvature


@dataclass
class Quadratic:
    """``value + <force, d> - <d, curvature d> / 2`` of K fields on their lattice: the log likelihood near z, to second
    order.

    ``value`` ``(1, 1, *S)`` holds the voxels' shares for all K and ``number``, of the same shape, the volumes of which
    each tells; ``force`` is ``(K, D, *C)``; ``curvature`` holds a symmetric D x D matrix for each voxel of the lattice,
    ``(K, D, D, *C)``, which ``damping`` enlarges by this share. The tensors of K timepoints are kept in ``storage``.
    """

    value: Tensor
    number: Tensor
    force: Tensor
    curvature: Tensor
    damping: Tensor | float = 0.0
    storage: Storage = IN_MEMORY

    def product(self, d: Tensor, chunk: slice = slice(None)) -> Tensor:
        """Curvature times d, of a chunk of timepoints."""
        curvature = self.curvature[chunk]
        result = curvature[:, :, 0] * d[:, :1]
        for column in range(1, d.shape[1]):  # a product with all columns would take three times the memory
            result.addcmul_(curvature[:, :, column], d[:, column : column + 1])
        return result.mul_(1 + self.damping)

    def damped(self, damping: Tensor) -> "Quadratic":
        return replace(self, damping=damping)

    def unless(self, condition: Tensor, other: "Quadratic") -> "Quadratic":
        """This model, or where ``condition``, a scalar bool that is never read on a GPU, holds the other."""
        if self.storage.scans_at_once:
            return other if condition else self
        ours, others = ((q.value, q.number, q.force, q.curvature) for q in (self, other))
        return Quadratic(*(torch.where(condition, b, a) for a, b in zip(ours, others)), storage=self.storage)

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
        diagonal = self.storage.sum(lambda h: h.diagonal(dim1=1, dim2=2).sum(), self.curvature, dim=0)
        return (1 + self.damping) * diagonal / (self.curvature.numel() / self.curvature.shape[1])


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
        self.number, self.shared = z.values.shape[2] // len(z.size), z
        if self.number == 1:
            return
        pieces = z.values.unflatten(2, (self.number, -1))
        self.shared = z.like(pieces.mean(dim=2))
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
        storage: of what there is of all K.
    """

    def __init__(
        self,
        images: Tensor,
        seen: Tensor | None,
        mask: Tensor | None,
        home: int,
        factor: int,
        step: int,
        storage: Storage = IN_MEMORY,
    ):
        def coarse(x: Tensor) -> Tensor:
            return x if factor == 1 else storage.map(lambda part: coarsen(part, factor), x)

        def known(x: Tensor) -> Tensor:
            return (coarsen(x, factor) > 0.9).float()

        self.images, self.storage = coarse(images), storage
        # Beside what was seen a smoothed image holds a share of what was not.
        self.seen = None if _everywhere(seen, storage) else storage.map(known, seen)
        self.mask = None if _everywhere(mask, storage) else coarse(mask)
        self.home, self.factor, self.stride = home, factor, step // factor

    def _fine(self, ddf: Tensor, k: int) -> Tensor:
        return upsample_field(ddf[:, k : k + 1], self.stride, self.images.shape[2:])[0]

    def warped(self, ddf: Tensor) -> tuple[Tensor, Tensor | None, Tensor | int]:
        """Of displacements ``(1, K, D, *C)`` on the lattice of z: the images warped, ``(1, K, *S)``; where they were
        seen, or None where they were everywhere; and how much a voxel counts, ``(1, 1 or K, *S)`` or 1."""
        number = ddf.shape[1]
        images, seen, *mask = self.storage.collect(
            ((c, self._warped(ddf, c)) for c in self.storage.chunks(number)), number
        )
        if self.mask is not None and self.mask.shape[1] == 1:
            mask = [displace(self.mask, self._fine(ddf, self.home))]
        # On a CPU it is worth looking: without what was seen everything is faster. A GPU would have to be waited for.
        everywhere = seen.device.type == "cpu" and bool(self.storage.sum(lambda part: (~part).sum(), seen) == 0)
        return images, None if everywhere else seen, mask[0] if mask else 1

    def _warped(self, ddf: Tensor, chunk: slice) -> tuple[Tensor, ...]:
        """What `warped` returns of a chunk, where each timepoint has its own."""
        parts = []
        for k in range(chunk.start, chunk.stop):
            fine = self._fine(ddf, k)
            observed = None if self.seen is None else self.seen[:, k : k + 1]
            parts.append([*displace_observed(self.images[:, k : k + 1], observed, fine)])
            if self.mask is not None and self.mask.shape[1] > 1:
                parts[-1].append(displace(self.mask[:, k : k + 1], fine))
        return tuple(torch.cat(part, dim=1) for part in zip(*parts))

    def model(self, likelihood: Likelihood, ddf: Tensor) -> Quadratic:
        """Of the likelihood near the displacements ``ddf`` ``(1, K, D, *C)``, on the lattice of z."""
        images, seen, mask = self.warped(ddf)
        value, told = 0, None

        def parts() -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
            nonlocal value, told
            for c, linear in likelihood.parts(images, seen, self.storage.chunks):
                value, told = value + linear.value, linear.number
                yield c, self._lattice(linear, mask[:, c] if isinstance(mask, Tensor) and mask.shape[1] > 1 else mask)

        force, curvature = self.storage.collect(parts(), images.shape[1], dim=0)
        return Quadratic(*self._told(value, told, images.shape[1], mask), force, curvature, storage=self.storage)

    def _lattice(self, linear: Linearised, mask: Tensor | int) -> tuple[Tensor, Tensor]:
        """Force and curvature of some timepoints on the lattice of z."""
        score, weight, guide, factor = linear.score * mask, linear.weight * mask, linear.guide, self.stride
        force, curvature = [], []
        # The guide's gradient is in voxels of the images, z in voxels of its lattice: ``factor`` times as long.
        for k in range(score.shape[1]):
            if k < guide.shape[1]:
                slope = gradient(guide[:, k : k + 1])[0, 0] * factor
                square = torch.cat([restrict((s * slope)[None], factor) for s in slope])
            share = restrict(weight[:, k : k + 1], factor)[0] / factor ** (score.dim() - 2)
            force.append(restrict((score[0, k] * slope)[None], factor)[0])
            curvature.append(share * square)
        return torch.stack(force), torch.stack(curvature)

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
        seen = self.storage.map(lambda *views: torch.stack(views).all(dim=0), *views) if views else None
        models = [self._value(likelihood, images, seen, mask) for images, _, mask in warped]
        counts = torch.cat([number for _, number in models], dim=1).amin(dim=1, keepdim=True) > 1
        values = torch.cat([value / number.clamp_min(1) for value, number in models], dim=1)
        return counts * values, counts.to(values)

    def _value(
        self, likelihood: Likelihood, images: Tensor, seen: Tensor | None, mask: Tensor | int
    ) -> tuple[Tensor, Tensor]:
        value, told = 0, None
        for _, linear in likelihood.parts(images, seen, self.storage.chunks):
            value, told = value + linear.value, linear.number
        return self._told(value, told, images.shape[1], mask)

    def _told(self, value: Tensor, number: Tensor | None, timepoints: int, mask: Tensor | int) -> tuple[Tensor, Tensor]:
        """Value as the mask weighs it, and of how many volumes it tells: of none outside of the mask."""
        number = torch.full_like(value, timepoints) if number is None else number
        if isinstance(mask, int):
            return value, number
        weight = self.storage.mean(mask)
        return value * weight, number * (weight > 0)


def _everywhere(counts: Tensor | None, storage: Storage) -> bool:
    return counts is None or bool(storage.sum(lambda part: (part != 1).sum(), counts) == 0)
