"""Where tensors of all K timepoints are kept: in memory, or in files of which a few timepoints are in memory."""

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["IN_MEMORY", "Storage"]

_ALIGNED, _ARRAYS_IN_A_FILE = 64, 32  # bytes; see `Storage.keep`


class Storage:
    """Tensors of all K timepoints, and loops over so many of them at a time.

    Without ``scans_at_once`` the tensors are ordinary ones and a loop has one chunk: all timepoints. With it they are
    mapped from temporary files, and what a chunk has touched leaves the memory of the process at the end of the chunk:
    memory no longer grows with K. The files have no names, so that they are gone however the process ends.

    Args:
        scans_at_once: timepoints in memory at a time; None for all.
        folder: where the files are made, or the first folder above it that there is; None is the system's folder for
            temporary files. It should not lie in memory, as ``/tmp`` may.
    Raises: InputError where ``scans_at_once`` is no positive number.
    """

    def __init__(self, scans_at_once: int | None = None, folder: str | os.PathLike | None = None):
        if scans_at_once is not None and (not isinstance(scans_at_once, int) or scans_at_once < 1):
            raise InputError(f"scans_at_once: expected 1 or more, or null for all that fit, got {scans_at_once!r}")
        self.scans_at_once, self.folder = scans_at_once, folder
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._block, self._used = np.empty(0, np.uint8), 0

    def chunks(self, number: int) -> Iterator[slice]:
        """Slices that together cover ``number`` timepoints, in order."""
        step = self.scans_at_once or max(number, 1)
        for start in range(0, number, step):
            yield slice(start, min(start + step, number))
            self.release()

    def release(self) -> None:
        """Drop mapped pages from the memory of the process; the files, or the system's cache of them, hold the data."""
        if hasattr(mmap, "MADV_DONTNEED"):  # Windows, which lacks it, takes pages away by itself
            for mapped in list(self._maps):
                mapped.madvise(mmap.MADV_DONTNEED)

    def empty(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Make a tensor whose values are not set. Raises: InputError where there is no room on the disk."""
        shape = tuple(shape)
        if self.scans_at_once is None:
            return torch.empty(shape, dtype=dtype, device=device)
        size = max(1, math.prod(shape) * dtype.itemsize)
        try:
            with tempfile.TemporaryFile(dir=self._existing_folder()) as file:
                # A map over room that is not there ends the process at its first write.
                os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise InputError(
                f"{self._existing_folder()}: expected {size / 1e9:.3g} GB for scans that do not fit into memory, got "
                f"{error.strerror}; make room there, or choose another output folder"
            ) from error
        self._maps.add(mapped)
        return torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape)).view(shape)

    def empty_array(self, shape: Iterable[int], dtype: np.dtype | type) -> np.ndarray:
        """`empty` as a NumPy array."""
        return self.empty(shape, torch.from_numpy(np.empty(0, dtype)).dtype).numpy()

    def keep(self, values: np.ndarray) -> np.ndarray:
        """Copy one timepoint's array to a file, several to each, as a process may not hold many open; in memory it
        stays what it is."""
        if self.scans_at_once is None:
            return values
        size = -(-values.nbytes // _ALIGNED) * _ALIGNED
        if self._used + size > self._block.nbytes:
            self._block, self._used = self.empty_array((_ARRAYS_IN_A_FILE * size,), np.uint8), 0
        kept = self._block[self._used : self._used + values.nbytes].view(values.dtype).reshape(values.shape)
        kept[...] = values
        self._used += size
        self.release()
        return kept

    def _existing_folder(self) -> Path:
        folder = Path(self.folder or tempfile.gettempdir()).absolute()
        return next(place for place in (folder, *folder.parents) if place.is_dir())

    def empty_like(self, x: Tensor) -> Tensor:
        return self.empty(x.shape, x.dtype, x.device)

    def collect(self, parts: Iterable[tuple[slice, tuple[Tensor, ...]]], number: int, dim: int = 1) -> list[Tensor]:
        """Bring chunks together along axis ``dim`` of ``number`` timepoints, each of several tensors."""
        whole: list[Tensor] = []
        for chunk, tensors in parts:
            if chunk == slice(0, number):
                return list(tensors)
            if not whole:
                shapes = [(*t.shape[:dim], number, *t.shape[dim + 1 :]) for t in tensors]
                whole = [self.empty(shape, t.dtype, t.device) for shape, t in zip(shapes, tensors)]
            for target, values in zip(whole, tensors):
                target[(*[slice(None)] * dim, chunk)] = values
        return whole

    def map(self, function: Callable[..., Tensor], *tensors: Tensor, dim: int = 1) -> Tensor:
        """``function(*tensors)`` of a function that treats each timepoint, along axis ``dim``, by itself."""
        number = tensors[0].shape[dim]
        parts = ((c, (function(*_parts(tensors, c, dim)),)) for c in self.chunks(number))
        return self.collect(parts, number, dim)[0]

    def sum(self, function: Callable[..., Tensor], *tensors: Tensor, dim: int = 1) -> Tensor:
        """``function(*tensors)`` of a function that sums over the timepoints, which lie along axis ``dim``."""
        return sum(function(*_parts(tensors, c, dim)) for c in self.chunks(tensors[0].shape[dim]))

    def mean(self, x: Tensor, dim: int = 1) -> Tensor:
        """Mean over the timepoints, whose axis stays."""
        return self.sum(lambda part: part.sum(dim=dim, keepdim=True), x, dim=dim) / x.shape[dim]


def _parts(tensors: Iterable[Tensor], chunk: slice, dim: int) -> list[Tensor]:
    return [tensor[(*[slice(None)] * dim, chunk)] for tensor in tensors]


IN_MEMORY = Storage()
