"""Prepare batches of the data loader for MONAI's engines and the inferers."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ..space.affine import affine_in_voxels
from .affine_steps import logarithms


def as_images(inputs: Tensor) -> Tensor:
    """Convert MONAI's tensors with metadata to plain tensors."""
    return inputs.as_tensor() if hasattr(inputs, "as_tensor") else inputs


class InfererOptions(TypedDict):
    """Keyword arguments of an inferer that come from the batch."""

    one_header: bool
    coverage: NotRequired[Tensor]
    mask: NotRequired[Tensor]
    initial: NotRequired[Tensor]
    times: NotRequired[Tensor]


def prepare_series(
    batch: Mapping[str, Any], device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor] | None, tuple[()], InfererOptions]:
    """Prepare a batch for MONAI's engines, which pass the parts of the result to the inferer and the loss.

    Returns:
        The images; ``points`` and ``distance`` of the surfaces, or None; positional arguments, none; and keyword
        arguments of inferers: ``one_header`` and, if the batch has them, ``coverage``, ``mask``, ``initial``, the
        logarithms of the initial transforms in voxels, and ``times`` for training.
    """
    tensors = {
        key: as_images(batch[key]).to(device=device, non_blocking=non_blocking, **kwargs)
        for key in ("image", "coverage", "mask", "surface_points", "surface_distance")
        if key in batch
    }
    surfaces = {key: tensors[f"surface_{key}"] for key in ("points", "distance") if f"surface_{key}" in tensors}
    options = InfererOptions(one_header=bool(torch.as_tensor(batch.get("one_header", True)).all()))
    if "coverage" in tensors:
        options["coverage"] = tensors["coverage"]
    if "mask" in tensors:
        options["mask"] = tensors["mask"]
    if "times" in batch:
        options["times"] = batch["times"]
    if "initial" in batch:
        maps = affine_in_voxels(batch["initial"], batch["affine"].unsqueeze(1))
        options["initial"] = logarithms(maps.flatten(0, 1)).view(maps.shape)
    return tensors["image"], surfaces or None, (), options
