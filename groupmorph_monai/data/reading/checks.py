"""Check a data set before a long computation starts."""

import logging

from ...errors import InputError
from .datalist import series_items
from .points import read_landmarks
from .readers import read_image, read_series

__all__ = ["check_dataset"]

logger = logging.getLogger(__name__)


def check_dataset(dataset_dir: str, least: int = 2, description: str | None = None) -> None:
    """Read every series of a data list with its landmarks and label maps, to report unreadable ones early.

    Args:
        dataset_dir: as for `series_items`.
        least: minimum number of timepoints per series.
        description: pattern that selects the series of each folder, as for `read_series`.
    Raises: InputError for the first unreadable series.
    """
    items = series_items(dataset_dir, None, [], description=description)
    logger.info(
        "Reading all %d series of %s once to find unreadable ones before the run starts.", len(items), dataset_dir
    )
    for item in items:
        series = read_series(item["image"], description=description)
        number, name = len(series.frames), item["name"]
        if number < least:
            raise InputError(
                f"timepoints_least: expected at most the {number} timepoints of {name}, got {least}; choose a smaller "
                "number, or remove the series"
            )
        if "landmarks" in item:
            read_landmarks(item["landmarks"], [frame.grid for frame in series.frames])
        for file in item.get("labels", ()):
            read_image(file, labels=True)
