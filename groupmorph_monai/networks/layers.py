"""Initialisation of layers and input of timepoints, for several networks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOPE = 0.2  # slope of the leaky ReLUs for negative values, as in VoxelMorph


def check_timepoints(images: Tensor) -> int:
    """Return K of ``images`` ``(B, K, *S)``.

    Raises:
        ValueError: If K is less than 2.
    """
    timepoints = images.shape[1]
    if timepoints < 2:
        raise ValueError(f"images: expected at least 2 timepoints on axis 1, got {timepoints}; pass more volumes")
    return timepoints


def leaky_relu(x: Tensor, slope: float = _SLOPE) -> Tensor:
    return F.leaky_relu(x, slope)


def init_leaky_relu_layers(layers: Iterable[nn.Module]) -> None:
    """Initialise convolutions before `leaky_relu` so that they preserve the variance of the signal (He et
    al. 2015).

    PyTorch's default initialisation shrinks the signal at every layer, and these networks have no normalisation that
    compensates for it.
    """
    for layer in layers:
        nn.init.kaiming_normal_(layer.get_parameter("weight"), a=_SLOPE)
        nn.init.zeros_(layer.get_parameter("bias"))


def padded(images: Tensor, multiple: int, least: int = 0) -> Tensor:
    """Pad ``(N, C, *S)`` with border values to sizes that are divisible by ``multiple``, and not below ``least``."""
    padding: list[int] = []
    for axis in range(3):
        n = images.shape[axis + 2]
        padding = [0, max(least, n + -n % multiple) - n] + padding
    return F.pad(images, padding, mode="replicate")


def cropped(parameters: Tensor, images: Tensor, stride: int) -> Tensor:
    """Crop ``(B, C, *S)`` on every ``stride``-th voxel of padded images to the size of the images before padding."""
    for axis in range(3):
        parameters = parameters.narrow(axis + 2, 0, (images.shape[axis + 2] + stride - 1) // stride)
    return parameters


def with_mean_of_others(images: Tensor) -> Tensor:
    """Stack every timepoint with the mean of the other timepoints, as the input of a network for pairs.

    Args:
        images: ``(B, K, *S)``.

    Returns:
        ``(B * K, 2, *S)``.
    """
    timepoints = check_timepoints(images)
    mean_of_others = (images.sum(dim=1, keepdim=True) - images) / (timepoints - 1)
    return torch.stack([images, mean_of_others], dim=2).flatten(0, 1)
