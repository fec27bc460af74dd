"""The network on more scans than fit into memory."""

from functools import partial

import torch
from torch import Tensor, nn

from ..data.storage import Storage
from ..networks.group_set_vae import GroupSetVAE, twice_as_fine

__all__ = ["streamed_imputation", "streamed_mean", "streams"]


def streams(network: nn.Module) -> bool:
    """Whether the timepoints meet in nothing but means, so that the network can take them a few at a time."""
    return isinstance(network, GroupSetVAE) and network.velocities == 1


def streamed_imputation(images: Tensor, coverage: Tensor, storage: Storage) -> Tensor:
    """`impute`, where ``coverage`` ``(1, K, *S)`` is not above 0.5, a few timepoints at a time."""
    total = storage.sum(lambda x, seen: (x * (seen > 0.5)).sum(dim=1, keepdim=True), images, coverage)
    number = storage.sum(lambda seen: (seen > 0.5).sum(dim=1, keepdim=True), coverage)
    mean = total / number.clamp_min(1)
    return storage.map(lambda x, seen: torch.where(seen > 0.5, x, mean), images, coverage)


@torch.no_grad()
def streamed_mean(network: GroupSetVAE, images: Tensor, storage: Storage) -> Tensor:
    """Compute the mean of the posterior, ``(1, K, 3, *ceil(S / 4))``, as the network does, a few timepoints at a time.

    Args:
        network: one that `streams`.
        images: ``(1, K, *S)``.
        storage: of features and z.
    """
    number = images.shape[1]
    parts = ((c, tuple(network.encode(network.padded(images[:, c])[0, :, None]))) for c in storage.chunks(number))
    features = storage.collect(parts, number, dim=0)
    z = storage.map(lambda part: torch.zeros_like(part[:, :3], dtype=images.dtype), features[3], dim=0)
    for level, look in enumerate(network.look):
        if level in (1, 2):
            z = storage.map(twice_as_fine, z, dim=0)
        for _ in range(network.looks[level]):
            z = _looked(look, features[3 - level], z, storage)
    return storage.map(lambda part: network.cropped(network.bounded(part), images).float(), z, dim=0)[None]


def _looked(look: nn.Module, features: Tensor, z: Tensor, storage: Storage) -> Tensor:
    """z after one look, in which the timepoints meet three times: in the mean of their features, in that of how much
    they differ from it, and in that of z."""
    warped = storage.map(look.warped, features, z, dim=0)
    mean = storage.mean(warped, dim=0)[None]
    slope, weighted = look.slopes(mean)
    compared = partial(_compared, look, mean, weighted)
    disagreement = storage.sum(lambda part: compared(part)[1].sum(dim=1), warped, dim=0) / len(z)

    def moved(part: Tensor, own: Tensor) -> Tensor:
        return look.moved(slope, weighted, *compared(part), disagreement, own)[0]

    z = storage.map(moved, warped, z, dim=0)
    shared = storage.mean(z, dim=0)
    return storage.map(lambda part: part - shared, z, dim=0)


def _compared(look: nn.Module, mean: Tensor, weighted: Tensor, warped: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return look.compared(warped[None], mean, weighted)
