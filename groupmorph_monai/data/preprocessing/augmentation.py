"""Random transforms for training: selection of timepoints, motion, contrast, and points on surfaces."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandAffine, RandomizableTransform
from scipy.ndimage import distance_transform_edt

from ...errors import InputError
from ...space.filters import gaussian_filter
from ...space.sampling import displace, voxel_grid

_CELLS_VOXELS = (12.0, 40.0)  # minimum and maximum distance of the control points of random motion


class RandSurfaced(RandomizableTransform):
    """Replace the item's ``labels`` ``(K, *S)`` by surfaces: ``surface_points`` ``(K, P, 3)``, random points in voxel
    coordinates on the faces between a structure and its surroundings, and ``surface_distance`` ``(K, *S)``, the signed
    distance map of these faces in voxels, negative inside (VoxelMorph-diff, Section 3.1).

    Args:
        structure: the label; None for all labels above 0.
        points: P.
    """

    def __init__(self, structure: int | None = None, points: int = 5000):
        super().__init__()
        self.structure, self.points = structure, points

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        labels = np.asarray(item.pop("labels"))
        inside = labels == self.structure if self.structure is not None else labels > 0
        surfaces = [self._surface(structure) for structure in inside]
        item["surface_points"], item["surface_distance"] = (torch.stack(parts) for parts in zip(*surfaces))
        return item

    def _surface(self, inside: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        sides = []
        for axis in range(inside.ndim):
            between = np.argwhere(np.diff(inside.astype(np.int8), axis=axis)) + 0.5 * np.eye(inside.ndim)[axis]
            sides.append(np.concatenate([between, np.full((len(between), 1), axis)], axis=1))
        faces = np.concatenate(sides)
        if not len(faces):
            wanted = "any" if self.structure is None else self.structure
            raise InputError(
                f"labels: expected a surface of structure {wanted} in every timepoint; check the label maps"
            )
        chosen = faces[self.R.randint(len(faces), size=self.points)]
        centres, axes = chosen[:, :-1], chosen[:, -1].astype(int)
        offsets = self.R.uniform(-0.5, 0.5, centres.shape)  # anywhere on the face
        offsets[np.arange(len(centres)), axes] = 0
        # The distance to the nearest voxel on the other side is half a voxel more than that to the face in between.
        # With the sign, interpolation across the face gives 0 there.
        distance = np.where(inside, 0.5 - distance_transform_edt(inside), distance_transform_edt(~inside) - 0.5)
        return torch.from_numpy(centres + offsets).float(), torch.from_numpy(distance).float()


class RandTimepointsd(MapTransform, RandomizableTransform):
    """Select between ``least`` and ``most`` timepoints of a series, in random order, to train a network for any K.

    Args:
        keys: keys of series ``(K, *S)``; the same timepoints are selected from all.
        least, most: number of timepoints; series with fewer than ``most`` may keep all of theirs.

    Raises:
        InputError: If a series has fewer than ``least`` timepoints.
    """

    def __init__(self, keys: KeysCollection = "image", least: int = 2, most: int = 6):
        super().__init__(keys)
        self.least, self.most = least, most

    def randomize(self, timepoints: int) -> None:
        if timepoints < self.least:
            raise InputError(
                f"timepoints_least: expected at most the {timepoints} timepoints of a series, got {self.least}; choose "
                "a smaller number, or remove the series"
            )
        most = min(self.most, timepoints)
        self.chosen = self._choose(self.R.randint(self.least, most + 1), timepoints)

    def _choose(self, number: int, timepoints: int) -> np.ndarray:
        return self.R.permutation(timepoints)[:number]

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        self.randomize(len(item[self.first_key(item)]))
        for key in self.key_iterator(item):
            item[key] = item[key][torch.as_tensor(self.chosen)]
        return item


class RandIntervald(RandTimepointsd):
    """Select an interval of timepoints, in temporal order, of as many as `RandTimepointsd` selects."""

    def _choose(self, number: int, timepoints: int) -> np.ndarray:
        return self.R.randint(timepoints - number + 1) + np.arange(number)


def _stretched(points: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(points, size, mode="trilinear", align_corners=True)


class RandMotiond(RandomizableTransform):
    """Apply random smooth motion to every timepoint of the item's ``image`` ``(K, *S)`` and rescale the whole series,
    to train a network on finer and coarser motion and texture than the data set has.

    Args:
        prob: probability of moving and rescaling a series.
        motion_voxels: maximum displacement.
        zoom: maximum scale factor, drawn for each axis; the minimum is its inverse.
    """

    def __init__(self, prob: float = 0.8, motion_voxels: float = 4.0, zoom: float = 1.5):
        super().__init__(prob)
        self.motion_voxels, self.zoom = motion_voxels, zoom

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        if self.R.rand() < self.prob:
            series = torch.as_tensor(item["image"])
            shape = [-1, *[1] * (series.dim() - 1)]
            scale = self.zoom ** self.R.uniform(-1, 1, series.dim() - 1)
            centre = torch.tensor([(n - 1) / 2 for n in series.shape[1:]]).view(shape)
            resize = (voxel_grid(series.shape[1:], series) - centre) * torch.as_tensor(1 / scale - 1).view(shape)
            warped = [displace(x[None, None], (resize + self._motion(x)).to(x)[None]) for x in series]
            item["image"] = torch.cat(warped)[:, 0]
        return item

    def _motion(self, volume: torch.Tensor) -> torch.Tensor:
        """Draw a displacement ``(D, *S)``, voxels, whose slopes are at most 0.4, so that it does not fold."""
        cell = self.R.uniform(*_CELLS_VOXELS)
        size = [int(np.ceil(n / cell)) + 1 for n in volume.shape]
        points = torch.as_tensor(self.R.standard_normal((1, len(size), *size)), dtype=volume.dtype)
        # Smooth on a lattice that is just fine enough, which is faster than on every voxel.
        step = max(1.0, cell / 6)
        thinned = _stretched(points, [int(np.ceil(n / step)) for n in volume.shape])
        field = _stretched(gaussian_filter(thinned, cell / 3 / step), volume.shape)[0]
        field = field * (self.motion_voxels * self.R.rand() / field.abs().max())
        steepest = max(float(field.diff(dim=d).abs().max()) for d in range(1, field.dim()))
        return field * min(1.0, 0.4 / steepest)


class RandAffineMotiond(RandomizableTransform):
    """Apply a random affine transform to every timepoint of the item's ``image`` ``(K, *S)``, to train an affine
    network.

    Args:
        prob: probability of moving a series.
        rotation_radians: maximum rotation about each axis.
        shift_voxels: maximum shift along each axis.
        scale: maximum relative change of size along each axis.
    """

    def __init__(
        self,
        prob: float = 1.0,
        rotation_radians: float = 0.35,
        shift_voxels: float = 20.0,
        scale: float = 0.1,
    ):
        super().__init__(prob)
        self.move = RandAffine(
            prob=1.0,
            rotate_range=[rotation_radians] * 3,
            translate_range=[shift_voxels] * 3,
            scale_range=[scale] * 3,
            padding_mode="border",
        )

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        if self.R.rand() < self.prob:
            self.move.set_random_state(int(self.R.randint(2**31)))
            series = torch.as_tensor(item["image"])
            item["image"] = torch.cat([torch.as_tensor(self.move(x[None])) for x in series])
        return item


class RandContrastd(RandomizableTransform):
    """Change the contrast of every timepoint of the item's ``image`` ``(K, *S)``, intensities in [0, 1], by a random
    intensity curve, bias field and noise, so that a network does not rely on one kind of contrast (after SynthMorph,
    Hoffmann et al. 2022).

    Args:
        prob: probability of changing a timepoint; the other timepoints stay bit-identical.
        curve_prob: probability of a new intensity curve for a changed timepoint.
        control_points: number of segments of the curve, which is piecewise linear and need not be monotone.
        change: maximum weight of the new curve relative to the original intensities.
        bias: maximum a and b of the bias field ``exp(sum over axes of a x + b x^2)``, x from -1 to 1.
        noise: maximum standard deviation of the added noise.
    """

    def __init__(
        self,
        prob: float = 1.0,
        curve_prob: float = 0.7,
        control_points: int = 6,
        change: float = 0.7,
        bias: float = 0.4,
        noise: float = 0.04,
    ):
        super().__init__(prob)
        self.curve_prob, self.control_points, self.change = curve_prob, control_points, change
        self.bias, self.noise = bias, noise

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        series = torch.as_tensor(data["image"])
        varied = torch.stack([self._vary(x) if self.R.rand() < self.prob else x for x in series])
        return {**data, "image": varied}

    def _vary(self, volume: torch.Tensor) -> torch.Tensor:
        curve = torch.as_tensor(self.R.rand(self.control_points + 1), dtype=volume.dtype)
        share, noise = self.change * self.R.rand(), self.noise * self.R.rand()
        slope = torch.as_tensor(self.R.uniform(-self.bias, self.bias, (2, volume.dim())), dtype=volume.dtype)
        generator = torch.Generator().manual_seed(int(self.R.randint(2**31)))
        if self.R.rand() < self.curve_prob:
            position = volume.clamp(0, 1) * self.control_points
            left = position.floor().long().clamp_max(self.control_points - 1)
            drawn = torch.lerp(curve[left], curve[left + 1], position - left)
            volume = torch.lerp(volume, drawn, share)
        axes = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=volume.dtype) for n in volume.shape], indexing="ij")
        field = sum(a * x + b * x * x for a, b, x in zip(*slope, axes)).exp()
        return (volume * field + noise * torch.randn(volume.shape, generator=generator)).clamp(0, 1)
