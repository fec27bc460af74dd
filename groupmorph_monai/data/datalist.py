"""Which series there are: a folder of them, a JSON list, or phantoms where there is no data."""

import json
import logging
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from ..errors import InputError
from .dirlab import is_dirlab
from .hearts import HEART_MOTIONS

__all__ = ["breast_items", "heart_items", "phantom_items", "series_items", "thorax_items"]

logger = logging.getLogger(__name__)
_FILES_4D = (".nii", ".nii.gz")
SPLITS = ("training", "validation")


def phantom_items(seeds: Sequence[int], size: Sequence[int], timepoints: int, **options: float) -> list[dict]:
    """One item for each seed; `LoadSeriesd` makes the series."""
    return [{"phantom": {"seed": s, "size": tuple(size), "timepoints": timepoints, **options}} for s in seeds]


def heart_items(seeds: Sequence[int], size: Sequence[int]) -> list[dict]:
    """One item for each seed, of every kind of motion in turn; `LoadSeriesd` makes the pair."""
    kinds = list(HEART_MOTIONS)
    return [{"heart": {"seed": s, "kind": kinds[n % len(kinds)], "size": tuple(size)}} for n, s in enumerate(seeds)]


def breast_items(
    seeds: Sequence[int], size: Sequence[int], spacing_mm: Sequence[float], **options: float
) -> list[dict]:
    """One item for each seed; `LoadSeriesd` makes the breast DCE-MRI."""
    return [{"breast": {"seed": s, "size": tuple(size), "spacing_mm": tuple(spacing_mm), **options}} for s in seeds]


def thorax_items(seeds: Sequence[int], size: Sequence[int], timepoints: int, **options: float) -> list[dict]:
    """One item for each seed; `LoadSeriesd` makes the 4D CT."""
    return [{"thorax": {"seed": s, "size": tuple(size), "timepoints": timepoints, **options}} for s in seeds]


def series_items(
    dataset_dir: str | None,
    split: str | None,
    phantoms: Sequence[dict],
    validation_fraction: float = 0.2,
    phantom_share: float = 0.0,
    held_out: str | None = None,
) -> list[dict]:
    """Data list of ``dataset_dir``.

    A ``dataset.json`` in it decides: ``{"training": [...], "validation": [...]}``, each entry ``{"image": file, folder
    or list of files, "landmarks": [one point file a timepoint], "labels": [one label map a timepoint]}`` with paths
    relative to the folder. Without one, every sub-folder and every NIfTI file is a series, in the order of their names,
    the last ``validation_fraction`` of them for validation, or ``held_out`` alone; a sub-folder's ``landmarks_*`` files
    (CSV or ITK points, one a timepoint) are its landmarks, and a case of DIR-Lab's brings its own.

    Args:
        dataset_dir: the folder, or none for the phantoms.
        split: ``"training"``, ``"validation"``, or none for all.
        phantoms: items used where no folder is given, or beside its series.
        phantom_share: of phantoms among the items, from 0 to below 1. For training the fewer are repeated to reach it;
            for validation there is one of each.
        held_out: name of the one series for validation; all others are for training. Not beside a ``dataset.json``.
    Raises: InputError where the folder does not hold what is asked for.
    """
    if not dataset_dir:
        logger.info(
            "No dataset_dir given: %d phantom series made by the package serve as %s data.", len(phantoms), split
        )
        return list(phantoms)
    if not 0 <= phantom_share < 1:
        raise InputError(f"phantom_share: expected 0 to below 1, got {phantom_share}; 0 leaves phantoms out")
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"dataset_dir: expected a folder of series, {folder} is none; check the path")
    listed = folder / "dataset.json"
    if listed.exists() and held_out:
        raise InputError(
            f"held_out: expected none beside {listed}, which says what is for validation, got {held_out!r}"
        )
    items = _read_list(listed) if listed.exists() else _scan(folder, validation_fraction, held_out)
    chosen = [item for name in SPLITS if split in (None, name) for item in items[name]]
    if not chosen and not (phantom_share and split == "validation"):
        raise InputError(
            f"dataset_dir: expected {split or 'any'} series in {folder}, found none; put each series in its own "
            "sub-folder or 4D NIfTI file, or list them in dataset.json"
        )
    if not phantom_share:
        return chosen
    if split == "validation":
        return [*chosen, *phantoms]
    ratio = phantom_share / (1 - phantom_share)
    number_of_each = max(len(chosen), round(len(phantoms) / ratio)), max(len(phantoms), round(ratio * len(chosen)))
    return [item for items, number in zip((chosen, phantoms), number_of_each) for item in islice(cycle(items), number)]


def _scan(folder: Path, validation_fraction: float, held_out: str | None) -> dict[str, list[dict]]:
    found = sorted(p for p in folder.iterdir() if p.is_dir() or p.name.endswith(_FILES_4D))
    items = []
    for path in found:
        item: dict = {"image": str(path), "name": path.name}
        landmarks = sorted(map(str, path.glob("landmarks_*"))) if path.is_dir() else []
        landmarks = [str(path)] if is_dirlab(path) else landmarks
        items.append({**item, "landmarks": landmarks} if landmarks else item)
    if held_out:
        chosen = [item for item in items if item["name"] == held_out]
        if not chosen:
            names = ", ".join(item["name"] for item in items)
            raise InputError(f"held_out: expected one of the series in {folder}, {names}, got {held_out!r}")
        return {"training": [item for item in items if item not in chosen], "validation": chosen}
    number = round(validation_fraction * len(items))
    if len(items) > 1:
        number = min(max(number, 1), len(items) - 1)
    return {"training": items[: len(items) - number], "validation": items[len(items) - number :]}


def _read_list(listed: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(listed.read_text())
        return {name: [_resolve(entry, listed) for entry in content.get(name, [])] for name in SPLITS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{listed}: expected {{"training": [{{"image": ...}}], "validation": [...]}}, got '
            f"{type(error).__name__}: {error}; mend the file"
        ) from error


def _resolve(entry: dict, listed: Path) -> dict:
    def under(value: str | list[str]) -> str | list[str]:
        return [under(v) for v in value] if isinstance(value, list) else str(listed.parent / value)

    image = entry["image"]
    name = Path(image[0] if isinstance(image, list) else image).name
    return {
        "name": name,
        **entry,
        **{key: under(entry[key]) for key in ("image", "landmarks", "labels") if key in entry},
    }
