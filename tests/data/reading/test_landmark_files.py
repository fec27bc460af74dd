"""Landmark files belong to the scans that their names tell, or are refused."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from json_files import write_json

from groupmorph_monai.data.reading.landmark_files import landmark_files
from groupmorph_monai.errors import InputError


def write_scans(folder, names, minutes=None):
    for k, name in enumerate(names):
        nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_filename(folder / f"{name}.nii.gz")
        if minutes:
            write_json(folder / f"{name}.json", {"AcquisitionTime": f"10:{minutes[k]:02d}:00"})


def listed(folder, names, ending=".csv"):
    for name in names:
        (folder / (name if "." in name else f"landmarks_{name}{ending}")).write_text("x,y,z\n1,1,1\n", encoding="utf-8")
    return [Path(file).name.split(".")[0].removeprefix("landmarks_") for file in landmark_files(folder, None)]


@pytest.mark.parametrize(
    ("scans", "names"),
    [
        (["t00", "t01", "t02"], ["00", "01", "02"]),
        (["t00", "t01", "t02"], ["1", "2", "3"]),
        (["t1", "t2", "t3"], ["0", "1", "2"]),
        (["t10", "t20", "t30"], ["10", "20", "30"]),
        (["t10", "t20", "t30"], ["p7_0", "p7_1", "p7_2"]),
        (["sub-3_ses-1_run-2", "sub-3_ses-2_run-1"], ["ses-1_run-2", "ses-2_run-1"]),
        (["t00", "t01"], ["before_v1", "later_v1"]),
        (["t00", "t01"], ["a", "b"]),
        (["scan_20200105", "scan_20210301"], ["2020-01-05", "2021-03-01"]),
        (["four_dimensions"], ["0", "1", "2"]),
        (["four_dimensions"], ["00", "10", "20", "30"]),
        ([], ["1", "2", "3"]),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".mrk.json"])
def test_landmarks_are_numbered_as_the_scans_or_from_0_or_1(tmp_path, scans, names, ending):
    write_scans(tmp_path, scans)
    assert listed(tmp_path, names, ending) == names


@pytest.mark.parametrize(
    ("names", "expected"), [(["0", "1", "2"], ["2", "0", "1"]), (["1", "2", "3"], ["1", "2", "3"])]
)
def test_numbers_of_scans_count_before_their_order_in_time(tmp_path, names, expected):
    write_scans(tmp_path, ["t00", "t01", "t02"], minutes=(5, 9, 1))
    assert listed(tmp_path, names) == expected


def test_the_words_beside_a_number_do_not_change_the_order(tmp_path):
    write_scans(tmp_path, ["t00", "t01", "t02"])
    assert listed(tmp_path, ["b0", "1", "a02"]) == ["b0", "1", "a02"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0", "00", "01"], "landmarks_00.csv: expected .* its own number, got the number of landmarks_0.csv; rename"),
        (["00.csv", "00.txt", "01.csv"], "landmarks_00.txt: expected .* got the number of landmarks_00.csv; rename"),
        (["pre1", "post1", "post2"], "landmarks_pre1.csv: expected .* got the number of landmarks_post1.csv; rename"),
        (
            ["00", "02", "03"],
            "landmarks_02.csv: expected landmark files numbered as the scans are, or from 0 or 1 without a gap, got "
            "landmarks_00.csv, landmarks_02.csv, landmarks_03.csv; rename them",
        ),
        (["2", "3", "4"], "landmarks_2.csv: expected landmark files numbered as the scans are"),
        (["pre", "post1", "post2"], "landmarks_pre.csv: expected landmark files numbered as the scans are"),
    ],
)
@pytest.mark.parametrize("scans", [["t00", "t01", "t02"], ["four_dimensions"], []])
def test_numbers_that_are_not_those_of_the_scans_are_refused(tmp_path, scans, names, message):
    write_scans(tmp_path, scans)
    with pytest.raises(InputError, match=message) as error:
        listed(tmp_path, [f"landmarks_{name}" if "." in name else name for name in names])
    assert "\n" not in str(error.value)


def test_a_missing_file_is_left_to_the_reader_which_names_it(tmp_path):
    write_scans(tmp_path, ["t00", "t01", "t02"])
    assert listed(tmp_path, ["00", "02"]) == ["00", "02"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Landmarks_01.csv", "landmarks_01.csv"),
        ("landmark_01.csv", "landmarks_01.csv"),
        ("my_landmarks_2.mrk.json", "landmarks_2.mrk.json"),
        ("landmraks_1.TXT", "landmarks_1.txt"),
        ("LANDMARKS.fcsv", "landmarks_00.fcsv"),
    ],
)
def test_a_point_file_that_is_nearly_called_landmarks_is_a_warning(tmp_path, name, expected, caplog):
    write_scans(tmp_path, ["t00", "t01"])
    for other in (name, "curve_1.csv", "aif.txt", "landmarks.png", "._landmarks_00.csv"):
        (tmp_path / other).touch()
    assert listed(tmp_path, ["00", "01"]) == ["00", "01"]
    message = f"{tmp_path / name}: ignored, as landmarks are expected in {expected}; rename it"
    assert [record.getMessage() for record in caplog.records] == [message]


def test_many_point_files_with_other_names_are_one_warning(tmp_path, caplog):
    write_scans(tmp_path, ["t00", "t01"])
    for name in ("Landmarks_0.csv", "Landmarks_1.csv", "points.csv"):
        (tmp_path / name).touch()
    assert listed(tmp_path, []) == []
    message = f"{tmp_path / 'Landmarks_0.csv'} and 1 more: ignored, as landmarks are expected in landmarks_0.csv"
    assert [record.getMessage() for record in caplog.records] == [f"{message}; rename it"]


def test_two_scans_with_the_digits_of_one_file_do_not_share_it(tmp_path):
    write_scans(tmp_path, ["a1", "b1", "c2"])
    assert listed(tmp_path, ["1", "2"]) == ["1", "2"]  # the reader asks for the third


@pytest.mark.parametrize("scans", [["pre", "dyn1", "dyn2"], ["t0", "t2", "t3"]])
def test_numbers_that_are_those_of_other_scans_are_refused(tmp_path, scans):
    write_scans(tmp_path, scans)
    with pytest.raises(InputError, match="expected landmark files numbered as the scans are"):
        listed(tmp_path, ["0", "1", "2"])
