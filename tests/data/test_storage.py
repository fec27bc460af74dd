import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from groupmorph_monai.data.series import Frame, Series
from groupmorph_monai.data.storage import Storage
from groupmorph_monai.data.writing import registration
from groupmorph_monai.data.writing.products import Products
from groupmorph_monai.errors import InputError


def mapped_bytes():
    """Return the resident bytes of mapped files and shared memory."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return sum(1024 * int(n) for n in re.findall(r"Rss(?:File|Shmem):\s+(\d+)", status))


@pytest.mark.parametrize("scans_at_once", [None, 1, 3, 7, 9])
def test_chunks_cover_all_timepoints_and_give_what_all_at_once_does(scans_at_once, tmp_path):
    storage, x = Storage(scans_at_once, tmp_path), torch.arange(84.0).view(2, 7, 6)
    chunks = list(storage.chunks(7))
    assert [k for c in chunks for k in range(7)[c]] == list(range(7))
    assert all(len(range(7)[c]) <= (scans_at_once or 7) for c in chunks)
    assert torch.equal(storage.map(lambda a, b: a * b + 1, x, x), x * x + 1)
    assert torch.equal(storage.map(lambda a: a.sum(dim=1), x.movedim(1, 0), dim=0), x.movedim(1, 0).sum(dim=1))
    assert torch.equal(storage.sum(lambda a: a.sum(dim=1), x), x.sum(dim=1))
    assert torch.equal(storage.mean(x), x.mean(dim=1, keepdim=True))
    assert torch.equal(storage.map(lambda a: a > 7, x), x > 7)


def test_data_outside_of_memory_is_kept_in_unnamed_files(tmp_path):
    storage = Storage(2, tmp_path)
    before = mapped_bytes()
    x = storage.map(lambda part: part.expand(2, 2**20).clone(), torch.arange(64.0).view(64, 1), dim=0)
    assert mapped_bytes() - before < 2**25  # of 2**28
    assert torch.equal(x[:, 7], torch.arange(64.0)) and torch.equal(x[:, -1], torch.arange(64.0))
    assert not list(tmp_path.iterdir())


def test_kept_arrays_are_what_they_were(tmp_path):
    arrays = [np.random.default_rng(k).random((3, k + 1)).astype(kind) for k, kind in enumerate(["f4", "?", "f8"] * 20)]
    for storage in (Storage(), Storage(2, tmp_path)):
        kept = [storage.keep(array) for array in arrays]
        assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(kept, arrays))
    assert storage.keep(np.zeros(0, bool)).size == 0


def test_a_disk_without_room_is_said_in_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(InputError, match=f"{tmp_path}: expected 4 GB for scans.*No space left.*choose another"):
        Storage(2, tmp_path / "not" / "there").empty((10**6, 1000), torch.float32)
    with pytest.raises(InputError, match="scans_at_once: expected 1 or more.*got 0"):
        Storage(0)


def test_writing_a_series_of_integers_maps_a_few_scans_at_a_time(tmp_path, monkeypatch):
    storage, number, size = Storage(2, tmp_path), 16, (96, 96, 64)
    scan = np.random.default_rng(0).integers(0, 1000, size).astype(np.float32)
    series = Series(tuple(Frame(storage.keep(scan), np.eye(4), "x") for _ in range(number)))
    warped = storage.empty_array((number, *size), np.float32)
    covered = storage.empty_array((number, *size), np.bool_)
    for chunk in storage.chunks(number):
        warped[chunk], covered[chunk] = scan + 0.25, True
    mapped, save = [mapped_bytes()], registration.save_nifti

    def measure(*args, **kwargs):
        mapped.append(mapped_bytes())
        save(*args, **kwargs)

    monkeypatch.setattr(registration, "save_nifti", measure)
    writer = registration._Writer(series, [], 0, Products(), storage, tmp_path)
    aligned = writer._write_series(warped, covered)
    np.testing.assert_array_equal(aligned[-1], scan + 0.25)
    assert max(mapped) - mapped[0] < 6 * scan.nbytes
