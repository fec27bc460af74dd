"""Check a data set before a long computation starts."""

import logging
from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from ..series import Series
from .datalist import series_items
from .points import read_landmarks
from .readers import read_series
from .regions import inside_region, nothing_inside, read_labels

logger = logging.getLogger(__name__)


def check_dataset(
    dataset_dir: str,
    least: int = 2,
    description: str | None = None,
    reference: int | None = None,
    labelled: bool = False,
    structure: int | None = None,
) -> None:
    """Read every series of a data list with its landmarks and label maps, to report unreadable ones early.

    Args:
        dataset_dir: as for `series_items`.
        least: minimum number of timepoints per series.
        description: pattern that selects the series of each folder, as for `read_series`.
        reference: number of a timepoint that every series must have; None for any.
        labelled: whether every series must have label maps.
        structure: label that every label map must have; None for any.

    Raises:
        InputError: If a series is unreadable.
    """
    items = series_items(dataset_dir, None, [], description=description)
    logger.info(
        "Reading every series of %s once (%d in all) to find unreadable ones before the run starts.",
        dataset_dir,
        len(items),
    )
    for item in items:
        series = read_series(item["image"], description=description)
        number, name = len(series.frames), item["name"]
        if number < least:
            raise InputError(
                f"timepoints_least: expected at most the {number} timepoints of {name}, got {least}; choose a smaller "
                "number, or remove the series"
            )
        series.check_reference(reference)
        if "landmarks" in item:
            read_landmarks(item["landmarks"], [frame.grid for frame in series.frames])
        labels = item.get("labels", [])
        if (labels or labelled) and len(labels) != number:
            raise InputError(
                f"labels: expected one label map for each of the {number} scans of {name}, got {len(labels)}; list "
                "them as labels in dataset.json"
            )
        _check_labels(labels, series, structure)


def _check_labels(files: Sequence[str], series: Series, structure: int | None) -> None:
    """Check the label maps of a series, one per scan."""
    labels: list[set[float]] = []
    for file, frame in zip(files, series.frames):
        label_map = read_labels(file)
        if structure is not None and structure not in label_map.data:
            raise InputError(
                f"{file}: expected the label {structure} of surface_structure, got none; correct the label map, or set "
                "surface_structure"
            )
        labels.append(set(np.unique(label_map.data[label_map.data > 0]).tolist()))
        if labels[-1] and not labels[-1] & labels[0]:
            raise InputError(
                f"{file}: expected a label of {files[0]}, such as {min(labels[0]):g}, got {min(labels[-1]):g}; use "
                "the same label for the same structure"
            )
        if not inside_region(label_map, frame.grid).any():
            raise nothing_inside(file, "label map", label_map)
