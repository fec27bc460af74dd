"""Cache of preprocessed series that detects changes of files, transforms and versions."""

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.data import PersistentDataset
from monai.utils import convert_to_tensor

from ... import __version__
from ..writing.output_folder import atomic_file, write_tensors
from .fingerprint import fingerprint

logger = logging.getLogger(__name__)


def _key(content: object) -> bytes:
    return fingerprint([__version__, content]).encode()


class CachedSeries(PersistentDataset):
    """Dataset that caches the results of all transforms before the first random one on disk.

    The name of an entry is a hash of its files (with sizes and modification times), the transforms with their settings,
    and the version of this package. Unreadable entries are recomputed.

    Args:
        data: items of a data list.
        transform: MONAI transforms.
        cache_dir: created if it does not exist.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Callable[..., Any], cache_dir: str | Path):
        super().__init__(data, transform, cache_dir, hash_func=_key, hash_transform=_key)

    def _cachecheck(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        file = self.cache_dir / f"{self.hash_func(item).decode()}{self.transform_hash}.pt"
        if file.is_file():
            try:
                return torch.load(file, weights_only=True)
            except Exception as error:  # pickle, zipfile and PyTorch raise their own types
                logger.warning("%s is corrupt (%s) and is recomputed", file, type(error).__name__)
        prepared = convert_to_tensor(self._pre_transform(deepcopy(item)), convert_numeric=False, track_meta=False)
        with atomic_file(file) as path:
            write_tensors(prepared, path)
        return prepared
