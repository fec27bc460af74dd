"""Series for the table: phantoms from seeds, or a folder of scans."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...data.phantoms.breast import BREAST_TIMES_S, make_breast
from ...data.phantoms.phantom import make_phantom
from ...data.phantoms.thorax import make_thorax
from ...data.preprocessing.fingerprint import fingerprint
from ...data.preprocessing.transforms import LoadSeriesd
from ...data.reading.datalist import series_items
from ...errors import InputError
from ..cases import with_landmarks_mm

Series = Mapping[str, Any]
Maker = Callable[[int, Sequence[int], int], Series]  # makes a series from a seed, a size and a number of timepoints


@dataclass(frozen=True)
class Case:
    """One series, generated or read on demand.

    Args:
        name: name of the series in tables and files.
        settings: everything that determines the series, as plain values: kind, seed, size, files.
        load: returns ``image`` ``(K, *S)`` in its own units and ``affine`` ``(4, 4)``, voxels to RAS mm; and, if
            known, ``coverage`` ``(K, *S)``, ``landmarks_mm`` ``(K, P, 3)`` RAS, ``motion`` ``(K, 3, *S)`` from each
            timepoint to a template in voxels, ``lesion_mask`` ``(K, *S)``, ``times_s`` ``(K,)``.
    """

    name: str
    settings: Mapping[str, object]
    load: Callable[[], Series]


def _breast(seed: int, size: Sequence[int], timepoints: int) -> Series:
    """Generate a series with the full field of view for any number of voxels."""
    spacing_mm = [mm * full / n for mm, full, n in zip(_BREAST_MM, _BREAST_SIZE, size)]
    return make_breast(seed, size, spacing_mm, BREAST_TIMES_S[:timepoints])


_BREAST_SIZE, _BREAST_MM = (384, 384, 60), (0.966, 0.966, 3.0)  # size and voxel size of GroupMorph, Section 4


@dataclass(frozen=True)
class Source:
    """A generator of series.

    Args:
        make: generates a series from seed, size and timepoints.
        size: full size, voxels.
        overlays: overlays that this package's default needs for such scans.
    """

    make: Maker
    size: tuple[int, int, int]
    overlays: tuple[str, ...] = ()


SOURCES = {
    "breast": Source(_breast, _BREAST_SIZE),
    "thorax": Source(make_thorax, (256, 256, 100), ("data/dirlab",)),
    "phantom": Source(partial(make_phantom, landmarks=2000), (96, 96, 64)),
}


def cases(data: str, seeds: Sequence[int] = (), size: Sequence[int] | None = None, timepoints: int = 6) -> list[Case]:
    """List the series of a table.

    Args:
        data: a key of ``SOURCES``, or a folder of series as for `series_items`, including DIR-Lab cases.
        seeds: random seeds of phantoms, one series each.
        size: size of phantoms, voxels; None for full size.
        timepoints: K of phantoms.

    Raises:
        InputError: If ``data`` is neither.
    """
    if data in SOURCES:
        if data == "breast" and timepoints > len(BREAST_TIMES_S):
            raise InputError(
                f"--timepoints: expected at most {len(BREAST_TIMES_S)} with --data breast, got {timepoints}; choose a "
                "smaller number"
            )
        shape = tuple(size or SOURCES[data].size)
        return [_seeded(data, SOURCES[data].make, seed, shape, timepoints) for seed in seeds]
    if not Path(data).is_dir():
        raise InputError(f"--data: expected one of {', '.join(SOURCES)}, or a folder of series, got {data!r}")
    return [_folder(item) for item in series_items(data, None, ())]


def growing_cases(seed: int, size: Sequence[int] | None = None) -> Iterator[tuple[str, int, Case]]:
    """Yield phantoms with 1/8, 1/4 and all of the voxels of ``size``, None for full size, then phantoms with 2, 4 and 6
    timepoints: the axis, "voxels" or "timepoints", the number on it, and the case."""
    size = size or SOURCES["phantom"].size
    for factor in (8, 4, 1):
        shape = [max(16, round(n / factor ** (1 / 3))) for n in size]
        yield "voxels", math.prod(shape), cases("phantom", [seed], shape)[0]
    for timepoints in (2, 4, 6):
        yield "timepoints", timepoints, cases("phantom", [seed], size, timepoints)[0]


def _seeded(data: str, make: Maker, seed: int, size: tuple[int, ...], timepoints: int) -> Case:
    settings = {"data": data, "seed": seed, "size_voxels": list(size), "timepoints": timepoints}
    return Case(f"{data} {seed}", settings, lambda: with_landmarks_mm(make(seed, size, timepoints)))


def _folder(item: Mapping[str, Any]) -> Case:
    files = [item[key] for key in ("image", "landmarks", "labels") if key in item]
    return Case(str(item["name"]), {"data": str(item["image"]), "files": fingerprint(files)}, partial(_read, item))


def _read(item: Mapping[str, Any]) -> Series:
    """Read scans onto the grid of the first one, with the voxel size and intensities of its file."""
    loaded = LoadSeriesd(reference=0)(item)
    series = {"image": loaded["image"].as_tensor(), "affine": loaded["affine"], "coverage": loaded["coverage"]}
    for key, name in (("landmarks", "landmarks_mm"), ("labels", "lesion_mask")):
        if key in loaded:
            series[name] = torch.as_tensor(loaded[key])
    return series
