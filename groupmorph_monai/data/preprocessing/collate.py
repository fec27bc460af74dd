"""Collate one series into a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data.utils import list_data_collate


def collate_series(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collate one series into a batch like MONAI's collation, but without copying its volumes."""
    (item,) = items
    volumes = {k: v for k, v in item.items() if isinstance(v, torch.Tensor) and v.dim() > 3}
    batch = list_data_collate([{k: v for k, v in item.items() if k not in volumes}])
    plain = {k: v.as_tensor() if hasattr(v, "as_tensor") else v for k, v in volumes.items()}
    return batch | {k: v[None] for k, v in plain.items()}
