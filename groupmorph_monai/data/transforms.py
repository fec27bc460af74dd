"""From an item of a data list to what the network takes."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform, ScaleIntensityRange
from scipy.ndimage import distance_transform_edt

from ..errors import InputError
from ..space.grid import displace, voxel_grid
from ..space.lattice import gaussian_filter
from .hearts import make_heart
from .phantom import make_phantom
from .readers import Series, read_image, read_points, read_series, resample, resample_series, working_grid

__all__ = ["LoadSeriesd", "RandContrastd", "RandMotiond", "RandSurfaced", "RandTimepointsd", "ScalePercentilesd"]


class LoadSeriesd(MapTransform):
    """Load one series: ``image`` ``(K, *S)`` on the first timepoint's grid at the working spacing, and that grid's
    ``affine`` ``(4, 4)``, voxels to RAS mm.

    The item's ``image`` is a `Series`, or what `read_series` takes: a 4D file, a folder, a list of 3D files. An item
    may hold ``phantom`` or ``heart`` instead, the arguments of `make_phantom` or `make_heart`. ``landmarks``, a list of
    K point files (RAS mm) or the phantom's own, becomes ``(K, P, 3)`` in voxels of the loaded grid. ``initial`` ``(K,
    4, 4)``, where the item has it, maps the grid's space to each timepoint's, RAS mm, before anything is interpolated.
    ``mask``, a file drawn on the first timepoint or one a timepoint, becomes ``(1, *S)`` or ``(K, *S)``, 1 where the
    file is above 0; a mask that is None is taken out. ``labels``, one label map a timepoint (the phantom's lesions),
    becomes ``(K, *S)``.

    Args:
        keys: of the series, ``"image"``.
        spacing_mm: working spacing, as `working_grid` takes it. A phantom keeps its own.
        timepoints: the one K that the network takes; none for any.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        spacing_mm: Sequence[float] | float | str | None = None,
        timepoints: int | None = None,
    ):
        super().__init__(keys)
        self.spacing_mm, self.timepoints = spacing_mm, timepoints

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        if "heart" in item:
            heart = make_heart(**item.pop("heart"))
            return {**item, self.keys[0]: MetaTensor(heart["image"], affine=heart["affine"]), "affine": heart["affine"]}
        if "phantom" in item:
            phantom = make_phantom(**item.pop("phantom"))
            item[self.keys[0]] = MetaTensor(phantom["image"], affine=phantom["affine"])
            return {**item, **{key: phantom[key] for key in ("affine", "landmarks")}, "labels": phantom["lesion_mask"]}
        maps = {name: item.pop(name) for name in ("mask", "labels") if name in item}
        maps = {name: files for name, files in maps.items() if files is not None}
        for key in self.keys:
            series = item[key] if isinstance(item[key], Series) else read_series(item[key], self.timepoints)
            affine, size = working_grid(series.frames[0], self.spacing_mm)
            item[key] = resample_series(series, affine, size, item.get("initial"))
            item["affine"] = torch.as_tensor(affine)
            for name, files in maps.items():
                number = len(series.frames)
                item[name] = self._label_maps(name, files, affine, size, number, item.get("initial"))
        if "landmarks" in item:
            item["landmarks"] = self._landmarks(item["landmarks"], affine)
        return item

    @staticmethod
    def _label_maps(
        name: str,
        files: str | Path | Sequence[str | Path],
        affine: np.ndarray,
        size: Sequence[int],
        timepoints: int,
        initial: object,
    ) -> torch.Tensor:
        files = [files] if isinstance(files, (str, Path)) else files
        if len(files) not in ((1, timepoints) if name == "mask" else (timepoints,)):
            one = "one file, or " if name == "mask" else ""
            raise InputError(f"{name}: expected {one}one for each of the {timepoints} scans, got {len(files)}")
        maps = []
        for number, file in enumerate(files):
            frame = read_image(file, labels=True)
            data = frame.data > 0 if name == "mask" else frame.data
            grid = affine if initial is None else np.asarray(initial[number]) @ affine
            maps.append(resample(data[None].astype(np.int32), frame.affine, grid, size, nearest=True)[0])
            if not maps[-1].any():
                raise InputError(f"{file}: expected a {name} above 0 somewhere in its scan, got none; check the file")
        maps = torch.from_numpy(np.stack(maps))
        return maps.float() if name == "mask" else maps

    @staticmethod
    def _landmarks(files: Sequence[str], affine: np.ndarray) -> torch.Tensor:
        to_voxel = np.linalg.inv(affine)
        points = np.stack([read_points(file) for file in files])
        return torch.as_tensor(points @ to_voxel[:3, :3].T + to_voxel[:3, 3], dtype=torch.float32)


class ScalePercentilesd(MapTransform):
    """Map two percentiles of the intensities to 0 and 1, and what lies beyond to these.

    MONAI's ScaleIntensityRangePercentilesd gives the same and sorts every volume twice, which takes as long as the
    network; selecting both percentiles at once takes a twentieth of that.

    Args:
        keys: of series ``(K, *S)``.
        lower, upper: percentiles, 0 to 100.
        per_timepoint: each timepoint by its own percentiles, or all by those of the series.
    """

    def __init__(
        self, keys: KeysCollection = "image", lower: float = 1.0, upper: float = 99.0, per_timepoint: bool = True
    ):
        super().__init__(keys)
        self.percentiles, self.per_timepoint = (lower, upper), per_timepoint

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item):
            series = item[key]
            parts = [self._scale(part) for part in (series if self.per_timepoint else series[None])]
            item[key] = torch.stack(parts) if self.per_timepoint else parts[0]
        return item

    def _scale(self, volumes: torch.Tensor) -> torch.Tensor:
        low, high = np.percentile(np.asarray(volumes), self.percentiles)
        return ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(volumes)


class RandSurfaced(MapTransform, RandomizableTransform):
    """From label maps to surfaces: ``surface_points`` ``(K, P, 3)``, drawn anew at each call from the faces between the
    voxels of a structure and the others, in voxel coordinates, and ``surface_distance`` ``(K, *S)``, voxels from each
    voxel to those faces, below 0 inside (VoxelMorph-diff, Section 3.1).

    Args:
        keys: of label maps ``(K, *S)``, which are taken out.
        structure: the label; none for all above 0.
        points: P.
    """

    def __init__(self, keys: KeysCollection = "labels", structure: int | None = None, points: int = 5000):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self)
        self.structure, self.points = structure, points

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item):
            labels = np.asarray(item.pop(key))
            inside = labels == self.structure if self.structure is not None else labels > 0
            found = [self._surface(structure) for structure in inside]
            item["surface_points"], item["surface_distance"] = (torch.stack(parts) for parts in zip(*found))
        return item

    def _surface(self, inside: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        faces = []
        for axis in range(inside.ndim):
            between = np.argwhere(np.diff(inside.astype(np.int8), axis=axis)) + 0.5 * np.eye(inside.ndim)[axis]
            faces.append(np.concatenate([between, np.full((len(between), 1), axis)], axis=1))
        faces = np.concatenate(faces)
        if not len(faces):
            wanted = "any" if self.structure is None else self.structure
            raise InputError(
                f"labels: expected a surface of structure {wanted} in every timepoint; check the label maps"
            )
        chosen = faces[self.R.randint(len(faces), size=self.points)]
        places, axes = chosen[:, :-1], chosen[:, -1].astype(int)
        spread = self.R.uniform(-0.5, 0.5, places.shape)  # anywhere on the face
        spread[np.arange(len(places)), axes] = 0
        # A voxel's distance to the next one on the other side is half a voxel more than that to the face between. The
        # sign lets interpolation across the face find 0 there.
        distance = np.where(inside, 0.5 - distance_transform_edt(inside), distance_transform_edt(~inside) - 0.5)
        return torch.from_numpy(places + spread).float(), torch.from_numpy(distance).float()


class RandTimepointsd(MapTransform, RandomizableTransform):
    """Between ``least`` and ``most`` of a series' timepoints, in random order: what teaches a network for any K.

    Args:
        keys: of series ``(K, *S)``, cut alike.
        least, most: number of timepoints; a shorter series keeps all of its own.
        in_order: neighbours in time, in their order, instead.
    """

    def __init__(self, keys: KeysCollection = "image", least: int = 2, most: int = 6, in_order: bool = False):
        super().__init__(keys)
        self.least, self.most, self.in_order = least, most, in_order

    def randomize(self, timepoints: int) -> None:
        most = min(self.most, timepoints)
        number = self.R.randint(min(self.least, most), most + 1)
        if self.in_order:
            self.chosen = self.R.randint(timepoints - number + 1) + np.arange(number)
        else:
            self.chosen = self.R.permutation(timepoints)[:number]

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        self.randomize(len(item[self.first_key(item)]))
        for key in self.key_iterator(item):
            item[key] = item[key][torch.as_tensor(self.chosen)]
        return item


class RandMotiond(MapTransform, RandomizableTransform):
    """Another smooth motion for every timepoint of a series, and for all of them together another size: what teaches a
    network motions and textures finer and coarser than those of the series that there are.

    Args:
        keys: of series ``(K, *S)``.
        prob: of moving and resizing a series.
        motion_voxels: largest displacement, at most.
        cells_voxels: least and most distance of the points between which the motion is smooth.
        zoom: largest factor of the size, along each axis by itself; its inverse is the smallest.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.8,
        motion_voxels: float = 4.0,
        cells_voxels: Sequence[float] = (12.0, 40.0),
        zoom: float = 1.5,
    ):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.motion_voxels, self.cells_voxels, self.zoom = motion_voxels, cells_voxels, zoom

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item):
            if self.R.rand() < self.prob:
                series = torch.as_tensor(item[key])
                shape = [-1, *[1] * (series.dim() - 1)]
                scale = self.zoom ** self.R.uniform(-1, 1, series.dim() - 1)
                centre = torch.tensor([(n - 1) / 2 for n in series.shape[1:]]).view(shape)
                resize = (voxel_grid(series.shape[1:], series) - centre) * torch.as_tensor(1 / scale - 1).view(shape)
                moved = [displace(x[None, None], (resize + self._motion(x)).to(x)[None]) for x in series]
                item[key] = torch.cat(moved)[:, 0]
        return item

    def _motion(self, volume: torch.Tensor) -> torch.Tensor:
        """``(D, *S)`` voxels, no steeper than 0.4: it does not fold."""
        cell = self.R.uniform(*self.cells_voxels)
        size = [int(np.ceil(n / cell)) + 1 for n in volume.shape]
        points = torch.as_tensor(self.R.standard_normal((1, len(size), *size)), dtype=volume.dtype)
        smooth = torch.nn.functional.interpolate(points, volume.shape, mode="trilinear", align_corners=True)
        field = gaussian_filter(smooth, cell / 3)[0]
        field = field * (self.motion_voxels * self.R.rand() / field.abs().max())
        steepest = max(float(field.diff(dim=d).abs().max()) for d in range(1, field.dim()))
        return field * min(1.0, 0.4 / steepest)


class RandContrastd(MapTransform, RandomizableTransform):
    """Another intensity curve, bias field and noise level for every timepoint of a series in [0, 1]: what teaches a
    network not to rely on one kind of contrast (the idea of SynthMorph, Hoffmann et al. 2022).

    Args:
        keys: of series ``(K, *S)``.
        prob: of a new curve, for each timepoint.
        control_points: of the curve, whose values are drawn anew and joined linearly: it need not rise.
        change: share of the drawn curve beside the old intensities, at most.
        noise: standard deviation of the added noise, at most.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.7,
        control_points: int = 6,
        change: float = 0.7,
        noise: float = 0.04,
    ):
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.control_points, self.change, self.noise = control_points, change, noise

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = torch.stack([self._vary(volume) for volume in torch.as_tensor(item[key])])
        return item

    def _vary(self, volume: torch.Tensor) -> torch.Tensor:
        curve = torch.as_tensor(self.R.rand(self.control_points + 1), dtype=volume.dtype)
        share, noise = self.change * self.R.rand(), self.noise * self.R.rand()
        slope = torch.as_tensor(self.R.uniform(-0.4, 0.4, (2, volume.dim())), dtype=volume.dtype)
        seed = int(self.R.randint(2**31))
        if self.R.rand() < self.prob:
            position = volume.clamp(0, 1) * self.control_points
            left = position.floor().long().clamp_max(self.control_points - 1)
            drawn = torch.lerp(curve[left], curve[left + 1], position - left)
            volume = torch.lerp(volume, drawn, share)
        axes = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=volume.dtype) for n in volume.shape], indexing="ij")
        bias = sum(a * x + b * x * x for a, b, x in zip(*slope, axes)).exp()
        generator = torch.Generator().manual_seed(seed)
        return (volume * bias + noise * torch.randn(volume.shape, generator=generator)).clamp(0, 1)
