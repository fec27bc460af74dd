"""Signal curves of a region drawn on a scan, before and after registration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.reading.regions import inside_region, read_region
from ..data.series import Series
from ..space.transforms import Transform


def region_masks(files: str | Sequence[str], series: Series, home: int, transform: Transform) -> np.ndarray:
    """Resample a region to the output grid.

    Args:
        files: one file, drawn on scan ``home``, or one per scan.
        home: index of the scan that defines the output grid.
        transform: from the common space to that scan.

    Returns:
        ``(2, *S)`` bool: the region as drawn, for images before registration, and as the aligned scan shows it.
    """
    region, grid = read_region(files, series, home), series.frames[home].grid
    return np.stack([inside_region(region, grid), inside_region(region, grid, transform)])


def region_report(files: str | Sequence[str], home: int, written: Mapping[str, Any]) -> dict[str, object]:
    """Compute the signal curves for ``report.json``.

    Args:
        files, home: as for `region_masks`.
        written: the result of `write_registration`, and ``region``, that of `region_masks`.

    Returns:
        ``file``; ``voxels`` and ``signal``, each with ``before`` and ``after``: the number of voxels, and K means over
        those inside the scan's field of view, NaN if there are none.
    """
    file = files if isinstance(files, str) else files[home if len(files) > 1 else 0]
    voxels, signal = {}, {}
    for when, name, mask in zip(("before", "after"), ("native", "warped"), written["region"]):
        voxels[when] = int(mask.sum())
        signal[when] = [
            float(volume[mask & covered].mean()) if (mask & covered).any() else np.nan
            for volume, covered in zip(written[name], written[f"{name}_covered"])
        ]
    return {"file": Path(file).name, "voxels": voxels, "signal": signal}
