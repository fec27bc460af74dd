import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd

from groupmorph_monai.data import ClipSeriesd, LoadSeriesd
from groupmorph_monai.data.preprocessing.fingerprint import fingerprint
from groupmorph_monai.data.storage import Storage

SETTINGS = (
    "from groupmorph_monai.data import ClipSeriesd, LoadSeriesd;"
    "from groupmorph_monai.data.preprocessing.fingerprint import fingerprint;"
    "from monai.transforms import Compose;"
    "print(fingerprint({'b': 1, 'a': [2.5, None]}, Compose([ClipSeriesd(least=-1024), LoadSeriesd(spacing_mm=1.5)])))"
)


def test_equal_values_have_one_name_and_others_another():
    one = fingerprint({"a": 1, "b": [2.5, "x"]}, torch.arange(3.0), LoadSeriesd(spacing_mm=1.5))
    assert one == fingerprint({"b": [2.5, "x"], "a": 1}, torch.arange(3.0), LoadSeriesd(spacing_mm=1.5))
    different = [
        fingerprint({"a": 1, "b": [2.5, "y"]}, torch.arange(3.0), LoadSeriesd(spacing_mm=1.5)),
        fingerprint({"a": 1, "b": [2.5, "x"]}, torch.arange(3), LoadSeriesd(spacing_mm=1.5)),
        fingerprint({"a": 1, "b": [2.5, "x"]}, -torch.arange(3.0), LoadSeriesd(spacing_mm=1.5)),
        fingerprint({"a": 1, "b": [2.5, "x"]}, torch.arange(3.0), LoadSeriesd(spacing_mm=1.0)),
        fingerprint({"a": 1, "b": [2.5, "x"]}, torch.arange(3.0), ClipSeriesd()),
    ]
    assert len({one, *different}) == 6
    assert fingerprint(np.arange(4)) != fingerprint(np.arange(4).reshape(2, 2))


@pytest.mark.slow
def test_another_process_gives_the_same_name():
    transforms = Compose([ClipSeriesd(least=-1024), LoadSeriesd(spacing_mm=1.5)])
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", SETTINGS], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split()[-1] == fingerprint({"a": [2.5, None], "b": 1}, transforms)


def test_a_file_counts_by_size_and_time_and_a_folder_by_its_files(tmp_path):
    file = tmp_path / "t0.nii.gz"
    file.write_text("abc", encoding="utf-8")
    os.utime(file, (1, 1))
    names = {fingerprint(str(file)), fingerprint({"image": str(file)}), fingerprint({"image": [str(file)]})}
    assert len(names) == 3
    file.write_text("abd", encoding="utf-8")
    os.utime(file, (2, 2))
    changed = {fingerprint(str(file)), fingerprint({"image": str(file)}), fingerprint(str(tmp_path))}
    assert not names & changed
    os.utime(file, (1, 1))
    file.write_text("abcd", encoding="utf-8")
    os.utime(file, (1, 1))
    assert fingerprint(str(tmp_path)) not in names | changed


def test_a_networks_random_weights_do_not_count_and_its_shape_does():
    one, same, other = (fingerprint(torch.nn.Linear(*shape)) for shape in ((2, 3), (2, 3), (3, 2)))
    assert one == same != other


@pytest.mark.parametrize(
    "one, other", [({1, 2}, {1, 3}), (torch.float32, torch.float16), (slice(2), slice(3)), (max, min)]
)
def test_values_of_other_kinds_count_too(one, other):
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(np.random.RandomState(1)) == fingerprint(np.random.RandomState(2))


def test_a_list_that_contains_itself_has_a_fingerprint():
    values = [1]
    values.append(values)
    assert fingerprint(values) == fingerprint(values) != fingerprint([1])
    assert fingerprint(RandFlipd("image")) != fingerprint(RandFlipd("label"))


def test_folders_with_the_same_nested_names_are_distinguished(tmp_path):
    for name in "ab":
        (tmp_path / name / "study" / "series").mkdir(parents=True)
        (tmp_path / name / "study" / "series" / "1.dcm").write_text(name, encoding="utf-8")
    first, second = (fingerprint({"image": str(tmp_path / name / "study")}) for name in "ab")
    assert first != second
    (tmp_path / "a" / "study" / "series" / "1.dcm").write_text("another", encoding="utf-8")
    assert fingerprint({"image": str(tmp_path / "a" / "study")}) != first


def test_files_in_the_folder_of_results_are_ignored(tmp_path):
    """An interrupted evaluation resumes, although its folder has changed."""
    before = fingerprint(ClipSeriesd(storage=Storage(None, tmp_path)))
    (tmp_path / "row.json").write_text("{}", encoding="utf-8")
    assert fingerprint(ClipSeriesd(storage=Storage(2, tmp_path))) == before
