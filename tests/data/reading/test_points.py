"""Landmarks of every format are read in RAS mm, and every mistake is reported in one line."""

import os

import numpy as np
import pytest

from groupmorph_monai.data.reading.points import read_landmarks, read_points
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid

POINTS_RAS = np.array([[1.5, -2.0, 30.25], [4.0, 5.0, -6.0]])
POINT_FILES = {
    "header.csv": "x,y,z\n1.5,-2.0,30.25\n4,5,-6\n",
    "named.csv": "label,S,R,A\na,30.25,1.5,-2\nb,-6,4,5\n",
    "lps.csv": "l,p,s\n-1.5,2.0,30.25\n-4,-5,-6\n",
    "bare.csv": "1.5,-2.0,30.25\n4,5,-6\n",
    "trailing.csv": "x,y,z\n1.5,-2.0,30.25,\n4,5,-6,\n",
    "semicolons.csv": "label;x;y;z\na,b;1.5;-2.0;30.25\nc;4;5;-6\n",
    "tabs.csv": "x\ty\tz\n1.5\t-2.0\t30.25\n4\t5\t-6\n",
    "quoted.csv": '"x","y","z"\n1.5,-2.0,30.25\n4,5,-6\n',
    "quoted_names.csv": '"","x","label","y","z"\n"1",1.5,"a;b, c",-2.0,30.25\n"2",4,"d",5,-6\n',
    "quoted_numbers.csv": '"1.5", "-2.0", "30.25"\n"4","5","-6"\n',
    "quoted_tabs.csv": '"x"\t"y"\t"z"\n"1.5"\t-2.0\t"30.25"\n4\t5\t-6\n',
    "quoted_separators.csv": '"point; no","x","y","z"\n"a",1.5,-2.0,30.25\n"b",4,5,-6\n',
    "commas_and_tabs.csv": "1.5,\t-2.0,\t30.25\n4,\t5,\t-6\n",
    "semicolons.txt": "-1.5; 2.0; 30.25\n-4;-5;-6\n",
    "itk.txt": "point\n2\n-1.5 2.0 30.25\n-4 -5 -6e0\n",
    "bare.txt": "-1.5 2.0 30.25\n-4 -5 -6\n",
    "outputpoints.txt": "Point\t0\t; InputPoint = [ 9 ]\t; OutputPoint = [ -1.5 2 30.25 ]\t; Deformation = [ 0 0 0 ]\n"
    "Point\t1\t; InputPoint = [ 9 9 9 ]\t; OutputPoint = [ -4 -5 -6 ]\t; Deformation = [ 0 0 0 ]\n",
    "ras.fcsv": "# CoordinateSystem = 0\n# columns = id,x,y,z,ow\nf,1.5,-2,30.25,0\nf,4,5,-6,0\n",
    "lps.fcsv": "# CoordinateSystem = LPS\n# columns = id,x,y,z,ow\nf,-1.5,2,30.25,0\nf,-4,-5,-6,0\n",
    "numbered_lps.fcsv": "# CoordinateSystem = 1\n# columns = id,x,y,z,ow\nf,-1.5,2,30.25,0\nf,-4,-5,-6,0\n",
    "lps.mrk.json": '{"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", '
    '"controlPoints": [{"label": "a", "position": [-1.5, 2, 30.25]}, {"label": "b", "position": [-4, -5, -6]}]}]}',
    "default.mrk.json": '{"markups": [{"controlPoints": '
    '[{"position": [-1.5, 2, 30.25]}, {"position": [-4, -5, -6]}]}]}',
    "ras.mrk.json": '{"markups": [{"coordinateSystem": "RAS", "coordinateUnits": ["mm", "UCUM", "millimeter"], '
    '"controlPoints": [{"position": [1.5, -2, 30.25]}, {"position": [4, 5, -6]}]}]}',
}


@pytest.mark.parametrize("name", POINT_FILES)
def test_points_of_every_format_are_ras(tmp_path, name):
    (tmp_path / name).write_text(POINT_FILES[name], encoding="utf-8")
    np.testing.assert_allclose(read_points(tmp_path / name), POINTS_RAS)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("index.txt", "index\n1\n3 4 5\n", "voxel indices"),
        ("short.txt", "point\n3\n1 2 3\n", "expected 1 in the second line, the number of points, got '3';"),
        ("headless.txt", "point\n", "without any"),
        ("count.txt", "point\nmany\n1 2 3\n", "expected 1 in the second line, the number of points, got 'many';"),
        ("two.csv", "1,2\n3,4\n", "three finite numbers per line, got 2 in line 1;"),
        ("words.csv", "x,y,z\n1,2,three\n", "got 'three' in line 2;"),
        ("ragged.csv", "x,y,z\n1,2,3\n\n1,2\n", "got 2 in line 4;"),
        ("nan.csv", "1,2,3\n1,2,nan\n", "got 'nan' in line 2;"),
        ("commas.csv", "x;y;z\n1,5;2;3\n", "got '1,5' in line 2;"),
        ("all_commas.csv", "x,y,z\n1,5,2,5,3,5\n", "expected 3 cells per line, as in the header, got 6 in line 2;"),
        ("gap.csv", "1\t2\t3\n4\t\t6\n", "got '' in line 2;"),
        ("quoted.csv", 'x,y,z\n"1,5","2","3"\n', "got '1,5' in line 2;"),
        ("open.csv", 'x,y,z\n1,"2,3\n', "got 2 in line 2;"),
        ("long.csv", "x,y,z\n1,2,3" + 200000 * "0" + "\n", "line 2: expected cells separated by ',', got field larger"),
        ("short.fcsv", "f,1,2\n", "got 2 in line 1;"),
        ("inf.txt", "point\n1\n1 2 inf\n", "got 'inf' in line 3;"),
        ("empty.csv", "", "without any"),
        ("typing_error.csv", "x,y,z\n1_0,2,3\n", "got '1_0' in line 2"),
        ("arabic.csv", "x,y,z\n\u0661,2,3\n", "in line 2"),
        ("repeated.csv", "x,x,y,z\n1,2,3,4\n", "expected one column x, got 2"),
        ("ijk.fcsv", "# CoordinateSystem = IJK\nf,1,2,3\n", "IJK"),
        ("missing.csv", None, "No such file"),
        ("missing.mrk.json", None, "No such file"),
        ("text.mrk.json", "x,y,z", "points of 3D Slicer (.mrk.json), got invalid JSON"),
        ("list.mrk.json", "[]", "got JSON without markups and their controlPoints"),
        ("null.mrk.json", "null", "got JSON without markups and their controlPoints"),
        ("other.json", "{}", "got JSON without markups and their controlPoints"),
        ("none.mrk.json", '{"markups": [{"controlPoints": []}]}', "got 0 points of 1;"),
        ("two.mrk.json", '{"markups": [{"controlPoints": [{"position": [1, 2, 3]}]}, {"controlPoints": []}]}', "of 2;"),
        ("nan.mrk.json", '{"markups": [{"controlPoints": [{"label": "F-1", "position": [1, NaN, 3]}]}]}', "'F-1'"),
        ("flat.mrk.json", '{"markups": [{"controlPoints": [{"label": "F-1", "position": [1, 2]}]}]}', "'F-1'"),
        ("text_position.mrk.json", '{"markups": [{"controlPoints": [{"position": ["1", "2", "3"]}]}]}', "three finite"),
        ("no_position.mrk.json", '{"markups": [{"controlPoints": [7]}]}', "position of 7,"),
        (
            "unplaced.mrk.json",
            '{"markups": [{"controlPoints": [{"label": "b", "position": [0, 0, 0], "positionStatus": "undefined"}]}]}',
            "place or delete the point",
        ),
        (
            "preview.mrk.json",
            '{"markups": [{"controlPoints": [{"label": "a", "position": [0, 0, 0]}, '
            '{"position": [1, 2, 3], "positionStatus": "preview"}]}]}',
            "got point 2 with the positionStatus 'preview'; place or delete the point",
        ),
        (
            "missing_id.mrk.json",
            '{"markups": [{"controlPoints": [{"label": "", "id": "7", "positionStatus": "missing"}]}]}',
            "got '7' with the positionStatus 'missing'; place or delete the point",
        ),
        (
            "nameless.mrk.json",
            '{"markups": [{"controlPoints": [{"position": null}]}]}',
            "position of point 1, got None",
        ),
        (
            "voxels.mrk.json",
            '{"markups": [{"coordinateSystem": "IJK", "controlPoints": [{"position": [1, 2, 3]}]}]}',
            "RAS or LPS, got 'IJK'",
        ),
        (
            "two_systems.mrk.json",
            '{"markups": [{"coordinateSystem": "LPS", "coordinateSystem": "RAS", "controlPoints": '
            '[{"position": [1, 2, 3]}]}]}',
            "invalid JSON ('coordinateSystem' occurs twice)",
        ),
        (
            "metres.mrk.json",
            '{"markups": [{"coordinateUnits": "m", "controlPoints": [{"position": [1, 2, 3]}]}]}',
            "in mm, got 'm'",
        ),
        (
            "box.mrk.json",
            '{"markups": [{"type": "ROI", "center": [1, 2, 3], "controlPoints": [{"position": [1, 2, 3]}]}]}',
            "expected points, a line, a curve or an angle, got ROI",
        ),
    ],
)
def test_bad_points_are_named_in_one_line(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_points(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name)) and words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["p.csv", "p.txt", "p.fcsv", "p.mrk.json"])
def test_a_device_is_not_read(tmp_path, name):
    (tmp_path / name).symlink_to(os.devnull)
    with pytest.raises(InputError, match=f"{name}: .*a pipe or device"):
        read_points(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "cure"),
    [
        (["landmarks_00.csv", "landmarks_02.csv", "landmarks_03.csv"], "add landmarks_01.csv"),
        (["landmarks_00.csv", "landmarks_01.csv"], "add landmarks_02.csv, landmarks_03.csv"),
        (["s1_4.txt", "s1_2.txt"], "add s1_1.txt, s1_3.txt"),
        (["landmarks_01.csv", "landmarks_02.csv"], "list one file per scan"),
        (["landmarks_pre.csv", "landmarks_0.csv"], "list one file per scan"),
        (["landmarks_0.csv"] + 5 * ["landmarks_9.csv"], "list one file per scan"),
    ],
)
def test_missing_landmarks_are_named(names, cure):
    with pytest.raises(InputError, match=f"for each of the 4 scans, got {len(names)}; {cure}$"):
        read_landmarks(names, [Grid((9, 9, 9), np.eye(4))] * 4)


def _as_csv(names):
    return "ID,x,y,z\n" + "".join(f"{name},{n},2,3\n" for n, name in enumerate(names))


def _as_fcsv(names):
    return "".join(f"{n},{n},2,3,0,0,0,1,1,1,0,{name},,\n" for n, name in enumerate(names))


def _as_markups(names):
    points = ", ".join(f'{{"label": "{name}", "position": [{-n}, -2, 3]}}' for n, name in enumerate(names))
    return f'{{"markups": [{{"controlPoints": [{points}]}}]}}'


@pytest.mark.parametrize(("ending", "text"), [("csv", _as_csv), ("fcsv", _as_fcsv), ("mrk.json", _as_markups)])
def test_landmarks_are_compared_by_their_names(tmp_path, ending, text):
    files = [tmp_path / f"{number}.{ending}" for number in "01"]
    for names in ("abc", "ade", "aaa", "xyz"):  # names of other points, or of several, do not define an order
        files[0].write_text(text("abc"), encoding="utf-8")
        files[1].write_text(text(names), encoding="utf-8")
        np.testing.assert_array_equal(*read_landmarks(files, [Grid((9, 9, 9), np.eye(4))] * 2))
    files[1].write_text(text("acb"), encoding="utf-8")
    with pytest.raises(InputError, match=r"1\..*in the order of .*0\..*, with 'b' as number 2, got 'c'; sort them"):
        read_landmarks(files, [Grid((9, 9, 9), np.eye(4))] * 2)


def test_a_name_with_a_null_character():
    with pytest.raises(InputError, match="expected a file of points"):
        read_points("\0")
