"""The optimisation twin of AVSM's affine network."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError
from ..probability.likelihood import Likelihood
from ..space.alignment import affine_velocity
from ..space.grid import warp
from ..space.lattice import coarsen

__all__ = ["AffineRefinement"]


class AffineRefinement:
    """Raise the likelihood of one series in the logarithms of its affine maps, twelve numbers a timepoint, by L-BFGS
    from the network's answer (affine-opt of AVSM, Shen et al. 2019, Section 4), coarse to fine.

    The velocity stays an affine function of place, so that it is for `AffineFlow`. No prior holds it: the network's
    pull to the identity (Eq. 13) has faded when its training ends.

    Args:
        likelihood: of the warped volumes.
        voxels: along the longest side of each level's images.
        iterations: of L-BFGS on each level, at most.
    """

    def __init__(self, likelihood: Likelihood, voxels: Sequence[int] = (24, 48), iterations: int = 20):
        self.likelihood, self.voxels, self.iterations = likelihood, tuple(voxels), iterations

    def __call__(
        self,
        z: Tensor,
        images: Tensor,
        displacement: Callable[[Tensor], Tensor],
        mask: Tensor | None = None,
        still: Tensor | None = None,
        observable: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Refined z, ``(B, K, 3, *S)``, on every voxel as it is given.

        Args:
            z, images, displacement, mask: as for `Refinement`.
            still, observable: those of `Refinement` have no part here: one map holds everywhere, and what no image
                tells has no gradient.
        """
        masks = [None] * len(z) if mask is None else mask.split(1)
        return torch.cat([self._series(*item, displacement) for item in zip(z.split(1), images.split(1), masks)])

    def draws(self, *args: object) -> Iterator[Tensor]:
        raise InputError("std_draws: expected 0 where affine maps are refined, as they have no posterior; leave it out")

    def _series(self, z: Tensor, images: Tensor, mask: Tensor | None, displacement: Callable) -> Tensor:
        size = images.shape[2:]
        # Coordinates in halves of the longest side about the centre make all twelve numbers count alike.
        frame = torch.eye(4).to(z)
        frame[:3, :3] *= 2 / max(size)
        frame[:3, 3] = (1 - torch.tensor(size).to(z)) / max(size)
        back = torch.linalg.inv(frame)
        numbers = torch.zeros(images.shape[1], 3, 4).to(z).requires_grad_()

        def moved(factor: int) -> Tensor:
            """z on every ``factor``-th voxel."""
            logarithms = back @ pad(numbers, (0, 0, 0, 1)) @ frame
            thinned = z[(..., *[slice(None, None, factor)] * 3)] / factor
            return thinned + affine_velocity(logarithms, thinned, factor)

        with torch.enable_grad():
            for factor in sorted({ceil(max(size) / n) for n in self.voxels}, reverse=True):
                level = coarsen(images, factor)
                inside = None if mask is None else coarsen(mask, factor)
                self._climb(numbers, partial(moved, factor), displacement, level, inside)
        return moved(1).detach()

    def _climb(
        self, numbers: Tensor, z: Callable[[], Tensor], displacement: Callable, images: Tensor, mask: Tensor | None
    ) -> None:
        """Change ``numbers``, on which ``z`` depends, for the better."""
        optimiser = torch.optim.LBFGS([numbers], max_iter=self.iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            ddf = displacement(z())
            warped = warp(images, ddf)
            if mask is not None:
                # Where any is outside, all are their mean: alike, whatever the maps, and without an edge to align.
                share = warp(mask, ddf.detach()[:, : mask.shape[1]]).amin(dim=1, keepdim=True)
                warped = share * warped + (1 - share) * warped.detach().mean(dim=1, keepdim=True)
            value = -self.likelihood(warped)
            value.backward()
            return value

        optimiser.step(loss)
