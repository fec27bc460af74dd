"""Where results go."""

import os
from collections.abc import Sequence

from ..errors import InputError

__all__ = ["absolute_paths", "check_place", "check_place_of_study"]


def check_place(output: str, inputs: Sequence[str]) -> None:
    """Refuse to write into a folder of scans, where a result may replace one or be read as one the next time.

    Args:
        output: the folder for the results.
        inputs: files, and folders of files.
    """
    folder = os.path.realpath(output)
    for name in inputs:
        real = os.path.realpath(name)
        beside = (
            [real] if os.path.isdir(real) else [os.path.dirname(real), os.path.realpath(os.path.dirname(name) or ".")]
        )
        if folder in beside:
            raise InputError(
                f"--output: expected a folder without scans, got {output}, which holds {name}; choose another"
            )


def check_place_of_study(output: str, dataset: str) -> None:
    """Refuse to write into a folder of series, where a folder of results would be a series the next time."""
    folder, root = os.path.realpath(output), os.path.realpath(dataset)
    if folder == root or (folder.startswith(root + os.sep) and not os.path.exists(os.path.join(root, "dataset.json"))):
        raise InputError(f"--output: expected a folder outside of --dataset {dataset}, got {output}; choose another")


def absolute_paths(files: Sequence[str]) -> list[str]:
    """Absolute paths. A link to a file keeps its name, which tells the format."""
    return [os.path.abspath(file) for file in files]
