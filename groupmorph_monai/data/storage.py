"""Keep the tensors of all K timepoints in memory, or in temporary files with a few timepoints in memory at a time."""

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
from ..space.chunks import total

_ALIGNED = 64  # bytes; alignment of arrays in a file
_FILE_BYTES, _FEWEST_IN_A_FILE, _MOST_IN_A_FILE = 2**28, 4, 32  # see `Storage.keep`


class Storage:
    """Allocate tensors of all K timepoints, and loop over a few timepoints at a time.

    Without ``scans_at_once`` the tensors are ordinary ones, and loops have a single chunk with all timepoints. With it,
    tensors are memory-mapped temporary files, whose pages are released from the memory of the process at the end of
    each chunk, so that memory does not grow with K. The files have no names, so they disappear no matter how the
    process ends.

    Args:
        scans_at_once: timepoints in memory at a time; None for all.
        folder: folder for the files, or its first parent that exists; None for the system's folder for temporary files.
            It should not itself be in memory, as ``/tmp`` may be.

    Raises:
        InputError: If ``scans_at_once`` is not a positive integer.
    """

    __slots__ = ("scans_at_once", "folder", "_maps", "_block", "_used")

    def __init__(self, scans_at_once: int | None = None, folder: str | os.PathLike[str] | None = None):
        if scans_at_once is not None and (not isinstance(scans_at_once, int) or scans_at_once < 1):
            raise InputError(f"scans_at_once: expected 1 or more, or null for all that fit, got {scans_at_once!r}")
        self.scans_at_once, self.folder = scans_at_once, folder
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._block, self._used = np.empty(0, np.uint8), 0

    def __repr__(self) -> str:
        return "Storage()"  # no result depends on where tensors are kept: `fingerprint` reads this

    def chunks(self, number: int) -> Iterator[slice]:
        """Yield slices that together cover ``number`` timepoints, in order."""
        step = self.scans_at_once or max(number, 1)
        for start in range(0, number, step):
            yield slice(start, min(start + step, number))
            self.release()

    def release(self) -> None:
        """Release mapped pages from the memory of the process; the data remain in the files or the system's cache."""
        if hasattr(mmap, "MADV_DONTNEED"):  # Windows lacks it, but evicts pages by itself
            for mapped in list(self._maps):
                mapped.madvise(mmap.MADV_DONTNEED)

    def empty(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """Allocate an uninitialised tensor.

        Raises:
            InputError: If the disk is full.
        """
        shape = tuple(shape)
        if self.scans_at_once is None:
            return torch.empty(shape, dtype=dtype, device=device)
        size = max(1, math.prod(shape) * dtype.itemsize)
        try:
            with tempfile.TemporaryFile(dir=self._existing_folder()) as file:
                # Reserve the space, as writing to a map beyond the free space kills the process.
                os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise InputError(
                f"{self._existing_folder()}: expected {size / 1e9:.3g} GB for scans that do not fit into memory, got "
                f"{error.strerror}; free some space there, or choose another output folder"
            ) from error
        self._maps.add(mapped)
        return torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape)).view(shape)

    def empty_array(self, shape: Iterable[int], dtype: np.dtype | type) -> np.ndarray:
        """Allocate an uninitialised NumPy array, as `empty` does."""
        return self.empty(shape, torch.from_numpy(np.empty(0, dtype)).dtype).numpy()

    def keep(self, values: np.ndarray) -> np.ndarray:
        """Copy the array of one timepoint to a file, with several arrays per file to limit the number of open files.
        Without ``scans_at_once``, return it unchanged."""
        if self.scans_at_once is None:
            return values
        size = -(-values.nbytes // _ALIGNED) * _ALIGNED
        if self._used + size > self._block.nbytes:
            number = min(max(_FILE_BYTES // size, _FEWEST_IN_A_FILE), _MOST_IN_A_FILE)
            self._block, self._used = self.empty_array((number * size,), np.uint8), 0
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
        """Concatenate chunks, each a tuple of tensors, along axis ``dim`` of ``number`` timepoints."""
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
        """Compute ``function(*tensors)`` for a function that treats each timepoint, along axis ``dim``, separately."""
        number = tensors[0].shape[dim]
        parts = ((c, (function(*_parts(tensors, c, dim)),)) for c in self.chunks(number))
        return self.collect(parts, number, dim)[0]

    def sum(self, function: Callable[..., Tensor], *tensors: Tensor, dim: int = 1) -> Tensor:
        """Compute ``function(*tensors)`` for a function that sums over the timepoints, along axis ``dim``."""
        return total(function(*_parts(tensors, c, dim)) for c in self.chunks(tensors[0].shape[dim]))

    def mean(self, x: Tensor, dim: int = 1) -> Tensor:
        """Compute the mean over the timepoints, keeping their axis."""
        return self.sum(lambda part: part.sum(dim=dim, keepdim=True), x, dim=dim) / x.shape[dim]


def _parts(tensors: Iterable[Tensor], chunk: slice, dim: int) -> list[Tensor]:
    return [tensor[(*[slice(None)] * dim, chunk)] for tensor in tensors]


IN_MEMORY = Storage()
