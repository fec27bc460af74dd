"""Passes of a network over whole volumes, in windows if they are large."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from ..errors import InputError
from ..networks.contract import unwrapped
from ..probability.posterior import split_parameters


@dataclass(frozen=True)
class NetworkPasses:
    """Passes of a network over whole volumes. The parameters of the posterior of overlapping windows are blended.

    Args:
        number: number of passes, each over the images warped by the previous ones.
        window_voxels: maximum size of a window along each axis; None for a single window of any size.
        overlap: overlap of neighbouring windows, as a fraction of their size.
        bf16: compute the network's convolutions in bfloat16. The parameters are always float32.
    """

    number: int = 1
    window_voxels: Sequence[int] | None = None
    overlap: float = 0.5
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.number < 1:
            raise InputError(f"passes: expected 1 or more, got {self.number}; use 1, except with models/avsm_affine")

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which the network is evaluated."""
        return torch.autocast(device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def share(self, size: Sequence[int]) -> float:
        """Return the share of a volume of ``size`` that is in one window."""
        return math.prod(min(w, n) / n for w, n in zip(self.window_voxels or size, size))

    def posterior(self, images: Tensor, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Compute the mean and log variance of z, each ``(B, K, C, *S_z)``.

        Args:
            images: ``(B, K, *S)``.
            network: network that returns the parameters of the posterior.
        """
        with self.autocast(images.device):
            parameters = self._parameters(images, network)
        return split_parameters(parameters.float(), images.shape[1])

    def _parameters(self, images: Tensor, network: nn.Module) -> Tensor:
        size = images.shape[2:]
        window = [min(w, n) for w, n in zip(self.window_voxels or size, size)]
        if window == list(size):
            return network(images)
        # The borders of windows must lie on voxels of the grid of z.
        multiple, stride = unwrapped(network).multiple, unwrapped(network).stride
        window = [-(-w // multiple) * multiple for w in window]
        padding = [p for w, n in zip(reversed(window), reversed(size)) for p in (0, max(w - n, -n % multiple))]
        padded = nn.functional.pad(images, padding, mode="replicate")
        blended = sliding_window_inference(padded, window, 1, network, overlap=self.overlap, mode="gaussian")
        return blended[(..., *[slice(-(-n // stride)) for n in size])]
