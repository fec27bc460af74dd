"""What several networks share: how their layers begin, and how a timepoint is seen."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["beside_others", "check_timepoints", "keep_signal"]


def check_timepoints(images: Tensor) -> int:
    """K of ``(B, K, *S)``. Raises: ValueError where one volume has no other to be aligned with."""
    timepoints = images.shape[1]
    if timepoints < 2:
        raise ValueError(f"images: expected at least 2 timepoints on axis 1, got {timepoints}; give more volumes")
    return timepoints


def keep_signal(layers: Iterable[nn.Module]) -> None:
    """Initialise convolutions before leaky rectifiers: PyTorch's own initialisation shrinks the signal at every layer,
    which no normalisation here makes up for."""
    for layer in layers:
        nn.init.kaiming_normal_(layer.get_parameter("weight"), a=0.2)
        nn.init.zeros_(layer.get_parameter("bias"))


def beside_others(images: Tensor) -> Tensor:
    """Every timepoint beside the mean of the others, ``(B, K, *S)`` to ``(B * K, 2, *S)``: what a network for pairs
    sees of K volumes."""
    timepoints = check_timepoints(images)
    mean_of_others = (images.sum(dim=1, keepdim=True) - images) / (timepoints - 1)
    return torch.stack([images, mean_of_others], dim=2).flatten(0, 1)
