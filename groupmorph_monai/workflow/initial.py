"""Initial alignment: one affine or rigid transform per timepoint, before any deformation."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor

from ..data.preprocessing.resampling import on_one_grid
from ..data.reading.readers import read_image, read_series
from ..data.series import Frame
from ..data.storage import IN_MEMORY, Storage
from ..errors import InputError
from ..space.grid import Grid, transform_points
from .affine_alignment import AffineSchedule, GroupAffine
from .network_affine import NetworkAffine

logger = logging.getLogger(__name__)

KINDS = ("affine", "rigid")


class AlignInitiald(Transform):
    """Read the item's ``image``, any input of `read_series`, and align its timepoints by affine or rigid transforms.
    Items without it, which are those of phantoms, do not change.

    Adds three entries, see `GroupAffine`: ``initial`` ``(K, 4, 4)``, float64, transforms from the common space to each
    timepoint in RAS mm; ``initial_confidence`` ``(K,)``, below `LEAST_CONFIDENCE` (0.25) where the alignment failed and
    the timepoint keeps its file's coordinates; ``polarity`` ``(K,)``, -1 for timepoints that are dark where most are
    bright, otherwise 1.

    If the item has a ``mask``, only voxels where it is above 0 count: one file, on the reference scan or else on the
    first scan; or one per timepoint.

    Args:
        kind: ``"affine"`` (12 parameters) or ``"rigid"`` (6) by optimisation; ``"network"`` by a trained network; or
            None or ``"none"`` for no alignment, where the item is unchanged.
        reference: index of the timepoint that defines the common space, with the identity as its transform. None for
            the mean of the transforms, whose logarithms then sum to 0; or, if the timepoints are on different grids,
            for this mean moved to where the first timepoint lies.
        timepoints: number of timepoints that the network requires; None for any.
        schedule: grids and steps of the optimisation; None for the defaults.
        network: network for ``"network"``.
        storage: where the series is kept.

    Raises:
        InputError: If ``kind`` is unknown, or ``"network"`` without a network.
    """

    def __init__(
        self,
        kind: str | None = "affine",
        reference: int | None = None,
        timepoints: int | None = None,
        schedule: AffineSchedule | None = None,
        network: NetworkAffine | None = None,
        storage: Storage = IN_MEMORY,
    ):
        if kind == "network" and network is None:
            raise InputError(
                "initial_alignment: expected a model with a network for it, got none; add --overlay models/avsm"
            )
        if kind not in (*KINDS, "network", None, "none"):
            raise InputError(f"initial_alignment: expected one of {', '.join(KINDS)} or none, got {kind!r}")
        self.kind = kind
        self.aligner: GroupAffine | NetworkAffine | None = network if kind == "network" else None
        if kind in KINDS:
            self.aligner = GroupAffine(kind, schedule, storage)
        self.reference, self.timepoints = reference, timepoints
        self.schedule = None if self.aligner is None else schedule or AffineSchedule()

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        item = dict(data)
        if self.aligner is None or "image" not in item:
            return item
        series = read_series(item["image"], self.timepoints, item.pop("description", None))
        frames, reference = series.frames, self.reference
        series.check_reference(reference)
        files = item.get("mask") or []
        files = [files] if isinstance(files, (str, Path)) else files
        masks: list[Frame | None] = [None] * len(frames)
        if len(files) == 1:
            masks[reference or 0] = read_image(files[0], labels=True)
        elif len(files) == len(frames):  # any other number is reported when the images are loaded
            masks = [read_image(file, labels=True) for file in files]
        maps, confidence, polarity = self.aligner(frames, masks)
        if reference is not None:
            equals_reference = [torch.equal(m, maps[reference]) for m in maps]
            maps = maps @ torch.linalg.inv(maps[reference])
            maps[equals_reference] = torch.eye(4, dtype=torch.float64)  # without rounding errors
        elif not on_one_grid([frame.grid for frame in frames]):
            maps = keeping_centre(maps, frames[0].grid)
        logger.info("Aligned %d scans by %s transforms.", len(frames), self.kind)
        return item | {"image": series, "initial": maps, "initial_confidence": confidence, "polarity": polarity}


def keeping_centre(maps: Tensor, grid: Grid) -> Tensor:
    """Translate the common space of maps ``(K, 4, 4)`` so that the first map leaves the centre of ``grid`` in place.

    The results lie on the first timepoint's grid, which would otherwise miss the anatomy if the position in its header
    is not that of the other timepoints.
    """
    translation = torch.eye(4, dtype=torch.float64)
    translation[:3, 3] = transform_points(torch.linalg.inv(maps[0]), grid.centre) - grid.centre
    return maps @ translation
