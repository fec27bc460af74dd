"""From an item of a data list to what the network takes."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..errors import InputError
from ..space.geometry import AffineTransform, Grid
from .breast import make_breast
from .dirlab import is_dirlab, read_dirlab_landmarks
from .hearts import make_heart
from .phantom import make_phantom
from .points import read_points
from .readers import read_image, read_series
from .resampling import resample, resample_series, working_grid
from .thorax import make_thorax

__all__ = ["ClipSeriesd", "LoadSeriesd", "MatchPolarityd", "ScalePercentilesd"]

_BACKGROUND_SHARE = 0.01
# By the item's key that holds their arguments.
_PHANTOMS = {"phantom": make_phantom, "breast": make_breast, "thorax": make_thorax}


class ClipSeriesd(MapTransform):
    """Read the item's series, where it is not read yet, and let intensities below ``least`` count as that: a scanner
    fills what it does not see with any number.

    Args:
        keys: of the series, ``"image"``: a `Series`, or what `read_series` takes. A phantom has none.
        least: in the files' units; none leaves the series as it is.
        timepoints: the one K that the network takes; none for any.
    """

    def __init__(self, keys: KeysCollection = "image", least: float | None = None, timepoints: int | None = None):
        super().__init__(keys, allow_missing_keys=True)
        self.least, self.timepoints = least, timepoints

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item) if self.least is not None else ():
            series = read_series(item[key], self.timepoints)
            frames = [replace(frame, data=np.maximum(frame.data, self.least)) for frame in series.frames]
            item[key] = replace(series, frames=tuple(frames))
        return item


class LoadSeriesd(MapTransform):
    """Load one series onto the working grid: ``image`` ``(K, *S)``, ``coverage`` ``(K, *S)``, 1 where a scan has seen
    the voxel and 0 elsewhere, the grid's ``affine`` ``(4, 4)``, voxels to RAS mm, and ``one_header``, whether all scans
    lie on one grid.

    The item's ``image`` is a `Series`, or what `read_series` takes: a 4D file, a folder, a list of 3D files. An item
    may hold ``phantom``, ``breast``, ``thorax`` or ``heart`` instead, the arguments of `make_phantom` and its like.
    ``landmarks``, a list of K point files or of one case of DIR-Lab's, or the phantom's own, becomes ``(K, P, 3)`` in
    RAS mm. ``initial`` ``(K, 4, 4)``, where the item has it, maps the common space to each timepoint's, RAS mm, before
    anything is interpolated. ``mask``, one file drawn on the reference or one per timepoint, becomes ``(1, *S)`` or
    ``(K, *S)``, 1 where the file is above 0; a mask that is None is taken out. ``labels``, one label map per timepoint
    (the phantom's lesions), becomes ``(K, *S)``.

    Args:
        keys: of the series, ``"image"``.
        spacing_mm: working spacing, as `working_grid` takes it. A phantom keeps its own.
        timepoints: the one K that the network takes; None for any.
        reference: index of the scan that the others move onto; None for their common mean.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        spacing_mm: Sequence[float] | float | str | None = None,
        timepoints: int | None = None,
        reference: int | None = None,
    ):
        super().__init__(keys)
        self.spacing_mm, self.timepoints, self.reference = spacing_mm, timepoints, reference

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        key = self.keys[0]  # which a phantom does not have yet
        if "heart" in item:
            heart = make_heart(**item.pop("heart"))
            return {**item, **self._made(key, heart)}
        for name, make in _PHANTOMS.items():
            if name in item:
                phantom = make(**item.pop(name))
                affine = phantom["affine"].float()
                landmarks = phantom["landmarks"] @ affine[:3, :3].T + affine[:3, 3]
                return {**item, **self._made(key, phantom), "landmarks": landmarks, "labels": phantom["lesion_mask"]}
        maps = {name: item.pop(name) for name in ("mask", "labels") if name in item}
        series = read_series(item[key], self.timepoints)
        series.check_reference(self.reference)
        initial = item.get("initial")
        grid = working_grid([frame.grid for frame in series.frames], self.spacing_mm, self.reference, initial)
        if min(grid.shape) < 4:
            raise InputError(
                f"spacing_mm: expected one that leaves 4 voxels along every axis, got {self.spacing_mm}, which "
                f"leaves {min(grid.shape)}; choose a smaller one"
            )
        item[key], item["coverage"] = resample_series(series, grid, initial)
        item["affine"] = grid.affine
        item["one_header"] = all(frame.grid.matches(series.frames[0].grid, 1e-2) for frame in series.frames)
        for name, files in maps.items():
            if files is not None:
                item[name] = self._label_maps(name, files, grid, len(series.frames), initial)
        if "landmarks" in item:
            item["landmarks"] = self._landmarks(item["landmarks"], len(series.frames))
        return item

    @staticmethod
    def _made(key: Hashable, series: Mapping[str, torch.Tensor]) -> dict[Hashable, object]:
        image = MetaTensor(series["image"], affine=series["affine"])
        return {key: image, "coverage": torch.ones(image.shape), "affine": series["affine"]}

    def _label_maps(
        self,
        name: str,
        files: str | Path | Sequence[str | Path],
        grid: Grid,
        timepoints: int,
        initial: torch.Tensor | None,
    ) -> torch.Tensor:
        files = [files] if isinstance(files, (str, Path)) else files
        if len(files) not in ((1, timepoints) if name == "mask" else (timepoints,)):
            one = "one file, or " if name == "mask" else ""
            raise InputError(f"{name}: expected {one}one for each of the {timepoints} scans, got {len(files)}")
        maps = []
        for number, file in enumerate(files):
            frame = read_image(file, labels=True)
            data = (frame.data > 0 if name == "mask" else frame.data).astype(np.int32)
            scan = (self.reference or 0) if len(files) == 1 else number
            transform = None if initial is None else AffineTransform(initial[scan])
            values, seen = resample(replace(frame, data=data), grid, transform, nearest=True)
            maps.append(np.where(seen, values, 0))  # beyond the file's border is nothing
            if not maps[-1].any():
                raise InputError(f"{file}: expected a {name} above 0 somewhere in its scan, got none; check the file")
        maps = torch.from_numpy(np.stack(maps))
        return maps.float() if name == "mask" else maps

    @staticmethod
    def _landmarks(files: Sequence[str], timepoints: int) -> torch.Tensor:
        if len(files) == 1 and is_dirlab(files[0]):
            return torch.as_tensor(read_dirlab_landmarks(files[0]), dtype=torch.float32)
        if len(files) != timepoints:
            raise InputError(
                f"{files[0]}: expected landmarks of each of the series' {timepoints} scans, got {len(files)} files; "
                "add what is missing"
            )
        points = [read_points(file) for file in files]
        for file, read in zip(files, points):
            if len(read) != len(points[0]):
                raise InputError(
                    f"{file}: expected the {len(points[0])} points of {files[0]}, got {len(read)}; number them alike"
                )
        return torch.as_tensor(np.stack(points), dtype=torch.float32)


class ScalePercentilesd(MapTransform):
    """Map two percentiles of the intensities to 0 and 1, and what lies beyond to these.

    Percentiles are those of what the scan shows. What does not count: voxels outside the field of view, where the item
    has ``coverage`` ``(K, *S)``, above 0.5 where the timepoint has seen the voxel; and the background of a masked scan,
    the one value that is the minimum and fills more than 1 % of the voxels. Where the two percentiles are equal,
    minimum and maximum take their place.

    Otherwise MONAI's ScaleIntensityRangePercentilesd gives the same. It sorts every volume twice, which takes as long
    as the network; selecting both percentiles at once takes a twentieth of that.

    Args:
        keys: of series ``(K, *S)``.
        lower, upper: percentiles, 0 to 100.
        per_timepoint: each timepoint by its own percentiles, or all by those of the series.
    Raises: InputError where intensities, or their range, are no finite float32 numbers.
    """

    def __init__(
        self, keys: KeysCollection = "image", lower: float = 1.0, upper: float = 99.0, per_timepoint: bool = True
    ):
        super().__init__(keys)
        self.percentiles, self.per_timepoint = (lower, upper), per_timepoint

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item):
            series, coverage = item[key], item.get("coverage")
            seen = np.broadcast_to(True, series.shape) if coverage is None else np.asarray(coverage) > 0.5
            if self.per_timepoint:
                limits = [self._limits(*part, key) for part in zip(np.asarray(series), seen)]
            else:
                limits = [self._limits(np.asarray(series), seen, key)] * len(series)
            parts = [((part - low) / (high - low)).clamp(0, 1) for part, (low, high) in zip(series, limits)]
            item[key] = torch.stack(parts)
        return item

    def _limits(self, volumes: np.ndarray, seen: np.ndarray, key: Hashable) -> tuple[float, float]:
        """The intensities that become 0 and 1."""
        values = volumes[seen] if seen.any() else volumes.ravel()
        background = values == values.min()
        shown = values[~background] if _BACKGROUND_SHARE < background.mean() < 1 else values
        low, high = np.percentile(shown, self.percentiles)
        # The last is of a mask, with one value beside the background.
        for least, most in ((shown.min(), shown.max()), (values.min(), values.max())):
            if low == high:
                low, high = least, most
        if not float(high) - float(low) < np.finfo(np.float32).max:  # NaN is not below anything
            raise InputError(
                f"{key}: expected finite intensities in float32's range, got {values.min():g} to {values.max():g}; "
                "replace NaN, and rescale the others"
            )
        return float(low), float(high) if high > low else np.inf  # one value everywhere becomes 0


class MatchPolarityd(MapTransform):
    """Invert the timepoints, in [0, 1], that are dark where most are bright, such as T2 beside T1: their local
    correlation with the others is then positive. What is written keeps its intensities.

    Args:
        keys: of series ``(K, *S)``; the item's ``polarity`` ``(K,)``, -1 or 1, says which. Without one nothing changes.
    """

    def __init__(self, keys: KeysCollection = "image"):
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        inverted = torch.as_tensor(item.get("polarity", 1.0)) < 0
        for key in self.key_iterator(item) if inverted.any() else ():
            item[key] = torch.where(inverted.view(-1, 1, 1, 1), 1 - item[key], item[key])
        return item
