import os

import pytest
import torch
from monai.transforms import Compose, RandFlipd, Transform

from groupmorph_monai.data import CachedSeries
from groupmorph_monai.errors import InputError


class ReadFile(Transform):
    """Transform that counts its calls outside of the attributes that its fingerprint covers."""

    calls = []

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, item):
        self.calls.append(item["image"])
        with open(item["image"], encoding="utf-8") as file:
            return {"image": self.scale * torch.tensor([[float(file.read())]])}


@pytest.fixture
def series(tmp_path):
    ReadFile.calls.clear()
    file = tmp_path / "t0.txt"
    file.write_text("1.0", encoding="utf-8")

    def read(scale=1.0):
        transform = Compose([ReadFile(scale), RandFlipd("image", prob=0.0)])
        return CachedSeries([{"image": str(file)}], transform, tmp_path / "cache")[0]["image"].item()

    return file, read


def test_prepared_series_are_not_prepared_again(series):
    _, read = series
    assert [read(), read(), read()] == [1.0] * 3 and len(ReadFile.calls) == 1


def test_a_replaced_file_and_another_setting_are_seen(series):
    file, read = series
    assert read() == 1.0 and read(2.0) == 2.0
    file.write_text("3.0", encoding="utf-8")  # equal size: only the modification time differs
    os.utime(file, (1, 1))
    assert read() == 3.0 and read(2.0) == 6.0
    assert len(ReadFile.calls) == 4


@pytest.mark.parametrize("size", [0, 10, 900])
def test_a_broken_entry_is_made_anew(size, series, caplog):
    file, read = series
    read()
    (entry,) = (file.parent / "cache").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:size])
    assert read() == 1.0 and "is recomputed" in caplog.text
    assert len(ReadFile.calls) == 2 and entry.stat().st_size == len(whole)


def test_a_full_disk_is_reported_in_one_line_and_leaves_no_entry(series, monkeypatch):
    file, read = series

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device\); free some space"):
        read()
    assert not list((file.parent / "cache").iterdir())
