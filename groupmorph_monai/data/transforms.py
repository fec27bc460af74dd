"""From an item of a data list to what the network takes."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from .phantom import make_phantom
from .readers import Series, read_points, read_series, resample_series, working_grid

__all__ = ["LoadSeriesd"]


class LoadSeriesd(MapTransform):
    """Load one series: ``image`` ``(K, *S)`` on the first timepoint's grid at the working spacing, and that grid's
    ``affine`` ``(4, 4)``, voxels to RAS mm.

    The item's ``image`` is a `Series`, or what `read_series` takes: a 4D file, a folder, a list of 3D files. An item
    may hold ``phantom`` instead, the arguments of `make_phantom`. ``landmarks``, a list of K point files (RAS mm) or
    the phantom's own, becomes ``(K, P, 3)`` in voxels of the loaded grid.

    Args:
        keys: of the series, ``"image"``.
        spacing_mm: working spacing, one number or one an axis; none keeps the first timepoint's. A phantom keeps its
            own.
        timepoints: the one K that the network takes; none for any.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        spacing_mm: Sequence[float] | float | None = None,
        timepoints: int | None = None,
    ):
        super().__init__(keys)
        self.spacing_mm, self.timepoints = spacing_mm, timepoints

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        if "phantom" in item:
            phantom = make_phantom(**item.pop("phantom"))
            item[self.keys[0]] = MetaTensor(phantom["image"], affine=phantom["affine"])
            return {**item, **{key: phantom[key] for key in ("affine", "landmarks", "lesion_mask")}}
        for key in self.keys:
            series = item[key] if isinstance(item[key], Series) else read_series(item[key], self.timepoints)
            affine, size = working_grid(series.frames[0], self.spacing_mm)
            item[key] = resample_series(series, affine, size)
            item["affine"] = torch.as_tensor(affine)
        if "landmarks" in item:
            item["landmarks"] = self._landmarks(item["landmarks"], affine)
        return item

    @staticmethod
    def _landmarks(files: Sequence[str], affine: np.ndarray) -> torch.Tensor:
        to_voxel = np.linalg.inv(affine)
        points = np.stack([read_points(file) for file in files])
        return torch.as_tensor(points @ to_voxel[:3, :3].T + to_voxel[:3, 3], dtype=torch.float32)
