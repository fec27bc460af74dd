"""4D CT of the chest for comparisons of methods: phantoms with known motion, and DIR-Lab if available."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ..data.phantoms.thorax import make_thorax
from ..data.preprocessing.transforms import LoadSeriesd
from ..data.reading.datalist import series_items
from ..data.reading.dirlab import DIRLAB_CASES, is_dirlab
from ..errors import InputError
from ..space.grid import Grid
from .cases import with_landmarks_mm

__all__ = ["dirlab_cases", "thorax_cases"]


def thorax_cases(
    seeds: Iterable[int], size: Sequence[int] = (256, 256, 100), timepoints: int = 6
) -> list[dict[str, Any]]:
    """Generate phantoms with 75 landmarks each.

    Returns:
        Results of `make_thorax`, with ``name`` and ``landmarks_mm`` ``(K, P, 3)`` RAS.
    """
    return [{"name": f"thorax {seed}", **with_landmarks_mm(make_thorax(seed, size, timepoints))} for seed in seeds]


def dirlab_cases(folder: str, held_out: str | None = "Case1Pack") -> list[dict[str, str | Tensor]]:
    """Read DIR-Lab cases at their own resolution, see `read_dirlab`.

    Args:
        folder: folder that contains some or all of ``Case1Pack`` to ``Case10Pack``.
        held_out: case for evaluation; None for all.

    Returns:
        ``name``; ``image`` ``(K, *S)`` HU in RAS+ orientation; its ``affine`` ``(4, 4)``; ``landmarks`` ``(K, P, 3)``
        in its voxels from 0 and ``landmarks_mm`` in RAS mm.

    Raises:
        InputError: If the folder contains no case, or not the one held out.
    """
    items = series_items(folder, "validation" if held_out else None, [], held_out=held_out)
    items = [item for item in items if is_dirlab(item["image"])]
    if not items:
        raise InputError(f"{folder}: expected DIR-Lab folders, Case1Pack to Case{len(DIRLAB_CASES)}Pack, got none")
    cases = []
    for item in items:
        loaded = LoadSeriesd()(item)
        image, landmarks_mm = loaded["image"].as_tensor(), loaded["landmarks"]
        landmarks = Grid(image.shape[1:], loaded["affine"]).voxels(landmarks_mm.double()).float()
        part = {"image": image, "affine": loaded["affine"], "landmarks": landmarks, "landmarks_mm": landmarks_mm}
        cases.append({"name": item["name"], **part})
    return cases
