"""Bulk motion first: one affine or rigid map a timepoint, before any deformation."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from ..data.readers import Frame, read_image, read_series
from ..data.resampling import resample
from ..errors import InputError
from ..probability.likelihood import Likelihood
from ..probability.local_correlation import LocalCorrelation
from ..space.geometry import AffineTransform
from ..space.lattice import gradient

__all__ = ["AlignInitiald", "affine_generators"]

KINDS = ("affine", "rigid")


def affine_generators(kind: str) -> Tensor:
    """The matrices ``(P, 3, 4)`` along which a map may move: 3 translations and 3 rotations, or all 12."""
    if kind == "affine":
        return torch.eye(12, dtype=torch.float64).view(12, 3, 4)
    rotations = torch.zeros(3, 3, 4, dtype=torch.float64)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        rotations[axis, a, b], rotations[axis, b, a] = -1, 1
    translations = torch.zeros(3, 3, 4, dtype=torch.float64)
    translations[range(3), range(3), 3] = 1
    return torch.cat([rotations, translations])


class AlignInitiald(MapTransform):
    """Add ``initial`` ``(K, 4, 4)``, maps in RAS mm from the space of timepoint ``reference`` to each timepoint's own,
    and make the item's series one that is read.

    The start is the best of three: the files' own coordinates, the volumes' centres, or their centres of mass. From
    there Gauss-Newton steps on all maps at once raise the group's likelihood on two coarse grids; the reference's map
    is the identity. Where the files' own coordinates are as good, they stay. Where the item has a ``mask``, a file
    drawn on the first timepoint or one a timepoint, only what it is above 0 in counts.

    Args:
        keys: of the series, ``"image"``: what `read_series` takes.
        kind: ``"affine"`` (12 parameters), ``"rigid"`` (6), or none, which adds nothing.
        reference: index of the timepoint that stays.
        likelihood: of the volumes on one grid.
        timepoints: the one K that the network takes; none for any.
        voxels: along the longest side of each grid.
        iterations: steps on each.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        kind: str | None = "affine",
        reference: int | None = None,
        likelihood: Likelihood | None = None,
        timepoints: int | None = None,
        voxels: Sequence[int] = (24, 48),
        iterations: int = 12,
    ):
        super().__init__(keys, allow_missing_keys=True)  # a phantom has no files to bring together
        if kind not in (*KINDS, None, "none"):
            raise InputError(f"initial_alignment: expected one of {', '.join(KINDS)} or none, got {kind!r}")
        self.kind = None if kind == "none" else kind
        self.likelihood = likelihood or LocalCorrelation((2,), noise=0.02)
        self.reference = reference
        self.timepoints, self.voxels, self.iterations = timepoints, voxels, iterations

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        if self.kind is None:
            return item
        for key in self.key_iterator(item):
            item[key] = read_series(item[key], self.timepoints)
            files = item.get("mask") or []
            files = [files] if isinstance(files, (str, Path)) else files
            if len(files) not in (1, len(item[key].frames)):
                files = []  # whoever loads the images says what is wrong with so many
            maps = self.maps(item[key].frames, [read_image(file, labels=True) for file in files])
            if (self.reference or 0) < len(maps):  # LoadSeriesd says what is wrong with another
                maps = maps @ torch.linalg.inv(maps[self.reference or 0])
                maps[self.reference or 0] = torch.eye(4)  # to the last digit
            item["initial"] = maps
        return item

    def maps(self, frames: Sequence[Frame], masks: Sequence[Frame] = ()) -> Tensor:
        """The maps ``(K, 4, 4)``, float64, of frames on any grids, with no mask, one of the first frame, or one of
        each."""
        extent = max(np.linalg.norm(frames[0].affine[:3, :3], axis=0) * np.array(frames[0].data.shape))
        # What `resample` takes as it is; it would convert whole volumes again and again.
        frames = [Frame(np.ascontiguousarray(f.data, dtype=np.float64), f.affine, f.path) for f in frames]
        masks = [Frame((m.data > 0).astype(np.float64), m.affine, m.path) for m in masks]
        percentiles = [np.percentile(frame.data, (1, 50, 99.5)) for frame in frames]

        def on_grid(maps: Mapping[int, Tensor], voxels: int) -> tuple[Tensor, Tensor, Tensor]:
            grid = frames[0].grid.canonical().at_spacing(torch.tensor(3 * [extent / voxels]))
            volumes = []
            for k, matrix in maps.items():
                low, _, high = percentiles[k]
                volume = resample(frames[k], grid, AffineTransform(matrix))[0]
                volumes.append((volume - low) / max(high - low, 1e-6))
            inside = [resample(masks[k], grid, AffineTransform(m))[0] for k, m in maps.items() if k < len(masks)]
            inside = torch.from_numpy(np.stack(inside)).float() if inside else torch.ones(1, *grid.shape)
            return torch.from_numpy(np.stack(volumes))[None].clamp(0, 1).float(), inside[None], grid.affine

        headers = torch.eye(4, dtype=torch.float64).repeat(len(frames), 1, 1)
        maps = self._start(frames, [median for _, median, _ in percentiles], headers, on_grid)
        for voxels in self.voxels:
            for _ in range(self.iterations):
                maps = self._step(*on_grid(dict(enumerate(maps)), voxels), maps)
        before, after = (self._score(*on_grid(dict(enumerate(m)), self.voxels[-1])) for m in (headers, maps))
        return maps if after > before else headers

    def _score(self, volumes: Tensor, inside: Tensor, _: Tensor) -> float:
        """Log likelihood of a voxel that counts."""
        share = inside.mean(dim=1, keepdim=True)
        return float((share * self.likelihood.linearise(volumes).value).sum() / share.sum().clamp_min(1e-6))

    def _start(self, frames: Sequence[Frame], medians: Sequence[float], headers: Tensor, on_grid: Callable) -> Tensor:
        starts = headers.clone()
        middles = [(_centre(frame), _centre_of_mass(frame, median)) for frame, median in zip(frames, medians)]
        for k in range(1, len(frames)):
            tried = [headers[k]]
            for there, here in zip(middles[k], middles[0]):
                tried.append(headers[k].clone())
                tried[-1][:3, 3] = torch.from_numpy(there - here)
            scores = [self._score(*on_grid({0: headers[0], k: m}, self.voxels[0])) for m in tried]
            starts[k] = tried[int(np.argmax(scores))]
        return starts

    def _step(self, volumes: Tensor, inside: Tensor, grid: Tensor, maps: Tensor) -> Tensor:
        linear = self.likelihood.linearise(volumes)
        guide, score, weight = (x.double() for x in (linear.guide, linear.score, linear.weight))
        score, weight = score * inside, weight * inside
        # Coordinates in half sides of the volume about its centre keep the equations well scaled.
        voxels = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in volumes.shape[2:]], indexing="ij"))
        points = torch.einsum("de,eijk->dijk", grid[:3, :3], voxels) + grid[:3, 3].view(3, 1, 1, 1)
        centre = points.flatten(1).mean(dim=1)
        scale = (points.flatten(1) - centre[:, None]).abs().max()
        scaled = torch.cat([(points - centre.view(3, 1, 1, 1)) / scale, torch.ones_like(points[:1])]).flatten(1)
        frame = torch.eye(4, dtype=torch.float64)
        frame[:3, :3] /= scale
        frame[:3, 3] = -centre / scale
        generators = affine_generators(self.kind)
        steps = []
        for k in range(len(maps)):
            if k < guide.shape[1]:
                slope = torch.linalg.inv(grid[:3, :3]).T @ gradient(guide[:, k : k + 1])[0, 0].flatten(1) * scale
                effect = torch.einsum("dn,pde,en->pn", slope, generators, scaled)
            force = effect @ score[0, k].flatten()
            curvature = (effect * weight[0, k].flatten()) @ effect.T
            curvature = curvature + 1e-3 * curvature.trace() / len(curvature) * torch.eye(len(curvature))
            moved = torch.einsum("p,pde->de", torch.linalg.solve(curvature, force), generators)
            moved = torch.cat([moved, torch.zeros(1, 4, dtype=torch.float64)])
            steps.append(torch.linalg.inv(frame) @ torch.linalg.matrix_exp(moved) @ frame)
        back = torch.linalg.inv(steps[0])
        return torch.stack([m @ s @ back for m, s in zip(maps, steps)])


def _centre(frame: Frame) -> np.ndarray:
    return frame.affine[:3, :3] @ ((np.array(frame.data.shape) - 1) / 2) + frame.affine[:3, 3]


def _centre_of_mass(frame: Frame, median: float) -> np.ndarray:
    weight = np.clip(frame.data - median, 0, None)
    axes = [np.arange(n) for n in weight.shape]
    total = max(weight.sum(), 1e-12)
    mean = [(weight.sum(axis=tuple(a for a in range(3) if a != d)) * axes[d]).sum() / total for d in range(3)]
    return frame.affine[:3, :3] @ np.array(mean) + frame.affine[:3, 3]
