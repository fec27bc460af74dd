"""Which series a training sees."""

from collections.abc import Iterator

import ignite.distributed as idist
import torch
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

__all__ = ["RandomDraws"]


class RandomDraws(DistributedSampler):
    """Draw items with replacement, those of an epoch by its number, which MONAI's engines set.

    Processes that train together share one sequence of draws: item n goes to process n modulo their number. W of them
    with batches of B so see the batches that one process with batches of W B sees.

    Args:
        dataset: from which items are drawn.
        number: items that each process draws in an epoch.
        seed: of the run.
    """

    def __init__(self, dataset: Dataset, number: int, seed: int = 0):
        super().__init__(dataset, num_replicas=idist.get_world_size(), rank=idist.get_rank(), seed=seed)
        self.num_samples = number

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        draws = torch.randint(len(self.dataset), (self.num_samples * self.num_replicas,), generator=generator)
        return iter(draws[self.rank :: self.num_replicas].tolist())
