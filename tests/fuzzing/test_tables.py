"""Read malformed data lists, point files, settings and manifests."""

import contextlib
import io
import json

import nibabel
import numpy as np
import pytest
from fuzz import LENGTHS, LONG, QUICK, answer, check_examples, json_values, odd_text
from hypothesis import given
from hypothesis import strategies as st

from groupmorph_monai.apps.cohort.manifest import read_manifest
from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.apps.run import checked_run
from groupmorph_monai.apps.setting_values import parse_settings
from groupmorph_monai.apps.settings import SETTINGS
from groupmorph_monai.data.reading.checks import check_dataset
from groupmorph_monai.data.reading.points import read_landmarks, read_points
from groupmorph_monai.errors import InputError
from groupmorph_monai.space.grid import Grid

NIFTI = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(5, 6, 4), np.eye(4)).to_bytes()
numbers = st.floats().map(repr) | st.integers().map(str) | odd_text


def lines(cells, separators=(",", " ", ";", "\t")):
    rows = st.lists(st.tuples(st.lists(cells, max_size=5), st.sampled_from(separators)).map(lambda r: r[1].join(r[0])))
    return rows.map("\n".join)


heads = st.sampled_from(["", "x,y,z\n", "l,p,s\n", "x_mm,y_mm\n", "# CoordinateSystem = IJK\n", "point\n3\n",
                         "index\n1\n", "point\n²\n", "Point 0 ; OutputPoint = [ 1 2 ]\n"])  # fmt: skip
point_files = st.tuples(
    st.tuples(heads, lines(numbers)).map("".join).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=60),
    st.sampled_from([".csv", ".txt", ".fcsv", ".mrk.json"]),
)


def read_one(tmp_path_factory, content, ending):
    folder = tmp_path_factory.mktemp("points")
    file = folder / f"landmarks{ending}"
    file.write_bytes(content)
    points = answer(folder, lambda: read_points(file))
    assert isinstance(points, InputError) or points.shape[1:] == (3,) and np.isfinite(points).all()
    answer(folder, lambda: read_landmarks([file, file], [Grid((9, 9, 9), np.eye(4))] * 2))


@LENGTHS
def test_points(tmp_path_factory, length):
    check_examples(length, point_files, lambda file: read_one(tmp_path_factory, *file))


paths = (
    st.sampled_from(["t0.nii", "t1.nii", "absent.nii", "points.csv", ".", "..", "", "s", "\0", "a" * 300]) | odd_text
)
values = paths | st.lists(paths, max_size=3) | json_values
entries = st.dictionaries(st.sampled_from(["image", "landmarks", "labels", "name", "other"]), values)
data_lists = st.dictionaries(st.sampled_from(["training", "validation", "test"]), st.lists(entries, max_size=2))
list_files = (data_lists | json_values).map(json.dumps) | odd_text


def check_list(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("data set")
    for name in ("t0.nii", "t1.nii"):
        (folder / name).write_bytes(NIFTI)
    (folder / "points.csv").write_text("1,2,3\n", encoding="utf-8")
    (folder / "dataset.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    answer(folder, lambda: check_dataset(str(folder)))


@LENGTHS
def test_data_lists(tmp_path_factory, length):
    check_examples(length, list_files, lambda text: check_list(tmp_path_factory, text))


names = st.sampled_from(sorted(SETTINGS)) | odd_text
yaml_texts = json_values.map(json.dumps) | numbers | st.sampled_from(
    ["[1", "&a [*a]", "!!python/name:os.system", "1e-3", "1_000", "0x10", "2026-11-26", "0o8", "~", "[[1]]", "- 1", "?",
     "10:30", "1:2:3", "'", "{a: 1}", ".nan", "[.inf]", "9" * 400, "9" * 5000, "1e400", "<<", "2026-99-99", "!!int x",
     "!!float x", "!!float", "!!timestamp", "!!timestamp x", "!!bool x", "!!binary x", "[9e400]"]
)  # fmt: skip
setting = st.tuples(names, yaml_texts).map("=".join) | odd_text


@QUICK
@given(st.lists(setting, min_size=1, max_size=3))
def test_settings(tmp_path_factory, given_settings):
    files = config_files("inference", ())
    answer(tmp_path_factory.getbasetemp() / "none", lambda: parse_settings(given_settings, "inference", files))


@pytest.mark.slow
@LONG
@given(st.lists(setting, min_size=1, max_size=3), st.sampled_from(["inference", "train", "evaluate"]))
def test_settings_at_length(tmp_path_factory, given_settings, config):
    answer(tmp_path_factory.getbasetemp() / "none", lambda: checked_run(config, (), given_settings))


header = st.lists(st.sampled_from(["name", "scans", "reference", "mask", "spacing_mm", "series_description", "x"]))
cells = paths | numbers | st.sampled_from(["t0.nii;t1.nii", "t0.nii;", "a b", "CON", '"', "mean", "-1", "."])
manifests = st.tuples(
    header.map("\t".join) | st.just("name\tscans") | st.just("name\tscans\tspacing_mm\treference"),
    lines(cells, ("\t", "\t", " ")),
).map("\n".join)


def check_manifest(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("study")
    for name in ("t0.nii", "t1.nii"):
        (folder / name).write_bytes(NIFTI)
    (folder / "manifest.tsv").write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.redirect_stderr(io.StringIO()):
        answer(folder, lambda: read_manifest(folder / "manifest.tsv", folder / "out"))


@LENGTHS
def test_manifests(tmp_path_factory, length):
    check_examples(length, manifests, lambda text: check_manifest(tmp_path_factory, text))
