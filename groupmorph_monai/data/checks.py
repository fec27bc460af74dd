"""A study's series, read once before hours of work begin."""

import logging

from ..errors import InputError
from .datalist import series_items
from .points import read_landmarks
from .readers import read_image, read_series

__all__ = ["check_dataset"]

logger = logging.getLogger(__name__)


def check_dataset(dataset_dir: str, least: int = 2, description: str | None = None) -> None:
    """Read every series of a data list, with its landmarks and label maps, so that a broken one is told at once.

    Args:
        dataset_dir: as `series_items` takes it.
        least: timepoints that a series must have.
        description: which series of each folder to take, a pattern as `read_series` has it.
    Raises: InputError for the first that cannot be read.
    """
    items = series_items(dataset_dir, None, [], description=description)
    logger.info(
        "Reading all %d series of %s once, to find broken ones before the work begins.", len(items), dataset_dir
    )
    for item in items:
        series = read_series(item["image"], description=description)
        number, name = len(series.frames), item["name"]
        if number < least:
            raise InputError(
                f"timepoints_least: expected at most the {number} timepoints of {name}, got {least}; choose a smaller "
                "one, or leave the series out"
            )
        if "landmarks" in item:
            read_landmarks(item["landmarks"], [frame.grid for frame in series.frames])
        for file in item.get("labels", ()):
            read_image(file, labels=True)
