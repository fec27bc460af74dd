"""Which series there are: a folder of them, a JSON list, or phantoms where there is no data."""

import json
import logging
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from ..errors import InputError
from .dirlab import is_dirlab
from .folders import folder_files, images
from .hearts import HEART_MOTIONS
from .names import image_stem, natural_order

__all__ = ["affine_phantom_items", "breast_items", "heart_items", "phantom_items", "series_items", "thorax_items"]

logger = logging.getLogger(__name__)
_FILES_4D = (".nii", ".nii.gz")
SPLITS = ("training", "validation")
_KEYS = ("name", "image", "landmarks", "labels")


def phantom_items(seeds: Sequence[int], size: Sequence[int], timepoints: int, **options: float) -> list[dict]:
    """One item for each seed; `LoadSeriesd` makes the series."""
    return [{"phantom": {"seed": s, "size": tuple(size), "timepoints": timepoints, **options}} for s in seeds]


def affine_phantom_items(seeds: Sequence[int], **options: object) -> list[dict]:
    """One item for each seed, of phantoms that move by affine maps alone; `LoadSeriesd` makes the series."""
    return [{"affine_phantom": {"seed": s, **options}} for s in seeds]


def heart_items(seeds: Sequence[int], size: Sequence[int]) -> list[dict]:
    """One item for each seed, of every kind of motion in turn; `LoadSeriesd` makes the pair."""
    kinds = list(HEART_MOTIONS)
    return [{"heart": {"seed": s, "kind": kinds[n % len(kinds)], "size": tuple(size)}} for n, s in enumerate(seeds)]


def thorax_items(seeds: Sequence[int], size: Sequence[int], timepoints: int, **options: float) -> list[dict]:
    """One item for each seed; `LoadSeriesd` makes the 4D CT."""
    return [{"thorax": {"seed": s, "size": tuple(size), "timepoints": timepoints, **options}} for s in seeds]


def breast_items(
    seeds: Sequence[int], size: Sequence[int], spacing_mm: Sequence[float], **options: float
) -> list[dict]:
    """One item for each seed; `LoadSeriesd` makes the breast DCE-MRI."""
    return [{"breast": {"seed": s, "size": tuple(size), "spacing_mm": tuple(spacing_mm), **options}} for s in seeds]


def series_items(
    dataset_dir: str | None,
    split: str | None,
    phantoms: Sequence[dict],
    validation_fraction: float = 0.2,
    phantom_share: float = 0.0,
    held_out: str | None = None,
    description: str | None = None,
) -> list[dict]:
    """Data list of ``dataset_dir``.

    A ``dataset.json`` in it decides: ``{"training": [...], "validation": [...]}``, each entry ``{"image": file, folder
    or list of files, "landmarks": [one point file a timepoint], "labels": [one label map a timepoint]}`` with paths
    relative to the folder. Without one, every sub-folder and every NIfTI file is a series, in the natural order of
    their names, the last ``validation_fraction`` of them for validation, or ``held_out`` alone; a sub-folder's
    ``landmarks_*`` files (CSV or ITK points, one a timepoint) are its landmarks, and a case of DIR-Lab's brings its
    own.

    Args:
        dataset_dir: the folder, or none for the phantoms.
        split: ``"training"``, ``"validation"``, or none for all.
        phantoms: items used where no folder is given, or beside its series.
        phantom_share: of phantoms among the items, from 0 to below 1. For training the fewer are repeated to reach it;
            for validation there is one of each.
        held_out: name of the one series for validation; all others are for training. Not beside a ``dataset.json``.
        description: which series of each folder to take, a pattern as `read_series` has it; goes with the items.
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
    items = _read_list(listed) if listed.exists() else _scan(folder, validation_fraction, held_out, description)
    chosen = [item for name in SPLITS if split in (None, name) for item in items[name]]
    if description:
        chosen = [{**item, "description": description} for item in chosen]
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


def _scan(
    folder: Path, validation_fraction: float, held_out: str | None, description: str | None
) -> dict[str, list[dict]]:
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    found = sorted((p for p in entries if p.is_dir() or p.name.endswith(_FILES_4D)), key=natural_order)
    items = []
    for path in found:
        item: dict = {"image": str(path), "name": path.name}
        landmarks = _landmarks(path, description) if path.is_dir() else []
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


def _landmarks(folder: Path, description: str | None) -> list[str]:
    """Landmark files of the scans in ``folder``, as the scans are ordered: each that of ``landmarks_NAME`` where every
    scan has one of its name, else in the natural order of their own names. A case of DIR-Lab's is its own landmarks."""
    if is_dirlab(folder):
        return [str(folder)]
    files = sorted(folder.glob("landmarks_*"), key=natural_order)
    names = [image_stem(scan.name) for scan in (folder_files(folder, description) if images(folder) else [])]
    by_name = {file.stem.removeprefix("landmarks_"): file for file in files}
    if len(by_name) == len(files) and set(names) == set(by_name):
        files = [by_name[name] for name in names]
    return [str(file) for file in files]


def _read_list(listed: Path) -> dict[str, list[dict]]:
    try:
        content = json.loads(listed.read_text())
        return {name: [_resolve(entry, listed) for entry in content.get(name, [])] for name in SPLITS}
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise InputError(
            f'{listed}: expected {{"training": [{{"image": ...}}], "validation": [...]}}, got '
            f"{type(error).__name__}: {error}; mend the file"
        ) from error


def _resolve(entry: dict, listed: Path) -> dict:
    """Check one entry, and make its paths relative to the data list's folder."""
    item = {"name": str(entry["name"])} if "name" in entry else {}
    for key in ("image", "landmarks", "labels"):
        value = entry[key] if key == "image" else entry.get(key)
        if value is None and key != "image":
            continue
        paths = value if isinstance(value, list) else [value] if key == "image" else []
        if not paths or not all(isinstance(path, str) and path for path in paths):
            wanted = "a file, a folder or a list of files" if key == "image" else "a list of files, one a timepoint"
            raise InputError(f'{listed}: expected {wanted} for "{key}", got {value!r:.60}; mend the file')
        item[key] = (
            [str(listed.parent / path) for path in paths] if isinstance(value, list) else str(listed.parent / value)
        )
    others = sorted(set(entry) - set(_KEYS))
    if others:
        logger.warning("%s: %s are not read; the keys are %s", listed, ", ".join(others), ", ".join(_KEYS))
    image = item["image"]
    return {"name": Path(image[0] if isinstance(image, list) else image).name, **item}
