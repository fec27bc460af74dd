"""Fine-tuning z for one series after the network has spoken (GroupMorph, Section 6 and the dotted arrow of Fig. 2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..probability.elbo import NegativeELBO

__all__ = ["Refinement"]


class Refinement:
    """Lower the negative bound of one series in z itself, from the posterior's mean; the network's weights stay as they
    are.

    Adam with a step that falls to 0 along a cosine. A step is a length in voxels of the grid of z, whatever the scale
    of the loss.

    Args:
        loss: the bound that the network was trained by.
        iterations: steps; 0 leaves z alone.
        step_voxels: Adam's first learning rate.
        seed: of the voxels that the likelihood draws, so that the same series gives the same fields.
    """

    def __init__(self, loss: NegativeELBO, iterations: int = 40, step_voxels: float = 0.2, seed: int = 0):
        self.loss, self.iterations, self.step_voxels, self.seed = loss, iterations, step_voxels, seed

    def __call__(self, mean: Tensor, log_variance: Tensor, warp_by: Callable[[Tensor], Tensor]) -> Tensor:
        """Refined z, ``(B, K, D, *S_z)`` like ``mean``.

        Args:
            mean, log_variance: of the network's posterior.
            warp_by: from z to the warped volumes ``(B, K, *S)``.
        """
        if not self.iterations:
            return mean
        devices = [mean.device] if mean.is_cuda else []
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            z = mean.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([z], lr=self.step_voxels)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
            for _ in range(self.iterations):
                registration = {"warped": warp_by(z), "z_mean": z, "z_log_variance": log_variance}
                (z.grad,) = torch.autograd.grad(self.loss(registration), z)
                optimizer.step()
                schedule.step()
        return z.detach()
