"""Checks of output folders."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError


def check_current_folder() -> None:
    """Refuse to run in a folder that was removed, as libraries cannot be loaded from there.

    Raises:
        InputError: If the current folder does not exist.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("current folder: it was removed; change to another") from None


def check_place(output: str, inputs: Sequence[str]) -> None:
    """Refuse to write into a folder of scans, where a result could replace a scan, or be read as one by a later run.

    Args:
        output: folder for the results.
        inputs: files and folders of files.

    Raises:
        InputError: If ``output`` is a file, or contains scans.
    """
    folder = os.path.realpath(output)
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"--output: expected a folder, got the file {output}; choose another name")
    for name in inputs:
        real = os.path.realpath(name)
        parents = (
            [real] if os.path.isdir(real) else [os.path.dirname(real), os.path.realpath(os.path.dirname(name) or ".")]
        )
        if folder in parents:
            of_scans = "is the folder of the scans" if folder == real else f"contains {name}"
            raise InputError(
                f"--output: expected a folder without scans, got {output}, which {of_scans}; choose another"
            )


def check_place_of_study(output: str, dataset: str) -> None:
    """Refuse to write into a folder of series, where a later run would read the results as another series, or into a
    folder of the scans of one of them.

    Raises:
        InputError: If the results would be written there, or if the data list is invalid.
    """
    folder, root = os.path.realpath(output), os.path.realpath(dataset)
    has_list = os.path.lexists(os.path.join(root, "dataset.json"))
    if folder == root or (folder.startswith(root + os.sep) and not has_list):
        raise InputError(f"--output: expected a folder outside --dataset {dataset}, got {output}; choose another")
    check_place(output, _listed_scans(dataset) if has_list else _entries(root))


def _listed_scans(dataset: str) -> list[str]:
    from ..data.reading.datalist import scans_of, series_items

    return [file for item in series_items(dataset, None, ()) for file in scans_of(item)]


def _entries(folder: str) -> list[str]:
    return [entry.path for entry in os.scandir(folder)] if os.path.isdir(folder) else []


def absolute_paths(files: Sequence[str | Path]) -> list[str]:
    """Make paths absolute without resolving links, as the name of a link determines the format.

    Raises:
        InputError: If the name of a file ends in a slash, which would be dropped.
    """
    for file in map(str, files):
        if file.endswith(("/", "/.")) and os.path.isfile(os.path.abspath(file)):
            raise InputError(f"{file}: expected a file or folder, got the name of a file with a slash; omit the slash")
    return [os.path.abspath(file) for file in files]
