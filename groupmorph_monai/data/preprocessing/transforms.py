"""Transforms from items of a data list to the input of the network."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from ...errors import InputError
from ...space.grid import Grid
from ...space.transforms import AffineTransform
from ..reading.points import read_landmarks
from ..reading.readers import read_image, read_series
from ..reading.regions import nothing_inside, read_labels
from ..storage import IN_MEMORY, Storage
from .intensities import intensity_range
from .resampling import on_one_grid, resample, resample_series, working_grid

logger = logging.getLogger(__name__)

_LEAST_MASKED = 8  # minimum number of voxels in a mask, the same as of voxels that differ in an image
_MASKED_WELL = 16**3  # voxels of a mask; with fewer, only the finest level of the default refinement has enough


class ClipSeriesd(Transform):
    """Read the series of an item and clip intensities below ``least``, as scanners use arbitrary fill values.

    The item's ``image`` is a `Series`, or any input of `read_series`, which also gets the item's ``description``.
    Items without it, which are those of phantoms, do not change.

    Args:
        least: minimum intensity in the files' units, which each scan must exceed; None leaves the series unchanged.
        timepoints: number of timepoints that the network requires; None for any.
        storage: where to keep the result.
    """

    def __init__(
        self,
        least: float | None = None,
        timepoints: int | None = None,
        storage: Storage = IN_MEMORY,
    ):
        self.least, self.timepoints, self.storage = least, timepoints, storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        if self.least is None or "image" not in item:
            return item
        series = read_series(item["image"], self.timepoints, item.pop("description", None))
        for frame in series.frames:
            if frame.data.max() <= self.least:
                raise InputError(
                    f"intensity_least: expected less than {frame.data.max():g}, the maximum intensity of "
                    f"{frame.path}, got {self.least:g}; choose a smaller value"
                )
        clipped = (self.storage.keep(np.maximum(frame.data, self.least)) for frame in series.frames)
        frames = [replace(frame, data=data) for frame, data in zip(series.frames, clipped)]
        return item | {"image": replace(series, frames=tuple(frames))}


class LoadSeriesd(Transform):
    """Load one series onto the working grid: ``image`` ``(K, *S)``; ``coverage`` ``(K, *S)``, 1 inside a scan's field
    of view and 0 outside; the ``affine`` ``(4, 4)`` of the grid, voxels to RAS mm; ``one_header``, whether all scans
    share one grid; and ``times`` ``(K,)``, in seconds, or the indices of the timepoints if the times are unknown.

    The item's ``image`` is a `Series`, or any input of `read_series`: a 4D file, a folder, a list of 3D files. Items
    without it, which are those of phantoms, do not change. Optional keys:

    - ``landmarks``, K point files or one DIR-Lab case, become ``(K, P, 3)`` in RAS mm.
    - ``initial`` ``(K, 4, 4)``, RAS mm, maps the common space to each timepoint before interpolation.
    - ``mask``, one file on the grid of the reference or one per timepoint, becomes ``(1, *S)`` or ``(K, *S)``, 1 where
      the file is above 0; None is removed.
    - ``labels``, one label map per timepoint, become ``(K, *S)``.

    Args:
        spacing_mm: working spacing, as for `working_grid`.
        timepoints: number of timepoints that the network requires; None for any.
        reference: index of the scan to which the others are aligned; None for their common mean.
        storage: where to keep images and coverage.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float] | float | str | None = None,
        timepoints: int | None = None,
        reference: int | None = None,
        storage: Storage = IN_MEMORY,
    ):
        self.spacing_mm, self.timepoints, self.reference = spacing_mm, timepoints, reference
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        if "image" not in item:
            return item
        maps = {name: item.pop(name) for name in ("mask", "labels") if name in item}
        series = read_series(item["image"], self.timepoints, item.pop("description", None))
        series.check_reference(self.reference)
        initial = item.get("initial")
        grids = [frame.grid for frame in series.frames]
        grid = working_grid(grids, self.spacing_mm, self.reference, initial)
        item["image"], item["coverage"] = resample_series(series, grid, initial, self.storage)
        item["affine"] = grid.affine
        item["one_header"] = on_one_grid(grids)
        times = range(len(series.frames)) if series.times_s is None else series.times_s
        item["times"] = torch.tensor(times, dtype=torch.float64)
        for name, files in maps.items():
            if files is not None:
                item[name] = self._label_maps(name, files, grid, item["coverage"], initial)
        if "landmarks" in item:
            points = read_landmarks(item["landmarks"], grids)
            item["landmarks"] = torch.as_tensor(points, dtype=torch.float32)
        return item

    def _label_maps(
        self,
        name: str,
        files: str | Path | Sequence[str | Path],
        grid: Grid,
        coverage: torch.Tensor,
        initial: torch.Tensor | None,
    ) -> torch.Tensor:
        files, timepoints = [files] if isinstance(files, (str, Path)) else files, len(coverage)
        if len(files) not in ((1, timepoints) if name == "mask" else (timepoints,)):
            one = "one file, or " if name == "mask" else ""
            raise InputError(
                f"{name}: expected {one}one for each of the {timepoints} scans, got {len(files)}; list the right files"
            )
        volumes = []
        for number, file in enumerate(files):
            frame = read_labels(file) if name == "labels" else read_image(file, labels=True)
            data = (frame.data > 0 if name == "mask" else frame.data).astype(np.int32)
            scan = (self.reference or 0) if len(files) == 1 else number
            transform = None if initial is None else AffineTransform(initial[scan])
            values, covered = resample(replace(frame, data=data), grid, transform, nearest=True)
            volumes.append(np.where(covered, values, 0))  # label 0 outside the file's field of view
            if not volumes[-1].any():
                raise nothing_inside(file, name, replace(frame, data=data))
            if name == "mask":
                self._check_mask(file, scan, volumes[-1] != 0, np.asarray(coverage[scan]) > 0.5)
        maps = torch.from_numpy(np.stack(volumes))
        return maps.float() if name == "mask" else maps

    @staticmethod
    def _check_mask(file: str | Path, scan: int, inside_mask: np.ndarray, covered: np.ndarray) -> None:
        if inside_mask.sum() < _LEAST_MASKED:
            raise InputError(
                f"{file}: expected a mask of {_LEAST_MASKED} voxels or more, got {inside_mask.sum()} on the grid of "
                "motion estimation; draw a larger one"
            )
        percent = 100 * (inside_mask & covered).sum() / max(1, covered.sum())
        logger.info("%s: %.3g %% of scan %d is inside the mask.", file, percent, scan)
        if inside_mask.sum() < _MASKED_WELL:
            logger.warning(
                "%s: the mask has %d voxels on the grid of motion estimation, expected %d or more; include tissue "
                "around the region of interest",
                file,
                inside_mask.sum(),
                _MASKED_WELL,
            )


class ScalePercentilesd(Transform):
    """Map two percentiles of each timepoint's intensities in the item's ``image`` ``(K, *S)`` to 0 and 1, and clip.

    Percentiles exclude voxels outside the field of view, if the item has ``coverage`` ``(K, *S)``, which is above 0.5
    inside; and the background of masked scans, where more than 1 % of the voxels equal the minimum. If the two
    percentiles are equal, minimum and maximum are used instead.

    Apart from these exclusions, MONAI's ScaleIntensityRangePercentilesd gives the same result, but sorts every volume
    twice, which takes as long as the network; computing both percentiles by one selection takes a twentieth of that.

    Args:
        lower, upper: percentiles, 0 to 100.
        storage: where to keep the result.

    Raises:
        InputError: If intensities, or their range, are not finite in float32.
    """

    def __init__(self, lower: float = 1.0, upper: float = 99.0, storage: Storage = IN_MEMORY):
        self.percentiles, self.storage = (lower, upper), storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {**data, "image": self._scaled(data["image"], data.get("coverage"))}

    def _scaled(self, series: torch.Tensor, coverage: torch.Tensor | None) -> torch.Tensor:
        number = len(series)
        timepoints = (slice(k, k + 1) for chunk in self.storage.chunks(number) for k in range(number)[chunk])
        parts = (
            (one, ((series[one] - low).div_(high - low).clamp_(0, 1),))
            for one, (low, high) in zip(timepoints, self._limits(series, coverage))
        )
        (scaled,) = self.storage.collect(parts, number, dim=0)
        return MetaTensor(scaled, meta=series.meta) if isinstance(series, MetaTensor) else scaled

    def _limits(self, series: torch.Tensor, coverage: torch.Tensor | None) -> Iterator[tuple[float, float]]:
        """Yield the intensities that are mapped to 0 and 1 in each timepoint."""
        for k in range(len(series)):
            yield self._limits_of(series[k], None if coverage is None else coverage[k])

    def _limits_of(self, volumes: torch.Tensor, coverage: torch.Tensor | None) -> tuple[float, float]:
        values = np.asarray(volumes).ravel()
        if coverage is not None and (covered := np.asarray(coverage).ravel() > 0.5).any():
            values = values[covered]
        low, high = intensity_range(values, self.percentiles)
        if not high - low < np.finfo(np.float32).max:  # also true for NaN
            raise InputError(
                f"image: expected finite intensities in float32's range, got {values.min():g} to {values.max():g}; "
                "replace NaN, and rescale the others"
            )
        return low, high if high > low else np.inf  # constant images become 0


class ScaleSeriesd(ScalePercentilesd):
    """Scale all timepoints alike, by the percentiles of the whole series, otherwise as `ScalePercentilesd`."""

    def _limits(self, series: torch.Tensor, coverage: torch.Tensor | None) -> Iterator[tuple[float, float]]:
        return repeat(self._limits_of(series, coverage))


class MatchPolarityd(Transform):
    """Invert timepoints in [0, 1] with contrast opposite to the majority, such as T2 among T1, so that their local
    correlation with the other timepoints becomes positive. Written images are not inverted.

    Timepoints of the item's ``image`` ``(K, *S)`` are inverted where its ``polarity`` ``(K,)`` is -1 instead of 1;
    without it nothing changes.

    Args:
        storage: where to keep the result.
    """

    def __init__(self, storage: Storage = IN_MEMORY):
        self.storage = storage

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        inverted = torch.as_tensor(item.get("polarity", 1.0)) < 0
        if inverted.any():
            signs = inverted.view(-1, 1, 1, 1)
            item["image"] = self.storage.map(lambda sign, x: torch.where(sign, 1 - x, x), signs, item["image"], dim=0)
        return item
