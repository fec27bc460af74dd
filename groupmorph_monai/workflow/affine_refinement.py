"""The optimisation twin of AVSM's affine network."""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError
from ..networks.affine_net import half_side_frame
from ..probability.likelihood import Likelihood
from ..space.alignment import affine_velocity
from ..space.field import Field
from ..space.grid import warp
from ..space.lattice import coarsen
from .evidence import EVERYWHERE, Evidence

__all__ = ["AffineRefinement"]

_LEAST_VOXELS = 8  # along any axis of a level


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

    def check_draws(self, number: int) -> None:
        """Refuse draws with an InputError."""
        raise InputError(
            f"std_draws (--std): expected 0 where affine maps are refined, as they have no posterior, got {number}; "
            "leave it out"
        )

    def __call__(
        self,
        z: Field,
        images: Tensor,
        displacement: Callable[[Tensor], Tensor],
        evidence: Evidence = EVERYWHERE,
        hypotheses: Sequence[Field] = (),
    ) -> Field:
        """Refine z. Its mean over K stays.

        Args:
            z: to start from, on every voxel of the images.
            images: ``(B, K, *S)``.
            displacement: from z to displacements on its grid, voxels of it.
            evidence: without a mask, as windows reach beyond any.
            hypotheses: as for `Refinement`; without effect, as one map holds everywhere.
        """
        if evidence.mask is not None:
            raise InputError(
                "mask: expected none where affine maps are refined, as the windows of their likelihood reach beyond "
                "it; leave it out, or --overlay models/avsm_affine: the default's affine alignment heeds it"
            )
        items = zip(z.values.detach().split(1), images.split(1))
        return z.like(torch.cat([self._series(*item, displacement) for item in items]))

    def _series(self, z: Tensor, images: Tensor, displacement: Callable) -> Tensor:
        size = images.shape[2:]
        frame = half_side_frame(size).to(z)  # in whose coordinates all twelve numbers count alike
        back = torch.linalg.inv(frame)
        numbers = torch.zeros(images.shape[1], 3, 4, dtype=z.dtype, device=z.device).requires_grad_()

        def moved(factor: int) -> Tensor:
            """z on every ``factor``-th voxel."""
            # A motion of all timepoints together changes what the windows hold and would be taken for an alignment.
            logarithms = back @ pad(numbers - numbers.mean(dim=0), (0, 0, 0, 1)) @ frame
            thinned = Field(z[(..., *[slice(None, None, factor)] * 3)] / factor, size, factor)
            return thinned.values + affine_velocity(logarithms, thinned).values

        def likelihood(level: Tensor, factor: int) -> Tensor:
            return self.likelihood(warp(level, displacement(moved(factor))))

        thinnest = max(1, min(size) // _LEAST_VOXELS)
        with torch.enable_grad():
            for factor in sorted({min(ceil(max(size) / n), thinnest) for n in self.voxels}, reverse=True):
                self._climb(numbers, partial(likelihood, coarsen(images, factor), factor))
        return moved(1).detach()

    def _climb(self, numbers: Tensor, likelihood: Callable[[], Tensor]) -> None:
        """Change ``numbers``, on which ``likelihood`` depends, for the better."""
        optimiser = torch.optim.LBFGS([numbers], max_iter=self.iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = -likelihood()
            value.backward()
            return value

        optimiser.step(loss)
