"""Generate the phantoms of a data list."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from ...space.grid import transform_points
from .affine_phantom import make_affine_phantom
from .breast import make_breast
from .hearts import make_heart
from .phantom import make_phantom
from .thorax import make_thorax

# Generators by the key of the item that contains their arguments.
PHANTOMS: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "phantom": make_phantom,
    "affine_phantom": make_affine_phantom,
    "heart": make_heart,
    "breast": make_breast,
    "thorax": make_thorax,
}


class MakePhantomd(Transform):
    """Generate the phantom whose arguments an item contains, under one of the names in `PHANTOMS`, with the keys that
    `LoadSeriesd` gives a series: ``image``, ``coverage``, ``affine``, ``landmarks``, ``times`` and, for phantoms with
    lesions or other structures, ``labels``. Other items do not change.
    """

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        for name in item.keys() & PHANTOMS.keys():
            series = PHANTOMS[name](**item.pop(name))
            affine, volumes = series["affine"], series["image"]
            item |= {
                "image": MetaTensor(volumes, affine=affine),
                "coverage": torch.ones(volumes.shape),
                "affine": affine,
                "landmarks": transform_points(affine, series["landmarks"]),
                "times": series.get("times_s", torch.arange(len(volumes))).double(),
            }
            item |= {"labels": series["lesion_mask"]} if "lesion_mask" in series else {}
        return item
