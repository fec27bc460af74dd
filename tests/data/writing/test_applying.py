"""Written fields applied to images, labels and points."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from json_files import read_json, write_json
from written_series import (
    SIZE,
    constant_fields,
    save_frames,
    smooth_fields,
    smooth_frame,
    working_grid_of,
    write_result,
)

from groupmorph_monai.data.reading.points import read_points, write_points
from groupmorph_monai.data.series import Frame
from groupmorph_monai.data.writing.applying import apply_field, apply_field_to_files, apply_field_to_points
from groupmorph_monai.data.writing.fields import read_field
from groupmorph_monai.data.writing.nifti import write_image
from groupmorph_monai.errors import InputError


def test_points_there_and_back_under_a_translation(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame("oblique"), smooth_frame("LPS", (25, 24, 23), (1.4, 1.7, 2.0))])
    grid = working_grid_of(series)
    write_result(series, tmp_path / "out", constant_fields(2, grid.shape, [1.5, -0.5, 0.75]), grid)
    points = np.array([7, -30, 110]) + np.random.default_rng(0).uniform(-7, 7, size=(50, 3))
    mapped = apply_field_to_points(tmp_path / "out" / "ddf_01.nii.gz", points)
    np.testing.assert_allclose(mapped, points + grid.affine.numpy()[:3, :3] @ [1.5, -0.5, 0.75], atol=1e-5)
    back = apply_field_to_points(tmp_path / "out" / "inverse_ddf_01.nii.gz", mapped)
    np.testing.assert_allclose(back, points, atol=1e-5)


def test_points_move_with_the_image(tmp_path):
    """The value at p in the common space equals the value of timepoint 1 at p + ddf(p)."""
    series = save_frames(tmp_path / "in", [smooth_frame("LAS"), smooth_frame("oblique", (30, 30, 30), (1.5, 1.5, 1.5))])
    result = write_result(series, tmp_path / "out")
    corner, voxel = series.frames[0].affine, np.array([[9, 13, 7], [6, 8, 9]])
    points = voxel @ corner[:3, :3].T + corner[:3, 3]
    x, y, z = apply_field_to_points(tmp_path / "out" / "ddf_01.nii.gz", points).T
    anatomy = 500 + 200 * np.sin(x / 6) + 150 * np.cos(y / 8 - z / 9) + 4 * x - 3 * y + 5 * z
    np.testing.assert_allclose(result["warped"][1][tuple(voxel.T)], anatomy, atol=5)


def test_applying_a_field_to_the_image_gives_the_warped_one_on_any_grid(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame("LAS"), smooth_frame("oblique", phase=0.7)])
    result = write_result(series, tmp_path / "out")
    field = tmp_path / "out" / "ddf_01.nii.gz"
    stored = nib.load(tmp_path / "out" / "warped.nii.gz").get_fdata()[..., 1]
    applied = apply_field(field, series.frames[1].path).data
    both = (applied != 0) & (stored != 0)
    assert both.mean() > 0.6 and ((applied != 0) != (stored != 0)).mean() < 1e-3  # a rounding error on a face
    np.testing.assert_allclose(applied[both], result["warped"][1][both], atol=1e-3)


def test_labels_move_unmixed_and_keep_their_type(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame("LPS"), smooth_frame("LPS")])
    write_result(series, tmp_path / "out", constant_fields(2, SIZE, [2.0, 0.2, -1.0]), series.frames[0].grid)
    labels = np.random.default_rng(0).choice([0, 3, 1000], size=SIZE).astype(np.uint16)
    write_image(Frame(labels, series.frames[1].affine, ""), tmp_path / "labels.nii.gz")
    resampled = apply_field(tmp_path / "out" / "ddf_01.nii.gz", tmp_path / "labels.nii.gz", nearest=True)
    assert resampled.data.dtype == np.uint16
    np.testing.assert_array_equal(resampled.data[:-2, :, 1:], labels[2:, :, :-1])


@pytest.mark.parametrize("nearest", [False, True])
def test_nan_and_infinite_voxels_become_0_with_a_warning(tmp_path, caplog, nearest):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out", constant_fields(2, SIZE, [0.5, 0.2, -0.5]), series.frames[0].grid)
    field, whole = tmp_path / "out" / "ddf_01.nii.gz", series.frames[1]
    data = whole.data.copy()
    data[5, 5, 5], data[10:] = np.inf, np.nan
    applied = apply_field(field, replace(whole, data=data), nearest).data
    assert np.isfinite(applied).all() and (applied[10:] == 0).all()
    measured = applied != 0
    assert measured.any()
    np.testing.assert_allclose(applied[measured], apply_field(field, whole, nearest).data[measured], rtol=1e-5)
    missing = 1 + data[10:].size
    assert f"{missing} NaN or infinite voxels count as outside of the field of view" in caplog.text


def test_a_masked_voxel_does_not_reach_its_neighbour(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out", constant_fields(2, SIZE, [0.0005, 0, 0]), series.frames[0].grid)
    field, image = tmp_path / "out" / "ddf_01.nii.gz", series.frames[1]
    valid = np.ones(SIZE, dtype=bool)
    valid[10:] = False
    masked = replace(image, data=np.where(valid, image.data, np.float32(1e12)), valid=valid)
    np.testing.assert_allclose(apply_field(field, masked).data[1:10], apply_field(field, image).data[1:10], rtol=2e-3)


def test_labels_that_float64_cannot_hold_are_refused(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out")
    labels = replace(series.frames[1], data=np.full(SIZE, 2**60 + 1, np.int64))
    with pytest.raises(InputError, match=r"expected labels up to 2\^53.* got 1152921504606846977; renumber"):
        apply_field(tmp_path / "out" / "ddf_01.nii.gz", labels, nearest=True)


def test_fractions_as_labels_are_warned_of(tmp_path, caplog):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out")
    for data, warned in ((series.frames[1].data, True), (np.round(series.frames[1].data), False)):
        caplog.clear()
        apply_field(tmp_path / "out" / "ddf_01.nii.gz", replace(series.frames[1], data=data), nearest=True)
        assert ("omit --label unless it is a label map" in caplog.text) == warned


def test_files_that_are_no_fields_are_named_in_one_line(tmp_path):
    write_image(smooth_frame(), tmp_path / "image.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no field", encoding="utf-8")
    for name, words in (("image.nii.gz", "(20, 26, 15)"), ("text.nii.gz", "field"), ("gone.nii.gz", "field")):
        with pytest.raises(InputError) as caught:
            read_field(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_field_that_is_not_finite_is_written_or_read(tmp_path, value):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    ddf = smooth_fields(2, working_grid_of(series).shape)
    ddf[1, 2, 3, 3, 3] = value
    with pytest.raises(InputError, match="ddf_01.nii.gz: expected finite displacements, got .* check the weights"):
        write_result(series, tmp_path / "out", ddf)
    std = Frame(np.full(SIZE, value, np.float32), series.frames[0].affine, "std")
    with pytest.raises(InputError, match="std_mm_00.nii.gz: expected finite standard deviations"):
        write_result(series, tmp_path / "out", std_mm=[std, std])
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    image = nib.load(tmp_path / "out" / "ddf_01.nii.gz")
    data = np.array(image.dataobj)
    data[3, 3, 3, 0, 1] = value
    nib.save(nib.Nifti1Image(data, None, image.header), tmp_path / "broken.nii.gz")
    with pytest.raises(InputError, match="broken.nii.gz: expected finite displacements, got 1 NaN or infinite values"):
        read_field(tmp_path / "broken.nii.gz")


@pytest.fixture
def study(tmp_path):
    """Write a folder with a field, two images whose names differ after a dot, and points in two formats."""
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out")
    for name in ("scan.t1.nii.gz", "scan.t2.nii.gz"):
        write_image(smooth_frame(), tmp_path / name)
    write_points(np.full((2, 3), 5.0), tmp_path / "p.csv")
    (tmp_path / "p.txt").write_text("1 2 3\n", encoding="utf-8")
    return tmp_path


def test_every_file_that_is_moved_keeps_its_name(study):
    files = [study / name for name in ("scan.t1.nii.gz", "scan.t2.nii.gz", "p.csv")]
    targets = apply_field_to_files(study / "out" / "ddf_01.nii.gz", files, study / "there")
    assert targets == [study / "there" / file.name for file in files]
    written = {path.name for path in (study / "there").iterdir()}
    assert written == {".groupmorph_apply.json", *(file.name for file in files)}
    assert read_points(targets[2]) == pytest.approx(
        apply_field_to_points(study / "out" / "ddf_01.nii.gz", np.full((2, 3), 5.0))
    )


def test_points_keep_their_names(study):
    (study / "p.csv").write_text("name,x,y,z\na,5,5,5\nb c,5,5,6\n", encoding="utf-8")
    (target,) = apply_field_to_files(study / "out" / "ddf_01.nii.gz", [study / "p.csv"], study / "there")
    rows = [line.split(",") for line in target.read_text(encoding="utf-8").splitlines()]
    assert [row[-1] for row in rows] == ["label", "a", "b c"] and len(read_points(target)) == 2


def test_a_label_map_without_the_option_is_a_warning(study, caplog):
    scan = study / "scan.t1.nii.gz"
    field, image = study / "out" / "ddf_01.nii.gz", nib.load(scan)
    apply_field(field, scan)
    assert "--label" not in caplog.text
    labels = (image.get_fdata() > np.median(image.get_fdata())).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, image.affine), study / "labels.nii.gz")
    apply_field(field, study / "labels.nii.gz", nearest=True)
    assert "--label" not in caplog.text
    apply_field(field, study / "labels.nii.gz")
    assert "labels.nii.gz: it has a few whole numbers as values; add --label" in caplog.text


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_points_of_slicer_keep_their_system_labels_and_properties(study, system):
    points = [{"label": name, "position": [5.0, 5.0, -5.0], "color": 3} for name in ("a", "ü")]
    node = {"type": "Fiducial", "coordinateSystem": system, "controlPoints": points, "display": {"opacity": 0.5}}
    measured = {**node, "measurements": [{"name": "length", "value": 0.0}]}  # of the original points
    write_json(study / "p.mrk.json", {"@schema": "x", "markups": [measured]})
    field = study / "out" / "ddf_01.nii.gz"
    (target,) = apply_field_to_files(field, [study / "p.mrk.json"], study / "there")
    expected = apply_field_to_points(field, read_points(study / "p.mrk.json"))
    assert target == study / "there" / "p.mrk.json" and read_points(target) == pytest.approx(expected)
    assert np.abs(expected - read_points(study / "p.mrk.json")).max() > 0.1
    content = read_json(target)
    for point, position in zip(points, expected.tolist()):
        point["position"] = pytest.approx([-position[0], -position[1], position[2]] if system == "LPS" else position)
    assert content == {"@schema": "x", "markups": [node]}


def test_no_result_takes_the_place_of_another_or_of_an_input(study):
    field, points = study / "out" / "ddf_01.nii.gz", [study / "p.csv", study / "p.txt"]
    contents = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    (study / "link").symlink_to(study)
    for name, make in (("hard", os.link), ("soft", os.symlink)):
        (study / name).mkdir()
        make(study / "scan.t1.nii.gz", study / name / "scan.t1.nii.gz")
        make(field, study / name / "scan.t2.nii.gz")
    same_name = "p.txt: expected a unique name, got one whose result .*p.csv is also that of .*p.csv"
    replaced = "--output: .* would replace the input"
    for files, output, words in (
        (points, study / "there", same_name),
        ([study / "scan.t1.nii.gz", study / "in" / ".." / "scan.t1.nii.gz"], study / "there", "expected a unique name"),
        ([study / "scan.t1.nii.gz"], study, replaced),
        ([study / "scan.t1.nii.gz"], study / "link", replaced),
        ([study / "p.txt", study / "p.csv"][1:], os.path.relpath(study), replaced),
        ([study / "scan.t1.nii.gz"], study / "hard", replaced),
        ([study / "scan.t1.nii.gz"], study / "soft", replaced),
        ([study / "scan.t2.nii.gz"], study / "hard", f"{replaced} {field}"),
        ([study / "scan.t2.nii.gz"], study / "soft", f"{replaced} {field}"),
    ):
        with pytest.raises(InputError, match=words):
            apply_field_to_files(field, files, output)
    assert not (study / "there").exists()
    assert all(path.read_bytes() == content for path, content in contents.items())


def test_a_file_of_a_registration_is_not_replaced(study):
    (study / "out" / "report.json").write_text('{"files": ["mean.nii.gz"]}', encoding="utf-8")
    (study / "mean.nii").write_bytes((study / "scan.t1.nii.gz").read_bytes())
    for deleted in (False, True):
        if deleted:
            (study / "out" / "mean.nii.gz").unlink()
        with pytest.raises(InputError, match="would replace a file of the registration"):
            apply_field_to_files(study / "out" / "ddf_01.nii.gz", [study / "mean.nii"], study / "out")


def test_only_unchanged_results_are_replaced(study):
    field, there = study / "out" / "ddf_01.nii.gz", study / "there"
    there.mkdir()
    mine = there / "p.csv"
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="p.csv would replace a file that 'apply' did not write"):
        apply_field_to_files(field, [study / "p.csv"], there)
    assert sorted(there.iterdir()) == [mine] and mine.read_text(encoding="utf-8") == "mine"
    mine.unlink()

    apply_field_to_files(field, [study / "p.csv"], there)
    apply_field_to_files(field, [study / "scan.t1.nii.gz"], there)
    record = read_json(there / ".groupmorph_apply.json")
    assert {name: Path(entry["input"]).name for name, entry in record.items()} == {
        "p.csv": "p.csv",
        "scan.t1.nii.gz": "scan.t1.nii.gz",
    }
    write_points(np.full((2, 3), 6.0), study / "p.csv")
    first = mine.read_bytes()
    apply_field_to_files(field, [study / "p.csv"], there)  # the same command again
    assert mine.read_bytes() != first
    with pytest.raises(InputError, match=r"p.csv would replace the result of .*ddf_01.nii.gz for .*p.csv"):
        apply_field_to_files(study / "out" / "inverse_ddf_01.nii.gz", [study / "p.csv"], there)

    moved = study.rename(study.parent / "moved")
    apply_field_to_files(moved / "out" / "ddf_01.nii.gz", [moved / "p.csv"], moved / "there")
    moved.rename(study)

    mine.write_text("edited", encoding="utf-8")
    with pytest.raises(InputError, match="or that was changed since"):
        apply_field_to_files(field, [study / "p.csv"], there)
    (there / ".groupmorph_apply.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="groupmorph_apply.json: expected the record"):
        apply_field_to_files(field, [study / "scan.t1.nii.gz"], there)


def test_several_files_are_all_moved_or_none(study):
    with pytest.raises(InputError, match="gone.nii.gz"):
        apply_field_to_files(study / "out" / "ddf_01.nii.gz", [study / "p.csv", "gone.nii.gz"], study / "there")
    assert not (study / "there").exists()


def test_a_field_that_is_read_knows_no_way_back(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out")
    with pytest.raises(ValueError, match="inverse: expected.*; to invert ddf_KK .* read inverse_ddf_KK"):
        _ = read_field(tmp_path / "out" / "ddf_01.nii.gz").inverse


def test_the_message_about_a_file_that_is_no_field_suggests_one(tmp_path):
    (tmp_path / "transform_03.h5").write_bytes(b"HDF")
    for path, words in ((tmp_path, "a folder"), (tmp_path / "transform_03.h5", "an ITK transform; use the ddf_KK")):
        with pytest.raises(InputError, match=f"expected a displacement field such as ddf_02.nii.gz, got {words}"):
            read_field(path)


def test_an_image_beside_the_field_is_refused(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out")
    far = Frame(series.frames[1].data, series.frames[1].affine + 900 * np.eye(4)[:, :1] @ np.eye(4)[3:], "far.nii")
    with pytest.raises(InputError, match="far.nii.*overlaps"):
        apply_field(tmp_path / "out" / "ddf_01.nii.gz", far)


def test_points_come_back(tmp_path):
    points = np.random.default_rng(0).normal(size=(5, 3)) * 100
    write_points(points, tmp_path / "points.csv")
    np.testing.assert_array_equal(read_points(tmp_path / "points.csv"), points)
    assert (tmp_path / "points.csv").read_text(encoding="utf-8").splitlines()[0] == "x,y,z"


def test_images_without_values_and_points_outside_of_any_scanner_are_refused(tmp_path):
    series = save_frames(tmp_path / "in", [smooth_frame(), smooth_frame()])
    write_result(series, tmp_path / "out")
    field = tmp_path / "out" / "ddf_01.nii.gz"
    for value in (np.nan, np.inf):
        empty = replace(series.frames[1], data=np.full(SIZE, value, np.float32))
        with pytest.raises(InputError, match="expected finite intensities, got none"):
            apply_field(field, empty)
    for value in (np.nan, -np.inf, 1e300):
        with pytest.raises(InputError, match="points: expected finite coordinates within 10 m .* use mm"):
            apply_field_to_points(field, np.array([[0.0, 1.0, 2.0], [0.0, value, 2.0]]))
    write_points(np.full((1, 3), 1e6), tmp_path / "p.csv")
    with pytest.raises(InputError, match="p.csv: expected finite coordinates within 10 m"):
        apply_field_to_files(field, [tmp_path / "p.csv"], tmp_path / "there")
