"""Data lists: from a folder of series, a JSON file, or phantoms."""

import logging
import os
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..phantoms.hearts import HEART_MOTIONS
from .landmark_files import landmark_files
from .names import natural_order
from .signature import check_regular_file, read_json

logger = logging.getLogger(__name__)
Item = dict[str, Any]  # files of one series, or arguments of a phantom, by the keys of `LoadSeriesd` or `MakePhantomd`
Files = tuple[tuple[str, ...], ...]  # paths of each kind of file of one series
_ENDINGS_4D = (".nii", ".nii.gz")
SPLITS = ("training", "validation")
_FILE_KEYS = ("image", "landmarks", "labels")
_KEYS = ("name", *_FILE_KEYS)
_LIKELY_MISSPELT = 0.76  # similarity of names, 0 to 1; "age" is less similar to "image", and "test" to "training"


def phantom_items(kind: str, seeds: Sequence[int], **options: object) -> list[Item]:
    """List one phantom per seed; `MakePhantomd` generates the series.

    Args:
        kind: a key of `PHANTOMS`.
        seeds: random seeds.
        options: further arguments of the phantom.
    """
    return [{kind: {"seed": seed, **options}} for seed in seeds]


def heart_items(seeds: Sequence[int], size: Sequence[int]) -> list[Item]:
    """List one heart phantom per seed, cycling through the kinds of motion; `MakePhantomd` generates the pair."""
    return [{"heart": {"seed": s, "kind": kind, "size": size}} for s, kind in zip(seeds, cycle(HEART_MOTIONS))]


def series_items(
    dataset_dir: str | None,
    split: str | None,
    phantoms: Sequence[Item],
    validation_fraction: float = 0.2,
    phantom_share: float = 0.0,
    held_out: str | None = None,
    description: str | None = None,
) -> list[Item]:
    """Make the data list of ``dataset_dir``.

    If the folder contains a ``dataset.json``, it defines the list: ``{"training": [...], "validation": [...]}``, each
    entry ``{"image": file, folder or list of files, "landmarks": [one point file per timepoint], "labels": [one label
    map per timepoint], "name": text}`` with paths relative to the folder; the default name is the first path, with a
    number if an earlier series has it. Otherwise every sub-folder and every NIfTI file is a series, in natural order of
    their names; the last ``validation_fraction`` of them, or ``held_out`` alone, are for validation. Files
    ``landmarks_*`` of a sub-folder (points as for `read_points`, one per timepoint) are its landmarks, in the order of
    `landmark_files`; DIR-Lab cases include their own.

    Args:
        dataset_dir: the folder, or None for phantoms only.
        split: ``"training"``, ``"validation"``, or None for all.
        phantoms: items used without a folder, or in addition to its series.
        phantom_share: share of phantoms among the items, 0 to below 1. For training, the smaller group is repeated to
            reach it; for validation, every item occurs once.
        held_out: name of the only validation series; cannot be combined with a ``dataset.json``.
        description: pattern that selects the series of each folder, as for `read_series`; stored in the items.

    Raises:
        InputError: If the folder does not contain the requested series.
    """
    if not dataset_dir:
        logger.info("No folder of series: using %d synthetic series as %s data.", len(phantoms), split)
        return list(phantoms)
    if not 0 <= phantom_share < 1:
        raise InputError(f"phantom_share: expected 0 to below 1, got {phantom_share}; set it to 0 for no phantoms")
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise InputError(f"dataset_dir: expected a folder of series, got {folder}, which is not one; check the path")
    listed = folder / "dataset.json"
    has_list = os.path.lexists(listed)
    if has_list and held_out:
        raise InputError(
            f"held_out: expected none, as {listed} defines the validation series, got {held_out!r}; omit it"
        )
    items = _read_list(listed) if has_list else _items_of_folder(folder, validation_fraction, held_out, description)
    chosen = _of_split(items, split)
    if description:
        chosen = [{**item, "description": description} for item in chosen]
    if not chosen and not (phantom_share and split == "validation"):
        raise InputError(
            f"dataset_dir: expected {split or 'any'} series in {folder}, found none; put each series in its own "
            "sub-folder or 4D NIfTI file, or list them in dataset.json"
        )
    if not phantom_share:
        return chosen
    return [*chosen, *phantoms] if split == "validation" else _mixed(chosen, phantoms, phantom_share)


def _mixed(series: Sequence[Item], phantoms: Sequence[Item], phantom_share: float) -> list[Item]:
    """Repeat the items of the smaller group until phantoms have their share."""
    ratio = phantom_share / (1 - phantom_share)
    number = max(len(series), round(len(phantoms) / ratio))
    phantom_number = max(len(phantoms), round(ratio * len(series)))
    return [*islice(cycle(series), number), *islice(cycle(phantoms), phantom_number)]


def _items_of_folder(
    folder: Path, validation_fraction: float, held_out: str | None, description: str | None
) -> dict[str, list[Item]]:
    entries = [p for p in folder.iterdir() if not p.name.startswith(".")]
    series = sorted((p for p in entries if p.is_dir() or p.name.lower().endswith(_ENDINGS_4D)), key=natural_order)
    for path in entries:
        if path.is_symlink() and not os.path.exists(path):
            check_regular_file(path)  # refuses a link to a missing series
        if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{path}: expected a series, got a link to the folder that contains it; remove the link")
    items: list[Item] = []
    for path in series:
        item = {"image": str(path), "name": path.name}
        landmarks = landmark_files(path, description) if path.is_dir() else []
        items.append({**item, "landmarks": landmarks} if landmarks else item)
    _check_unique({"all": items}, folder)
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


def _read_list(listed: Path) -> dict[str, list[Item]]:
    """Read a ``dataset.json``: the items of each split."""
    content = _read_json(listed)
    _check_splits(content, listed)
    entries = {name: _checked_entries(content.get(name, []), name, listed) for name in SPLITS}
    items = {name: [_resolve(entry, listed) for entry in entries[name]] for name in SPLITS}
    _number_names(item for name in SPLITS for entry, item in zip(entries[name], items[name]) if "name" not in entry)
    _check_unique(items, listed)
    validation = [item["image"] for item in items["validation"]]
    if shared := [item["name"] for item in items["training"] if item["image"] in validation]:
        logger.warning("%s: %s listed for training and validation, so validation is biased", listed, ", ".join(shared))
    return items


def _read_json(listed: Path) -> dict[str, Any]:
    wanted = '{"training": [{"image": ...}], "validation": [...]}'
    try:
        content = read_json(listed)
    except OSError as error:
        raise InputError(f"{listed}: expected {wanted}, got {error.strerror or error}; check the file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{listed}: expected {wanted}, got invalid JSON ({error}); correct the file") from error
    if not isinstance(content, dict) or not any(name in content for name in SPLITS):
        got = f"the keys {', '.join(content) or 'none'}" if isinstance(content, dict) else reprlib.repr(content)
        raise InputError(f"{listed}: expected {wanted}, got {got}; correct the file")
    return content


def _checked_entries(entries: object, split: str, listed: Path) -> list[Item]:
    if not isinstance(entries, list):
        raise InputError(f'{listed}: expected a list for "{split}", got {reprlib.repr(entries)}; correct the file')
    for entry in entries:
        if not isinstance(entry, dict) or "image" not in entry:
            raise InputError(
                f'{listed}: expected entries {{"image": ...}} in "{split}", got {reprlib.repr(entry)}; correct the file'
            )
    return entries


def _of_split(items: Mapping[str, Sequence[Item]], split: str | None) -> list[Item]:
    """List the items of a split, or of all, among which a series for training and for validation occurs once."""
    return list({_files(item): item for name in SPLITS if split in (None, name) for item in items[name]}.values())


def scans_of(item: Item) -> list[str]:
    """List the scans of an item, or its folder; none for a phantom."""
    image = item.get("image", [])
    return [image] if isinstance(image, str) else image


def _files(item: Item) -> Files:
    """List the files of an item, with links resolved: its scans or its folder, its landmarks and its label maps."""
    values = (item.get(key, []) for key in _FILE_KEYS)
    return tuple(tuple(map(os.path.realpath, [value] if isinstance(value, str) else value)) for value in values)


def _check_unique(items: Mapping[str, Sequence[Item]], source: Path) -> None:
    """Refuse a series that occurs twice in a split, two series of one name, which a table of results could not tell
    apart, and a point file or label map that serves two timepoints. Warn of a scan that does so."""
    all_files: dict[str, Files] = {}  # by name
    for series in items.values():
        names: dict[Files, str] = {}
        for item in series:
            name, files = item["name"], _files(item)
            if files in names:
                raise InputError(
                    f"{source}: expected every series once, got {names[files]} and {name} with the same files; "
                    "remove one"
                )
            if all_files.setdefault(name, files) != files:
                raise InputError(
                    f"{source}: expected series of different names, got two of the name {name!r}; give each a "
                    '"name" of its own'
                )
            _check_one_per_timepoint(item, source)
            names[files] = name


def _check_one_per_timepoint(item: Item, source: Path) -> None:
    scans, *annotations = _files(item)
    if repeated := [path for path in scans if scans.count(path) > 1]:
        logger.warning("%s: image of %s: is a scan listed twice? (%s)", source, item["name"], repeated[0])
    for key, paths in zip(_FILE_KEYS[1:], annotations):
        if repeated := [path for path in paths if paths.count(path) > 1]:
            raise InputError(
                f"{source}: expected {key} of {item['name']} with one file per timepoint, got {repeated[0]} twice; "
                "correct them"
            )


def _may_exist(path: str) -> bool:
    """Check whether a file system can have a file of this name."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _number_names(items: Iterable[Item]) -> None:
    """Number series of one default name from the second one on, such as pairs that share their first scan."""
    numbers: defaultdict[str, dict[Files, int]] = defaultdict(dict)  # by name and files
    for item in items:
        alike = numbers[item["name"]]
        number = alike.setdefault(_files(item), len(alike) + 1)
        if number > 1:
            item["name"] += f" {number}"


def _check_splits(content: Mapping[str, object], listed: Path) -> None:
    """Refuse a list under a name that is probably a misspelling of a valid one, whose series would be ignored."""
    for key, value in content.items():
        if key not in SPLITS and isinstance(value, list) and (near := _nearest(key, SPLITS)):
            raise InputError(f"{listed}: expected the keys {', '.join(SPLITS)}, got {key!r}; did you mean {near}?")


def _check_keys(entry: Item, listed: Path) -> None:
    """Refuse an unknown key of an entry, such as a mask or a misspelt key, whose content would be ignored."""
    if unknown := [key for key in entry if key not in _KEYS]:
        shown, near = reprlib.repr(entry.get("name") or entry["image"]), _nearest(unknown[0], _KEYS)
        cure = f"did you mean {near}?" if near else "remove it"
        raise InputError(f"{listed}: {shown}: expected the keys {', '.join(_KEYS)}, got {unknown[0]!r}; {cure}")


def _nearest(key: str, valid: Iterable[str]) -> str | None:
    """Find the valid key of which ``key`` is probably a misspelling."""
    return next(iter(get_close_matches(key.strip().lower(), valid, 1, _LIKELY_MISSPELT)), None)


def _resolve(entry: Item, listed: Path) -> Item:
    """Check one entry and resolve its paths relative to the folder of the data list."""
    _check_keys(entry, listed)
    name = entry.get("name", "")
    if not isinstance(name, str) or (not name and "name" in entry) or not _may_exist(name):
        raise InputError(f'{listed}: expected text for "name", got {name!a:.60}; correct or omit it')
    item: Item = {"name": name} if name else {}
    for key in _FILE_KEYS:
        if key == "image" or entry.get(key) is not None:
            paths = [str(listed.parent / path) for path in _paths(entry, key, listed)]
            item[key] = paths if isinstance(entry[key], list) else paths[0]
    image = entry["image"]
    return {"name": image[0] if isinstance(image, list) else image, **item}


def _paths(entry: Item, key: str, listed: Path) -> list[str]:
    """Check the paths of an entry: of ``image`` one or a list, of the other keys a list."""
    value = entry[key]
    paths = value if isinstance(value, list) else [value] if key == "image" else []
    if not paths or not all(isinstance(path, str) and path for path in paths):
        wanted = "a file, a folder or a list of files" if key == "image" else "a list of files, one per timepoint"
        raise InputError(f'{listed}: expected {wanted} for "{key}", got {value!r:.60}; correct the file')
    if broken := [path for path in paths if not _may_exist(path)]:
        raise InputError(f'{listed}: expected paths for "{key}", got {broken[0]!a:.60}; correct the file')
    return paths
