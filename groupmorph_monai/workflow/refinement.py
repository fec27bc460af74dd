"""Fine-tuning z for one series after the network has spoken (GroupMorph, Section 6 and the dotted arrow of Fig. 2)."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..probability.elbo import NegativeELBO
from ..space.grid import warp_coarse

__all__ = ["Refinement", "stride_of"]


def stride_of(field: Tensor, images: Tensor) -> int:
    """Voxels of ``images`` ``(B, K, *S)`` between those of ``field`` ``(B, K, D, *C)``, ``C = ceil(S / stride)``."""
    return max(-(-n // c) for n, c in zip(images.shape[2:], field.shape[3:]))


class Refinement:
    """Lower the negative bound of one series in z itself, from the posterior's mean; the network's weights stay as they
    are.

    Adam with a step that falls to 0 along a cosine. A step is a length in voxels of the grid of z, whatever the scale
    of the loss.

    Args:
        loss: the bound that the network was trained by.
        iterations: steps; 0 leaves z alone.
        step_voxels: Adam's first learning rate.
        seed: of the voxels that are compared, so that the same series gives the same fields.
    """

    def __init__(self, loss: NegativeELBO, iterations: int = 40, step_voxels: float = 0.2, seed: int = 0):
        self.loss, self.iterations, self.step_voxels, self.seed = loss, iterations, step_voxels, seed

    def __call__(
        self, mean: Tensor, log_variance: Tensor, images: Tensor, displacement: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Refined z, ``(B, K, D, *S_z)`` like ``mean``.

        Args:
            mean, log_variance: of the network's posterior.
            images: ``(B, K, *S)``, compared at every so many voxels as z has, from another corner at each step.
            displacement: from z to displacements on its grid, voxels of it.
        """
        if not self.iterations:
            return mean
        devices = [mean.device] if mean.is_cuda else []
        stride = stride_of(mean, images)
        with torch.enable_grad(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            z = mean.detach().clone().requires_grad_()
            optimizer = torch.optim.Adam([z], lr=self.step_voxels)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
            for _ in tqdm(range(self.iterations), desc="Refining", leave=False):
                offset = torch.randint(stride, (z.shape[2],), device=z.device)
                warped = warp_coarse(images, displacement(z), stride, offset)
                registration = {"warped": warped, "z_mean": z, "z_log_variance": log_variance}
                (z.grad,) = torch.autograd.grad(self.loss(registration), z)
                optimizer.step()
                schedule.step()
        return z.detach()
