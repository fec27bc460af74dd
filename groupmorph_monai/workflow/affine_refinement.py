"""Refinement of affine maps by optimisation, the counterpart of AVSM's affine network."""

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import InputError
from ..networks.affine_net import half_side_frame
from ..probability.likelihood import Likelihood
from ..space.affine import affine_velocity
from ..space.field import VelocityField
from ..space.lattice import Lattice
from .evidence import EVERYWHERE, Displace, Evidence, Level

_LEAST_VOXELS = 8  # minimum number of voxels along each axis of a level


class AffineRefinement:
    """Maximise the likelihood of one series over the logarithms of its affine maps, 12 parameters per timepoint, by
    L-BFGS from the network's prediction (affine-opt of AVSM, Shen et al. 2019, Section 4), coarse to fine.

    The velocity remains an affine function of position, as `AffineFlow` requires. There is no prior: the network's
    penalty on deviations from the identity (Eq. 13) has decayed by the end of training.

    Args:
        likelihood: likelihood of the warped volumes.
        voxels: number of voxels along the longest side of each level's images.
        iterations: maximum number of L-BFGS iterations on each level.
    """

    def __init__(self, likelihood: Likelihood, voxels: Sequence[int] = (24, 48), iterations: int = 20):
        self.likelihood, self.voxels, self.iterations = likelihood, tuple(voxels), iterations

    def check_draws(self, number: int) -> None:
        """Refuse draws, as affine maps have no posterior to draw from.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"std_draws (--std): expected 0 where affine maps are refined, as they have no posterior, got {number}; "
            "omit it"
        )

    def __call__(
        self,
        z: VelocityField,
        images: Tensor,
        displacement: Displace,
        evidence: Evidence = EVERYWHERE,
        hypotheses: Sequence[VelocityField] = (),
    ) -> VelocityField:
        """Refine z. Its mean over K is unchanged.

        Args:
            z: initial value, on every voxel of the images.
            images: ``(B, K, *S)``.
            displacement: maps z to displacements on the same lattice.
            evidence: must not have a mask, because the likelihood's windows extend beyond it.
            hypotheses: as for `Refinement`; ignored, because an affine map holds everywhere.

        Returns:
            z on every voxel of the images.

        Raises:
            InputError: If the evidence has a mask.
        """
        if evidence.mask is not None:
            raise InputError(
                "mask: expected none where affine maps are refined, because the windows of their likelihood extend "
                "beyond it; omit it, or omit --overlay models/avsm_affine: the default alignment applies it"
            )
        items = enumerate(zip(z.values.detach().split(1), images.split(1)))
        return z.with_values(
            torch.cat([self._refine_series(*i, evidence.of_series(n), displacement) for n, i in items])
        )

    def _refine_series(self, z: Tensor, images: Tensor, evidence: Evidence, displacement: Displace) -> Tensor:
        size = images.shape[2:]
        frame = half_side_frame(size).to(z)  # coordinates in which all parameters have a similar scale
        inverse_frame = torch.linalg.inv(frame)
        parameters = torch.zeros(images.shape[1], 3, 4, dtype=z.dtype, device=z.device).requires_grad_()

        def refined(factor: int) -> VelocityField:
            """Compute z on every ``factor``-th voxel from the parameters."""
            # Without their mean: a common motion changes the content of the windows, which would count as alignment.
            logarithms = inverse_frame @ pad(parameters - parameters.mean(dim=0), (0, 0, 0, 1)) @ frame
            subsampled = VelocityField(z[..., ::factor, ::factor, ::factor] / factor, Lattice(size, factor))
            return subsampled + affine_velocity(logarithms, subsampled)

        def likelihood(level: Level) -> Tensor:
            warped, valid, _ = level.warped(displacement(refined(level.factor)))
            return self.likelihood(warped, valid)

        coarsest = max(1, min(size) // _LEAST_VOXELS)
        with torch.enable_grad():
            for factor in sorted({min(ceil(max(size) / n), coarsest) for n in self.voxels}, reverse=True):
                self._maximise(parameters, partial(likelihood, Level(images, evidence, factor, factor)))
        return refined(1).values.detach()

    def _maximise(self, parameters: Tensor, likelihood: Callable[[], Tensor]) -> None:
        """Maximise ``likelihood`` over ``parameters``, in place."""
        optimiser = torch.optim.LBFGS([parameters], max_iter=self.iterations, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = -likelihood()
            value.backward()
            return value

        optimiser.step(loss)
