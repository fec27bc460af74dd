"""Bulk motion first: one affine or rigid map a timepoint, before any deformation."""

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from ..data.reading.readers import read_image, read_series
from ..data.storage import IN_MEMORY, Storage
from ..errors import InputError
from .affine_alignment import GroupAffine
from .network_affine import NetworkAffine

__all__ = ["AlignInitiald"]

logger = logging.getLogger(__name__)

KINDS = ("affine", "rigid")


class AlignInitiald(MapTransform):
    """Align whole timepoints, and make the item's series one that is read.

    Adds three entries, see `GroupAffine`: ``initial`` ``(K, 4, 4)``, float64, maps in RAS mm from the common space to
    each timepoint; ``initial_confidence`` ``(K,)``, below `LEAST_CONFIDENCE` (0.25) where no alignment was found and
    the timepoint stays where its file puts it; ``polarity`` ``(K,)``, -1 for timepoints that are dark where most are
    bright, otherwise 1.

    Where the item has a ``mask``, only what it is above 0 in counts: one file, on the reference scan or, without one,
    on the first; or one per timepoint.

    Args:
        keys: of the series, ``"image"``: what `read_series` takes.
        kind: ``"affine"`` (12 parameters) or ``"rigid"`` (6), by optimisation; ``"network"``, by a trained network; or
            none, which adds nothing.
        reference: index of the timepoint whose space is the common one: its map is the identity. Without one the common
            space is the maps' mean: their logarithms add up to 0.
        timepoints: the one K that the network takes; none for any.
        voxels: along the longest side of the coarse and of the fine grid of the optimisation.
        iterations: most steps on each.
        network: what ``"network"`` aligns by.
        storage: of the series.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        kind: str | None = "affine",
        reference: int | None = None,
        timepoints: int | None = None,
        voxels: tuple[int, int] = (24, 48),
        iterations: int = 12,
        network: NetworkAffine | None = None,
        storage: Storage = IN_MEMORY,
    ):
        super().__init__(keys, allow_missing_keys=True)  # a phantom has no files to bring together
        if kind == "network" and network is None:
            raise InputError(
                "initial_alignment: expected a model that brings a network, got none; add --overlay models/avsm"
            )
        if kind not in (*KINDS, "network", None, "none"):
            raise InputError(f"initial_alignment: expected one of {', '.join(KINDS)} or none, got {kind!r}")
        self.kind, self.aligner = kind, network if kind == "network" else None
        if kind in KINDS:
            self.aligner = GroupAffine(kind, tuple(voxels), iterations, storage=storage)
        self.reference, self.timepoints = reference, timepoints

    def __call__(self, data: Mapping[Hashable, object]) -> dict[Hashable, object]:
        item = dict(data)
        if self.aligner is None:
            return item
        for key in self.key_iterator(item):
            item[key] = read_series(item[key], self.timepoints, item.pop("description", None))
            frames, reference = item[key].frames, self.reference
            item[key].check_reference(reference)
            files = item.get("mask") or []
            files = [files] if isinstance(files, (str, Path)) else files
            masks = [None] * len(frames)
            if len(files) == 1:
                masks[reference or 0] = read_image(files[0], labels=True)
            elif len(files) == len(frames):  # whoever loads the images says what is wrong with another number
                masks = [read_image(file, labels=True) for file in files]
            maps, confidence, polarity = self.aligner(frames, masks)
            if reference is not None:
                same = [torch.equal(m, maps[reference]) for m in maps]
                maps = maps @ torch.linalg.inv(maps[reference])
                maps[same] = torch.eye(4, dtype=torch.float64)  # to the last digit
            logger.info("Brought %d whole scans together by %s maps.", len(frames), self.kind)
            item.update(initial=maps, initial_confidence=confidence, polarity=polarity)
        return item
