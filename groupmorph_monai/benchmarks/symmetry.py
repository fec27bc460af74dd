"""Whether the map of an exchanged pair is the inverse (AVSM, Eq. 10 and Fig. 6)."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..evaluation.metrics import inverse_consistency_mm
from .compare import BundleMethod

__all__ = ["asymmetry"]


def asymmetry(cases: Sequence[Mapping], methods: Mapping[str, BundleMethod]) -> list[dict]:
    """A row a method: the mean distance, in voxels, from where the map of each pair and then that of the exchanged pair
    lead to, to where one began."""
    rows = []
    for name, method in methods.items():
        register = method.prepare()
        left = []
        for case in cases:
            there, back = (register(pair)[0] for pair in (case["image"], case["image"].flip(0)))
            left.append(inverse_consistency_mm(there[1:], back[1:], torch.eye(4)))
        rows.append({"method": name, "there and back, voxels": float(np.mean(left))})
    return rows
