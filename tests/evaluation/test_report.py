import json
import os

import matplotlib.image
import nibabel
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from groupmorph_monai.errors import InputError
from groupmorph_monai.evaluation import report
from groupmorph_monai.evaluation.axial import AxialView
from groupmorph_monai.space.grid import Grid
from groupmorph_monai.space.transforms import AffineTransform


def test_json_holds_plain_numbers_and_null_for_what_json_lacks(tmp_path):
    path = tmp_path / "report.json"
    report.write_json(
        {
            "a": np.float32(0.5),
            "b": torch.tensor(2),
            "c": float("nan"),
            "d": [np.inf, np.int64(3), True],
            "e": {"f": torch.tensor([1.0, float("nan")]), 7: np.array([[1, 2]])},
            "g": tmp_path,
            "h": None,
            "i": (1, "x"),
        },
        path,
    )
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == {
        "a": 0.5,
        "b": 2,
        "c": None,
        "d": [None, 3, True],
        "e": {"f": [1.0, None], "7": [[1, 2]]},
        "g": str(tmp_path),
        "h": None,
        "i": [1, "x"],
    }
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize("failure", ["value", "disk"])
def test_a_failed_write_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch, failure):
    path = tmp_path / "report.json"
    report.write_json({"a": 1}, path)
    if failure == "disk":
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(TypeError if failure == "value" else InputError, match="JSON|no space"):
        report.write_json({"a": object() if failure == "value" else 2}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert os.listdir(tmp_path) == ["report.json"]


def test_table_is_aligned():
    rows = [{"method": "none", "mm": 4.25, "voxels": 12}, {"method": "GroupMorph", "mm": np.float32(0.5), "extra": 1}]
    rows.append({"method": "x", "mm": float("nan"), "voxels": torch.tensor(3)})
    rows.append({"method": "y", "mm": 2e-5, "voxels": 0})
    assert report.format_table(rows, ["method", "mm", "voxels"]).splitlines() == [
        "method           mm  voxels",
        "----------  -------  ------",
        "none          4.250      12",
        "GroupMorph    0.500       -",
        "x                 -       3",
        "y           2.0e-05       0",
    ]
    assert report.format_table([], ["a", "bc"]).splitlines()[0] == "a  bc"


def test_versions_are_those_that_run():
    assert report.versions()["torch"] == str(torch.__version__)
    assert report.versions()["numpy"] == np.__version__


def draw(tmp_path, **changes):
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((3, 10, 12, 6)) for name in ("native", "warped")}
    path, lengths_mm = tmp_path / "report.png", changes.pop("displacement_mm", np.ones((3, 20)))
    volumes = {name: changes.pop(name, array) for name, array in arrays.items()}
    transforms = [changes.pop("transform", AffineTransform(torch.eye(4)))] * 3
    grid = changes.pop("grid", Grid((10, 12, 6), torch.diag(torch.tensor([1.0, 2, 3, 1], dtype=torch.float64))))
    report.draw_report(path, volumes, transforms, lengths_mm, grid, "a series", range(3), **changes)
    return matplotlib.image.imread(path)


def test_the_slice_and_timepoint_of_largest_change_are_chosen():
    native = np.zeros((4, 5, 6, 7), dtype=np.float32)
    native[:, 1, 1, :] = 9  # bright, unchanged
    native[2, 3, 3, 5] = -4
    native[1, 3, 3, 2] = 3
    assert report._most_changed(native, np.zeros_like(native)) == (2, 5)


def test_the_largest_deformation_of_a_single_image_is_chosen():
    warped = np.zeros((3, 5, 6, 7), dtype=np.float32)
    warped[1, 2, 2, 4] = 1
    assert report._most_changed(np.ones_like(warped), warped) == (1, 4)


def test_the_picture_shows_what_it_is_given(tmp_path):
    """Different inputs must change the picture where they are shown, and only there."""
    first = draw(tmp_path)
    height, width = first.shape[:2]

    def changed(**changes):
        rows, columns = np.nonzero(np.abs(draw(tmp_path, **changes) - first).max(axis=2) > 0.05)
        return rows.min() / height, rows.max() / height, columns.min() / width, columns.max() / width

    top, bottom, left, right = changed(warped=np.random.default_rng(1).random((3, 10, 12, 6)))
    assert top > 0.45 and right < 0.67
    top, bottom, left, right = changed(transform=AffineTransform(torch.diag(torch.tensor([1.04, 1, 1, 1]))))
    assert bottom < 0.55 and left > 0.6
    top, bottom, left, right = changed(displacement_mm=np.ones((3, 20)) * [[0.5], [1], [1]])
    assert top > 0.45 and left > 0.6


@pytest.mark.parametrize("stored", ["LPS", "PIR", "SAL"])
def test_the_patient_lies_the_same_way_however_the_scans_are_stored(stored, tmp_path):
    rng = np.random.default_rng(0)
    scan = nibabel.Nifti1Image(rng.random((10, 12, 6, 3)), np.diag([1.0, 2, 3, 1]))
    target = nibabel.orientations.axcodes2ornt(tuple(stored))
    turned = scan.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(scan.affine), target))
    pictures = []
    for image in (scan, turned):
        volumes = np.moveaxis(image.get_fdata(), 3, 0)
        options = {"native": volumes, "warped": volumes[::-1]}
        grid = Grid(image.shape[:3], torch.from_numpy(image.affine))
        pictures.append(draw(tmp_path, **options, grid=grid))
    np.testing.assert_array_equal(*pictures)


def test_the_right_is_on_the_left_and_anterior_at_the_top():
    grid = Grid((4, 5, 3), torch.diag(torch.tensor([-2.0, -2, 3, 1], dtype=torch.float64)))  # LPS+, as DICOM
    volume = np.zeros((1, 4, 5, 3))
    volume[0, 0, 0] = 1  # right and anterior
    view = AxialView(grid)
    axes = Figure().subplots()
    rows = view.show(axes, view.turned(volume)[0, ..., 1], "").get_array()
    assert rows[-1, 0] == 1 == rows.sum() and axes.images[0].origin == "lower"
    assert {text.get_text() for text in axes.texts} == set("RLAP")


def test_pictures_do_not_follow_the_users_style(tmp_path):
    expected = draw(tmp_path)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "axes.facecolor": "red"}):
        np.testing.assert_array_equal(draw(tmp_path), expected)


def test_pictures_leave_no_global_figure_and_refuse_other_shapes(tmp_path):
    draw(tmp_path)
    assert pyplot.get_fignums() == []
    with pytest.raises(ValueError, match=r"\(K, i, j, k\)"):
        draw(tmp_path, warped=np.ones((3, 10, 12)))
