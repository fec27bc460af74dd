"""Network inference on more scans than fit into memory."""

from collections.abc import Sequence
from functools import partial
from typing import TypeGuard, cast

import torch
from torch import Tensor

from ..data.storage import Storage
from ..networks.group_set_vae import GroupSetVAE, Update
from ..networks.layers import cropped
from ..networks.scriptable_geometry import upsampled


def streams(network: object) -> TypeGuard[GroupSetVAE]:
    """Check whether only means couple the timepoints, so that the network can process a few at a time."""
    return isinstance(network, GroupSetVAE) and network.velocities == 1


def streamed_imputation(images: Tensor, coverage: Tensor, storage: Storage) -> Tensor:
    """Apply `impute` where ``coverage`` ``(1, K, *S)`` is at most 0.5, a few timepoints at a time."""
    total = storage.sum(lambda x, c: (x * (c > 0.5)).sum(dim=1, keepdim=True), images, coverage)
    count = storage.sum(lambda c: (c > 0.5).sum(dim=1, keepdim=True), coverage)
    mean = total / count.clamp_min(1)
    return storage.map(lambda x, c: torch.where(c > 0.5, x, mean), images, coverage)


@torch.no_grad()
def streamed_mean(network: GroupSetVAE, images: Tensor, storage: Storage) -> Tensor:
    """Compute the network's posterior mean, ``(1, K, 3, *ceil(S / 4))``, a few timepoints at a time.

    Args:
        network: network for which `streams` is true.
        images: ``(1, K, *S)``.
        storage: where features and z are kept.
    """
    timepoints = images.shape[1]
    parts = ((c, tuple(network.encode(network.padded(images[:, c])[0, :, None]))) for c in storage.chunks(timepoints))
    features = storage.collect(parts, timepoints, dim=0)
    z = storage.map(lambda part: torch.zeros_like(part[:, :3], dtype=images.dtype), features[3], dim=0)
    for level, update in enumerate(cast(Sequence[Update], network.look)):
        if level in (1, 2):
            z = storage.map(upsampled, z, dim=0)
        for _ in range(network.updates[level]):
            z = _updated(update, features[3 - level], z, storage)
    for _ in range(network.updates[4]):
        z = _updated_by_images(network, images[0], z, storage)
    return storage.map(lambda part: cropped(network.bounded(part), images, network.stride).float(), z, dim=0)[None]


def _updated(update: Update, features: Tensor, z: Tensor, storage: Storage) -> Tensor:
    """Update z by one of the network's steps, which couples the timepoints by three means: of their features, of their
    features' deviation from that mean, and of z."""
    warped = storage.map(update.warped, features, z, dim=0)
    mean = storage.mean(warped, dim=0)[None]
    slope, weighted = update.slopes(mean)
    compared = partial(_compared, update, mean, weighted)
    disagreement = storage.sum(lambda part: compared(part)[1].sum(dim=1), warped, dim=0) / len(z)

    def next_z(part: Tensor, z_part: Tensor) -> Tensor:
        return update.updated(slope, weighted, *compared(part), disagreement, z_part)[0]

    return _without_mean(storage.map(next_z, warped, z, dim=0), storage)


def _updated_by_images(network: GroupSetVAE, images: Tensor, z: Tensor, storage: Storage) -> Tensor:
    """Update z by the images ``(K, *S)``, which couples the timepoints by the mean of the warped images, by the mean of
    their squared deviation from it, and by that of z."""
    update = network.image_update
    warped = storage.map(lambda x, z_part: update.warped(network.padded(x[:, None]), z_part), images, z, dim=0)
    mean = storage.mean(warped, dim=0)[None]
    squared = storage.sum(lambda part: update.squared_residual(part[None], mean).sum(dim=1), warped, dim=0) / len(z)
    shared = update.normal_matrices(mean, update.noise(squared, len(z)))
    updated = storage.map(lambda part, z_part: update.updated(part[None], mean, *shared, z_part), warped, z, dim=0)
    return _without_mean(updated, storage)


def _without_mean(z: Tensor, storage: Storage) -> Tensor:
    shared = storage.mean(z, dim=0)
    return storage.map(lambda part: part - shared, z, dim=0)


def _compared(update: Update, mean: Tensor, weighted: Tensor, warped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return update.compared(warped[None], mean, weighted)
