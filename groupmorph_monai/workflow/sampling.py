"""Sampling of training series."""

from collections.abc import Iterator, Sized
from typing import Any, cast

import ignite.distributed as idist
import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler


class RandomDraws(DistributedSampler[int]):
    """Sampler that draws items with replacement, seeded by the epoch, which MONAI's engines set.

    Distributed processes share one sequence of draws: item n goes to process n modulo their number. W processes with
    batches of B items thus see the same batches as one process with batches of W B items.

    Args:
        dataset: dataset to draw from.
        number: number of items per process and epoch.
        seed: random seed.
    """

    def __init__(self, dataset: Dataset[Any], number: int, seed: int = 0):
        super().__init__(dataset, num_replicas=idist.get_world_size(), rank=idist.get_rank(), seed=seed)
        self.num_samples = number

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        items = len(cast(Sized, self.dataset))  # PyTorch's Dataset does not declare a length
        draws = torch.randint(items, (self.num_samples * self.num_replicas,), generator=generator)
        return iter(draws[self.rank :: self.num_replicas].tolist())
