import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from json_files import write_json

from groupmorph_monai.data import phantom_items, series_items
from groupmorph_monai.data.reading.datalist import scans_of
from groupmorph_monai.data.reading.names import natural_order
from groupmorph_monai.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in "abcde":
        (tmp_path / name).mkdir()
        (tmp_path / name / "t0.nii.gz").write_text("", encoding="utf-8")
    (tmp_path / "b" / "landmarks_01.csv").write_text("", encoding="utf-8")
    (tmp_path / "b" / "landmarks_00.csv").write_text("", encoding="utf-8")
    (tmp_path / "f.nii.gz").write_text("", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    return tmp_path


def names(items):
    return [item["name"] for item in items]


def test_sub_folders_and_4d_files_are_series_and_the_last_ones_validate(folder):
    assert names(series_items(str(folder), "training", [], 0.34)) == ["a", "b", "c", "d"]
    assert names(series_items(str(folder), "validation", [], 0.34)) == ["e", "f.nii.gz"]
    assert names(series_items(str(folder), None, [], 0.34)) == ["a", "b", "c", "d", "e", "f.nii.gz"]


def test_either_split_has_a_series_whatever_the_fraction(folder):
    assert len(series_items(str(folder), "validation", [], 0.0)) == 1
    assert len(series_items(str(folder), "training", [], 1.0)) == 1


def test_landmarks_come_in_the_order_of_their_timepoints(folder):
    item = series_items(str(folder), "training", [])[1]
    assert [path.rsplit("/", 1)[1] for path in item["landmarks"]] == ["landmarks_00.csv", "landmarks_01.csv"]


def test_eleven_scans_have_their_landmarks_in_the_order_of_numbers(tmp_path):
    for name in ("s2", "s10"):
        (tmp_path / name).mkdir()
        for k in range(11):
            (tmp_path / name / f"t{k}.nii.gz").write_text("", encoding="utf-8")
            (tmp_path / name / f"landmarks_{k}.csv").write_text("", encoding="utf-8")
    items = series_items(str(tmp_path), None, [])
    assert names(items) == ["s2", "s10"]
    assert [Path(file).name for file in items[0]["landmarks"]] == [f"landmarks_{k}.csv" for k in range(11)]


def test_landmarks_that_name_their_scans_come_in_the_order_of_these(tmp_path):
    # The order of the scans differs from that of their landmarks.
    (tmp_path / "s").mkdir()
    for name in ("t.m", "t"):
        (tmp_path / "s" / f"{name}.nii.gz").write_text("", encoding="utf-8")
        (tmp_path / "s" / f"landmarks_{name}.csv").write_text("", encoding="utf-8")
    scans = [p.name for p in sorted((tmp_path / "s").glob("t*"), key=natural_order)]
    (item,) = series_items(str(tmp_path), None, [])
    assert scans == ["t.m.nii.gz", "t.nii.gz"]
    assert [Path(file).name for file in item["landmarks"]] == ["landmarks_t.m.csv", "landmarks_t.csv"]


def test_a_list_decides_and_its_paths_are_relative_to_it(folder):
    entry = {"image": ["a/t0.nii.gz", "b/t0.nii.gz"], "landmarks": ["b/landmarks_00.csv", "b/landmarks_01.csv"]}
    write_json(folder / "dataset.json", {"training": [entry], "validation": [{"image": "c", "name": "third"}]})
    (item,) = series_items(str(folder), "training", [])
    assert item["image"] == [str(folder / "a/t0.nii.gz"), str(folder / "b/t0.nii.gz")]
    assert item["landmarks"][1] == str(folder / "b/landmarks_01.csv")
    assert names(series_items(str(folder), "validation", [])) == ["third"]


def test_series_of_equal_file_names_have_their_paths_as_names(folder):
    entries = [{"image": ["a/t0.nii.gz", "a/t1.nii.gz"]}, {"image": ["b/t0.nii.gz", "b/t1.nii.gz"]}]
    write_json(folder / "dataset.json", {"validation": entries})
    assert names(series_items(str(folder), "validation", [])) == ["a/t0.nii.gz", "b/t0.nii.gz"]


def test_without_a_folder_there_are_phantoms_and_a_line_says_so(caplog):
    phantoms = phantom_items("phantom", range(3, 5), size=(8, 8, 8), timepoints=6, max_motion_voxels=2.0)
    with caplog.at_level("INFO"):
        items = series_items(None, "training", phantoms)
    assert [item["phantom"]["seed"] for item in items] == [3, 4]
    assert items[0]["phantom"]["max_motion_voxels"] == 2.0
    assert "using 2 synthetic series as training data" in caplog.text


def test_a_folder_that_is_none_is_named(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            series_items(str(path), "training", [])


def test_phantoms_stand_beside_the_folder_s_series_in_their_share(folder):
    phantoms = phantom_items("phantom", range(12), size=(8, 8, 8), timepoints=6)
    items = series_items(str(folder), "training", phantoms, 0.34, phantom_share=0.6)
    assert [item["phantom"]["seed"] for item in items[-12:]] == list(range(12))
    assert names(items[:-12]) == 2 * ["a", "b", "c", "d"]
    few = series_items(str(folder), "training", phantoms[:2], 0.34, phantom_share=0.6)
    assert names(few[:4]) == ["a", "b", "c", "d"] and [item["phantom"]["seed"] for item in few[4:]] == [0, 1] * 3
    validation = series_items(str(folder), "validation", phantoms, 0.34, phantom_share=0.6)
    assert names(validation[:-12]) == ["e", "f.nii.gz"] and len(validation) == 14
    (folder / "dataset.json").write_text('{"training": [{"image": "a"}]}', encoding="utf-8")
    assert series_items(str(folder), "validation", phantoms, phantom_share=0.6) == phantoms
    with pytest.raises(InputError, match="phantom_share.*1.0"):
        series_items(str(folder), "training", phantoms, phantom_share=1.0)


def test_landmarks_follow_scans_that_their_side_cars_order(tmp_path):
    for time, name in enumerate(("pre", "post1", "post2")):
        (tmp_path / "s").mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4))
        image.to_filename(tmp_path / "s" / f"{name}.nii.gz")
        write_json(tmp_path / "s" / f"{name}.json", {"AcquisitionTime": f"10:0{time}:00"})
        (tmp_path / "s" / f"landmarks_{name}.csv").write_text("x,y,z\n1,1,1\n", encoding="utf-8")
    (item,) = series_items(str(tmp_path), None, [])
    assert [Path(file).name for file in item["landmarks"]] == [
        "landmarks_pre.csv",
        "landmarks_post1.csv",
        "landmarks_post2.csv",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("null", "got None"),
        ("[1]", r"got \[1\]"),
        ('{"tests": []}', "got the keys tests"),
        ('{"training": null}', 'expected a list for "training", got None'),
        ('{"training": [null]}', 'expected entries {"image": ...} in "training", got None'),
        ('{"training": [{"label": 1}]}', "expected entries"),
        ('{"training": [], "training": [{"image": "a"}]}', "'training' occurs twice"),
        ('{"training": [{"image": "a", "name": null}]}', 'expected text for "name", got None'),
        ('{"training": [{"image": "a", "name": ["x"]}]}', 'expected text for "name", got .*x'),
        ('{"training": [{"image": "a", "name": "a\\ud800b"}]}', r'expected text for "name", got .a\\ud800b'),
        ('{"training": [{"image": "a", "name": "a\\u0000b"}]}', r'expected text for "name", got .a\\x00b'),
        ("{", "invalid JSON"),
        ('{"validation": [{"image": "a"}]}', "expected training series in .*, found none"),
    ],
)
def test_a_damaged_list_is_refused_in_words_of_the_list(folder, content, words):
    (folder / "dataset.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words) as error:
        series_items(str(folder), "training", [])
    assert "Error:" not in str(error.value) and str(folder) in str(error.value)


def test_a_list_that_is_a_device_is_not_read(folder):
    (folder / "dataset.json").symlink_to(os.devnull)
    with pytest.raises(InputError, match="got a pipe or device"):
        series_items(str(folder), "training", [])


def test_a_list_from_windows_begins_with_a_byte_order_mark(folder):
    (folder / "dataset.json").write_text('{"training": [{"image": "a"}]}', encoding="utf-8-sig")
    assert names(series_items(str(folder), "training", [])) == ["a"]


@pytest.mark.parametrize("name", ["dataset.json", "g", "g.nii.gz"])
def test_a_link_to_a_missing_list_or_series_is_not_passed_over(folder, name):
    (folder / name).symlink_to("gone")
    with pytest.raises(InputError, match=name):
        series_items(str(folder), "training", [])


def test_a_link_to_the_data_set_itself_is_no_series(folder):
    (folder / "loop").symlink_to(".")
    with pytest.raises(InputError, match="loop: expected a series, got a link to the folder that contains it"):
        series_items(str(folder), "training", [])


def test_endings_in_capitals_are_series_too(folder):
    (folder / "G.NII.GZ").write_text("", encoding="utf-8")
    assert names(series_items(str(folder), None, []))[-1] == "G.NII.GZ"


def test_landmarks_named_after_some_of_the_scans_are_refused(tmp_path):
    for name in ("t00.nii.gz", "t01.nii.gz", "t02.nii.gz", *(f"landmarks_t{k}.csv" for k in ("00", "01", "05"))):
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / name).write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="as for t00, got .*landmarks_t05.csv for the scans t00, t01, t02; correct"):
        series_items(str(tmp_path), None, [])


def test_a_series_for_training_and_validation_is_a_warning(folder, caplog):
    entry = [{"image": "a"}]
    write_json(folder / "dataset.json", {"training": entry, "validation": entry})
    series_items(str(folder), "training", [])
    assert "a listed for training and validation" in caplog.text


@pytest.mark.parametrize("split", ["training", "validation", None])
def test_a_series_listed_twice_is_refused(folder, split):
    (folder / "link").symlink_to("a")
    entries = [{"image": "a"}, {"image": ["b/t0.nii.gz"]}, {"image": "link", "name": "again"}]
    write_json(folder / "dataset.json", {"training": entries, "validation": entries})
    with pytest.raises(InputError, match="dataset.json: expected every series once, got a and again with the same fil"):
        series_items(str(folder), split, [])
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match="expected every series once, got a and link with the same files; remove one"):
        series_items(str(folder), split, [])


def test_a_series_with_other_landmarks_is_another(folder):
    landmarks = [[f"b/landmarks_{n}{k}.csv" for k in range(2)] for n in range(2)]
    write_json(folder / "dataset.json", {"training": [{"image": "a", "landmarks": files} for files in landmarks]})
    assert names(series_items(str(folder), "training", [])) == ["a", "a 2"]


def test_pairs_that_share_a_scan_have_names_of_their_own(folder):
    pairs = [{"image": ["a/t00.nii.gz", f"{other}/t01.nii.gz"]} for other in "abc"]
    write_json(folder / "dataset.json", {"training": pairs[:2], "validation": pairs[1:]})
    assert names(series_items(str(folder), None, [])) == ["a/t00.nii.gz", "a/t00.nii.gz 2", "a/t00.nii.gz 3"]
    assert names(series_items(str(folder), "validation", [])) == ["a/t00.nii.gz 2", "a/t00.nii.gz 3"]


def test_a_series_for_training_and_validation_is_evaluated_once(folder):
    write_json(folder / "dataset.json", {"training": [{"image": "b"}, {"image": "a"}], "validation": [{"image": "a"}]})
    assert names(series_items(str(folder), None, [])) == ["b", "a"]


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("landmark", "did you mean landmarks?"),
        (" labels", "did you mean labels?"),
        ("Name", "did you mean name?"),
        ("imagge", "did you mean image?"),
        ("mask", "remove it"),
    ],
)
@pytest.mark.parametrize("name", [{}, {"name": "s1"}])
def test_another_key_of_an_entry_is_refused(folder, key, cure, name):
    write_json(folder / "dataset.json", {"training": [{"image": "b"}, {**name, "image": "a", key: ["x"]}]})
    message = f"dataset.json: '{name.get('name', 'a')}': expected the keys name, image, landmarks, labels, got '{key}'"
    with pytest.raises(InputError, match=f"{message}; {re.escape(cure)}"):
        series_items(str(folder), "training", [])


@pytest.mark.parametrize("key", ["Training", "train", "trainings"])
@pytest.mark.parametrize("beside", ["training", "validation"])
def test_a_misspelt_list_is_refused(folder, key, beside):
    write_json(folder / "dataset.json", {beside: [{"image": "a"}], key: [{"image": "b"}]})
    with pytest.raises(InputError, match=f"the keys training, validation, got '{key}'; did you mean training"):
        series_items(str(folder), None, [])


def test_other_keys_of_the_list_are_ignored(folder):
    header = {"name": "MSD", "labels": {}, "numTraining": 1, "test": ["x"]}
    write_json(folder / "dataset.json", {**header, "training": [{"image": "a"}]})
    assert names(series_items(str(folder), "training", [])) == ["a"]


@pytest.mark.parametrize("split", ["training", "validation"])
def test_two_series_of_one_name_are_refused(folder, split):
    second = {"image": "b", "name": "a"}
    lists = {"training": [{"image": "a"}], "validation": [{"image": "c"}]}
    lists[split].append(second)
    write_json(folder / "dataset.json", lists)
    with pytest.raises(InputError, match="dataset.json: expected series of different names, got two of the name 'a'"):
        series_items(str(folder), "validation", [])


@pytest.mark.parametrize("key", ["landmarks", "labels"])
def test_a_file_of_two_timepoints_is_refused(folder, key):
    entry = {"image": "b", key: ["b/landmarks_00.csv", "b/../b/landmarks_00.csv"]}
    write_json(folder / "dataset.json", {"training": [entry]})
    with pytest.raises(InputError, match=f"expected {key} of b with one file per timepoint, got .*_00.csv twice"):
        series_items(str(folder), "training", [])


def test_a_scan_of_two_timepoints_is_a_warning(folder, caplog):
    (folder / "link").symlink_to("b")
    pairs = [{"image": ["a/t0.nii.gz", "b/t0.nii.gz"]}, {"image": ["b/t1.nii.gz", "link/t1.nii.gz"], "name": "pair"}]
    write_json(folder / "dataset.json", {"training": pairs})
    series_items(str(folder), "training", [])
    message = f"image of pair: is a scan listed twice? ({(folder / 'b' / 't1.nii.gz').resolve()})"
    assert [record.getMessage() for record in caplog.records] == [f"{folder / 'dataset.json'}: {message}"]


def test_the_scans_of_an_item_are_a_list_which_is_empty_for_a_phantom():
    assert [*map(scans_of, ({"image": "a"}, {"image": ["a", "b"]}, {"phantom": {}}))] == [["a"], ["a", "b"], []]
