"""Files in, a series out: geometry against ITK and closed forms, and every mistake answered by one line."""

import os
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from groupmorph_monai.data.preprocessing.right_angles import is_sheared
from groupmorph_monai.data.reading.readers import header_grids, read_image, read_series
from groupmorph_monai.errors import InputError

DATA = Path(__file__).parents[4] / "shared" / "data"
SIZE = (9, 12, 7)
SHEARED = np.array([[1.2, -0.6, 0.3, -20], [0.5, 1.6, -0.4, 5], [-0.1, 0.5, 2.8, 40], [0, 0, 0, 1]])
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the project")


def _orthogonal(spacing=(1.5, 2.0, 3.0)):
    """A rotated anisotropic affine that ITK takes too."""
    rotation, _ = np.linalg.qr(SHEARED[:3, :3])
    affine = SHEARED.copy()
    affine[:3, :3] = rotation * spacing
    return affine


OBLIQUE = _orthogonal()


def _volume(size=SIZE, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def _nifti(path, data, affine=None):
    nib.save(nib.Nifti1Image(data, OBLIQUE if affine is None else affine), path)
    return str(path)


def _itk(path, data, affine):
    """Write by ITK alone: LPS direction, origin and spacing."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(data.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    itk.imwrite(image, str(path))
    return str(path)


def _error(series):
    with pytest.raises(InputError) as caught:
        read_series(series)
    message = str(caught.value)
    assert "\n" not in message and "; " in message and len(message) < 700
    return message


def test_4d_nifti_keeps_values_place_time_and_units(tmp_path):
    data = _volume((*SIZE, 3))
    image = nib.Nifti1Image(data, OBLIQUE)
    image.header.set_zooms((*image.header.get_zooms()[:3], 8.5))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "series.nii.gz")
    series = read_series(tmp_path / "series.nii.gz")
    assert series.frame_time == 8.5 and series.frames[2].header.get_xyzt_units() == ("mm", "sec")
    for t, frame in enumerate(series.frames):
        np.testing.assert_array_equal(frame.data, data[..., t])
        np.testing.assert_allclose(frame.affine, OBLIQUE, atol=1e-5)
    assert len(series.frames) == 3


def test_trailing_axes_of_one_voxel_go(tmp_path):
    files = [_nifti(tmp_path / f"{t}.nii", _volume((*SIZE, 1, 1), t)) for t in range(2)]
    np.testing.assert_array_equal(read_series(files).frames[1].data, _volume((*SIZE, 1, 1), 1)[..., 0, 0])


@pytest.mark.parametrize("name", ["x.mha", "x.mhd", "x.nrrd", "x.nii.gz"])
def test_formats_of_itk_lie_where_nifti_lies(tmp_path, name):
    data, affine = _volume(), _orthogonal()
    frames = read_series([_itk(tmp_path / name, data, affine), _nifti(tmp_path / "n.nii", data, affine)]).frames
    for frame in frames:
        np.testing.assert_array_equal(frame.data, data)
        np.testing.assert_allclose(frame.affine, affine, atol=1e-4)


def test_4d_image_of_itk_is_a_series(tmp_path):
    data = _volume((*SIZE, 3))
    image = itk.image_from_array(np.ascontiguousarray(data.T))
    image.SetSpacing([1.5, 2.0, 3.0, 4.5])
    itk.imwrite(image, str(tmp_path / "t.nrrd"))
    series = read_series(tmp_path / "t.nrrd")
    np.testing.assert_array_equal(np.stack([f.data for f in series.frames], -1), data)
    np.testing.assert_allclose(series.frames[0].affine, np.diag([-1.5, -2.0, 3.0, 1.0]))
    assert series.frame_time == 4.5 and series.frames[0].header is None


def test_folder_is_read_in_natural_order_past_other_files(tmp_path):
    for t in (10, 2, 1):
        _nifti(tmp_path / f"scan{t}.nii.gz", np.full(SIZE, t, np.float32) + _volume() * 1e-3)
    for name in ("times.txt", "note.json", "table.csv", ".DS_Store", "._scan1.nii.gz"):
        (tmp_path / name).write_text("no image", encoding="utf-8")
    for source in (tmp_path, [str(tmp_path)]):
        assert [round(float(f.data.mean())) for f in read_series(source).frames] == [1, 2, 10]


def test_folder_or_list_of_one_4d_file_is_that_file(tmp_path):
    data = _volume((*SIZE, 2))
    path = _nifti(tmp_path / "s.nii.gz", data)
    for source in (path, [path], tmp_path, [tmp_path]):
        np.testing.assert_array_equal(read_series(source).frames[1].data, data[..., 1])


def test_headers_alone_tell_the_grids_of_what_is_read(tmp_path):
    four = nib.Nifti1Image(_volume((*SIZE, 3)), np.diag([1000, 1000, 1000, 1]) @ OBLIQUE)
    four.header.set_xyzt_units("micron", "sec")
    nib.save(four, tmp_path / "series.nii.gz")
    files = [_nifti(tmp_path / "a.nii", _volume()), _itk(tmp_path / "b.nrrd", _volume((8, 7, 6)), OBLIQUE)]
    files.append(_itk(tmp_path / "c.mha", _volume(), OBLIQUE @ np.diag([1, 1, 2, 1])))
    for source in ([tmp_path / "series.nii.gz"], files):
        read = [frame.grid for frame in read_series(source).frames]
        assert len(header_grids(source)) == len(read)
        assert all(header_grid.matches(grid, 1e-4) for header_grid, grid in zip(header_grids(source), read))


def test_headers_of_files_that_are_cut_short_or_missing_tell_nothing(tmp_path):
    whole = Path(_nifti(tmp_path / "a.nii", np.zeros((200, 200, 200), np.float32)))
    cut = tmp_path / "cut.nii"
    cut.write_bytes(whole.read_bytes()[:5000])
    assert header_grids([whole]) and header_grids([whole, cut]) == header_grids([whole, "absent.nii"]) == []


@pytest.mark.parametrize("affine", [np.diag([0, 1, 1, 1]), np.diag([np.nan, 1, 1, 1]), np.diag([1e6, 1, 1, 1])])
def test_headers_that_place_no_patient_tell_nothing(affine, tmp_path):
    def grids(affine):
        image = nib.Nifti1Image(_volume(), np.eye(4))
        image.header.set_sform(affine, 1)
        (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + _volume().tobytes())
        return header_grids([tmp_path / "a.nii"])

    assert len(grids(np.eye(4))) == 1 and grids(affine) == []


def test_labels_keep_their_type(tmp_path):
    labels = np.arange(np.prod(SIZE), dtype=np.uint16).reshape(SIZE)
    for path in (_nifti(tmp_path / "l.nii", labels), _itk(tmp_path / "l.mha", labels, _orthogonal())):
        read = read_image(path, labels=True)
        assert read.data.dtype == np.uint16
        np.testing.assert_array_equal(read.data, labels)
        assert read_image(path).data.dtype == np.float32


# One a mistake: its name, the file's content or how it is made, and words that the message must hold.
def _truncated(path, writer):
    writer(path, _volume((20, 20, 20)), _orthogonal())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _vectors(path):
    itk.imwrite(itk.image_from_array(_volume((5, 6, 7, 3)), is_vector=True), str(path))


def _rgb(path):
    nib.save(nib.Nifti1Image(np.zeros(SIZE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)), path)


def _nan(path):
    data = _volume()
    data[2, 3, 4] = np.nan
    _nifti(path, data)


def _patched(path, field, value, code=None):
    """A NIfTI with a voxel size alone for its place, one field of whose header nibabel would not write."""
    image = nib.Nifti1Image(_volume().astype(np.int16), None)
    header = nib.Nifti1Header.from_header(image.header, check=False)
    header["magic"], header["vox_offset"], header["sform_code"], header["qform_code"] = b"n+1", 352, 0, 0
    header[field] = value
    if code:
        header[code] = 1
    with nib.openers.Opener(str(path), "wb") as file:
        file.write(header.binaryblock + bytes(4) + image.get_fdata().astype(np.int16).tobytes(order="F"))


# Two metres a voxel, along an axis of the array that runs along the third one of the world.
GIANT = np.diag([1.0, 1, 2000, 1])[:, [2, 0, 1, 3]]
MISTAKES = {
    "missing.nii.gz": (lambda p: None, "got a path that does not exist"),
    "folder.nii.gz": (lambda p: p.mkdir(), "got a folder"),
    "cut.nii": (lambda p: _truncated(p, _nifti), "got an unreadable one"),
    "cut.nii.gz": (lambda p: _truncated(p, _nifti), "got an unreadable one"),
    "cut.mha": (lambda p: _truncated(p, _itk), "bytes of voxels as declared"),
    "cut.nrrd": (lambda p: _truncated(p, _itk), "bytes of voxels as declared"),
    "text.nii.gz": (lambda p: p.write_text("no image", encoding="utf-8"), "got an unreadable one"),
    "text.nrrd": (lambda p: p.write_text("NRRD0004\ntype: float\n", encoding="utf-8"), "expected an empty line"),
    "notes.txt": (lambda p: p.write_text("no image", encoding="utf-8"), "expected an image"),
    "flat.nii": (lambda p: _nifti(p, _volume((8, 9))), "got shape (8, 9)"),
    "slice.nii": (lambda p: _nifti(p, _volume((8, 9, 1))), "got shape (8, 9, 1)"),
    "flat.mha": (lambda p: itk.imwrite(itk.image_from_array(_volume((8, 9))), str(p)), "got shape (9, 8)"),
    "five.nii": (lambda p: _nifti(p, _volume((4, 5, 6, 2, 3))), "got shape (4, 5, 6, 2, 3)"),
    "vectors.mha": (_vectors, "RGB or vectors"),
    "rgb.nii": (_rgb, "RGB"),
    "nan.nii": (_nan, "got 1 NaN"),
    "inf.nii": (lambda p: _nifti(p, np.where(_volume() > 1, np.inf, 0).astype("f4")), "infinite"),
    "constant.nii": (lambda p: _nifti(p, np.full(SIZE, 3, np.int16)), "got 3 in every voxel"),
    "one.nii": (lambda p: _nifti(p, np.eye(1, 756, 5, "f4").reshape(SIZE)), "got 0 in all voxels but 1"),
    "huge.nii": (lambda p: _nifti(p, np.float32(1e37) * _volume()), "rescale"),
    "tiny.nii": (lambda p: _nifti(p, 1e-30 * _volume()), "rescale"),
    "giant.nii": (lambda p: _nifti(p, _volume(), GIANT), "got 1.8e+04 x 12 x 7 mm"),
    "dust.nii": (lambda p: _nifti(p, _volume(), np.diag([1e-3, 1e-3, 1e-3, 1])), "its unit in the header"),
    "steep.nii": (lambda p: _nifti(p, _volume(), SHEARED + np.eye(4)[:, :1] @ [[0, 9, 0, 0]]), "right angles"),
    "scale.nii": (lambda p: _patched(p, "scl_slope", np.inf), "scl_slope"),
    "code.nii": (lambda p: _patched(p, "sform_code", 99), "sform_code from 0 to 5"),
    "sign.nii": (lambda p: _patched(p, "pixdim", [np.nan, 1, 1, 1, 1, 1, 1, 1], "qform_code"), "the sign of the qform"),
    "short.nii": (lambda p: _patched(p, "dim", [3, 9, 12, 6, 1, 1, 1, 1]), "216 more bytes after (9, 12, 6) voxels"),
    "short.nii.gz": (lambda p: _patched(p, "dim", [3, 8, 12, 7, 1, 1, 1, 1]), "168 more bytes after (8, 12, 7) voxels"),
    "bytes.nii": (lambda p: _patched(p, "datatype", 2), "756 more bytes"),
    "mixed.Nii": (lambda p: _nifti(p.with_suffix(".nii"), _volume()) and p.with_suffix(".nii").rename(p), "rename it"),
    "pipe.nii": (lambda p: os.mkfifo(p), "got a pipe or device"),
    "pipe.mha": (lambda p: os.mkfifo(p), "got a pipe or device"),
    "link.nii.gz": (lambda p: p.symlink_to(".git/annex/object"), "a link to a missing one, '.git/annex/object'"),
    "loop.nii.gz": (lambda p: p.symlink_to(p.name), "a link to a missing one"),
    "unsized.nii": (lambda p: _patched(p, "pixdim", [1, 0, 1, 1, 1, 1, 1, 1]), "pixdim"),
    "vast.nii.gz": (lambda p: _patched(p, "dim", [3, 32767, 32767, 32767, 1, 1, 1, 1]), "memory"),
    "far.nii": (lambda p: _nifti(p, _volume(), OBLIQUE + 500 * np.eye(4)[:, :1] @ np.eye(4)[3:]), "overlaps"),
    "series.nii": (lambda p: _nifti(p, _volume((*SIZE, 3))), "use it alone"),
    "analyze.img": (lambda p: nib.save(nib.Spm99AnalyzeImage(_volume(), OBLIQUE), p), "left from right"),
    "alone.img": (lambda p: p.write_bytes(bytes(3024)), "got an unreadable one"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_file_among_good_ones_is_named_in_one_line(tmp_path, name, capfd):
    make, words = MISTAKES[name]
    good = _nifti(tmp_path / "good.nii", _volume())
    make(tmp_path / name)
    capfd.readouterr()
    message = _error([good, str(tmp_path / name)])
    assert message.startswith(str(tmp_path / name)) and words in message
    assert capfd.readouterr().err == ""


def test_a_4d_file_for_one_volume_is_to_be_split(tmp_path):
    path = _nifti(tmp_path / "s.nii", _volume((*SIZE, 3)))
    with pytest.raises(InputError, match="expected a 3D volume, got shape .*; split it into 3D files$"):
        read_image(path)


@pytest.mark.parametrize("value", ["", 3, {"a": 1}, [["t0.nii"]], [""], ["t0.nii", None]])
def test_what_cannot_be_paths_is_named(value):
    assert _error(value).startswith(f"series: expected image files or a folder, got {value!r}")


def test_one_timepoint_no_timepoint_and_a_folder_without_images(tmp_path):
    one = _nifti(tmp_path / "one.nii", _volume((*SIZE, 1)))
    for source in (one, [one], tmp_path):
        assert "one.nii" in _error(source) and "one timepoint" in _error(source)
    assert "empty list" in _error([])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.dcm").write_text("x", encoding="utf-8")
    message = _error(tmp_path / "none")
    assert str(tmp_path / "none") in message and "DICOM" in message and "found none" in message
    assert "gone" in _error(tmp_path / "gone")


def test_a_bad_timepoint_of_a_4d_file_is_numbered(tmp_path):
    data = _volume((*SIZE, 3))
    data[..., 2] = 1
    assert "(timepoint 2)" in _error(_nifti(tmp_path / "s.nii", data))


def test_boxes_that_touch_only_by_their_axis_aligned_hull_overlap_and_far_ones_do_not(tmp_path):
    near = OBLIQUE.copy()
    near[:3, 3] += OBLIQUE[:3, 0] * (SIZE[0] - 2)  # two voxels of overlap along i
    far = OBLIQUE.copy()
    far[:3, 3] += OBLIQUE[:3, 0] * (SIZE[0] + 1)  # a gap of one voxel
    first = _nifti(tmp_path / "a.nii", _volume())
    assert len(read_series([first, _nifti(tmp_path / "b.nii", _volume(), near)]).frames) == 2
    assert "overlaps" in _error([first, _nifti(tmp_path / "c.nii", _volume(), far)])


@pytest.mark.parametrize(("unit", "size_mm"), [("meter", 1e3), ("micron", 1e-3), ("mm", 1.0), (0, 1.0)])
def test_units_of_space_become_millimetres(tmp_path, unit, size_mm):
    affine = np.diag([1 / size_mm, 1 / size_mm, 1 / size_mm, 1]) @ OBLIQUE
    image = nib.Nifti1Image(_volume((*SIZE, 2)), affine)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "s.nii")
    np.testing.assert_allclose(read_series(tmp_path / "s.nii").frames[1].affine, OBLIQUE, rtol=1e-6, atol=1e-5)


def test_a_time_that_nobody_gave_is_none(tmp_path):
    files = [_nifti(tmp_path / f"{t}.nii", _volume(seed=t)) for t in range(2)]
    assert read_series(files).frame_time is None
    image = nib.Nifti1Image(_volume((*SIZE, 2)), OBLIQUE)
    image.header["pixdim"][4] = 0
    nib.save(image, tmp_path / "s.nii")
    assert read_series(tmp_path / "s.nii").frame_time is None
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(_volume((*SIZE, 2)).T)), str(tmp_path / "s.nrrd"))
    assert read_series(tmp_path / "s.nrrd").frame_time is None


def _two_forms(path, qform, sform, codes):
    image = nib.Nifti1Image(_volume(), None)
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    nib.save(image, path)
    return str(path)


def test_of_two_forms_the_sform_is_read_and_a_difference_is_told(tmp_path, caplog):
    shifted = OBLIQUE + 3 * np.eye(4)[:, :1] @ np.eye(4)[3:]
    near = OBLIQUE + 0.01 * np.eye(4)[:, :1] @ np.eye(4)[3:]
    # Half a turn and a little more: float32 quaternions hold it to some 1e-4 radians.
    tilt = np.diag([-1.0, -1, 1, 1])
    tilt[1:3, 1:3] = [[-np.cos(1e-3), -np.sin(1e-3)], [-np.sin(1e-3), np.cos(1e-3)]]
    tilt = np.diag([90.0, 90, 90, 1]) @ tilt
    cases = {
        "both": (shifted, OBLIQUE, (1, 2), OBLIQUE, True),
        "alike": (near, OBLIQUE, (1, 1), OBLIQUE, False),
        "rounded": (tilt, tilt, (1, 1), tilt, False),
        "qform": (shifted, OBLIQUE, (1, 0), shifted, False),
        "sform": (shifted, OBLIQUE, (0, 4), OBLIQUE, False),
    }
    for name, (qform, sform, codes, expected, warned) in cases.items():
        caplog.clear()
        path = _two_forms(tmp_path / f"{name}.nii", qform, sform, codes)
        np.testing.assert_allclose(read_image(path).affine, expected, atol=1e-4, err_msg=name)
        warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert bool(warnings) == warned, name
        assert all(path in warning and "3.0 mm" in warning and "sform is used" in warning for warning in warnings)


@pytest.mark.parametrize("kind", ["nii", "mha", "nrrd"])
@pytest.mark.parametrize("permutation", [(0, 1, 2), (2, 0, 1)])
def test_a_sheared_scan_comes_onto_right_angles_with_its_values_in_place(tmp_path, kind, permutation):
    """A ramp in the world is interpolated exactly, so every voxel that the scan has seen is known."""
    affine = SHEARED[:, [*permutation, 3]]
    size = tuple(np.array((20, 24, 9))[list(permutation)])
    voxels = np.stack([*np.meshgrid(*map(np.arange, size), indexing="ij"), np.ones(size)])
    ramp = np.einsum("d,dijk->ijk", [2.0, -3, 5, 0] @ affine, voxels).astype(np.float32)
    path = tmp_path / f"x.{kind}"
    (_nifti if kind == "nii" else _itk)(path, ramp, affine)
    frame = read_series([path, path]).frames[1]
    assert is_sheared(affine) and not is_sheared(frame.affine)
    np.testing.assert_allclose(np.linalg.det(frame.affine), np.linalg.det(affine), rtol=1e-5)
    thickest = permutation.index(2)
    plane = [axis for axis in range(3) if axis != thickest]  # slices stay slices
    assert np.abs(np.cross(*affine[:3, plane].T) @ frame.affine[:3, plane]).max() < 1e-5
    index = np.stack([*np.meshgrid(*map(np.arange, frame.data.shape), indexing="ij"), np.ones(frame.data.shape)])
    world = np.einsum("de,eijk->dijk", frame.affine, index)
    stored = np.einsum("de,eijk->dijk", np.linalg.inv(affine), world)[:3]
    last = np.array(size).reshape(3, 1, 1, 1) - 1
    within = ((stored > -0.49) & (stored < last + 0.49)).all(axis=0)
    beyond = ((stored < -0.51) | (stored > last + 0.51)).any(axis=0)
    assert frame.valid[within].all() and not frame.valid[beyond].any()
    inner = ((stored >= 0) & (stored <= last)).all(axis=0)
    expected = np.einsum("d,dijk->ijk", [2.0, -3, 5, 0], world)
    assert inner.sum() > 0.7 * ramp.size
    np.testing.assert_allclose(frame.data[inner], expected[inner], atol=1e-3)
    assert np.unique(frame.data[~frame.valid]).tolist() == [frame.data[frame.valid].min()]
    corners = np.array(
        [[i, j, k, 1] for i in (0, size[0] - 1) for j in (0, size[1] - 1) for k in (0, size[2] - 1)], float
    )
    corners = (np.linalg.inv(frame.affine) @ affine @ corners.T)[:3].T
    assert corners.min() > -0.01 and (corners < np.array(frame.data.shape) - 0.99).all()


def test_a_shear_from_rounding_is_dropped_and_the_data_stay(tmp_path):
    affine = OBLIQUE.copy()
    affine[:3, 2] += 5e-4 * 3.0 / 1.5 * affine[:3, 0]
    frame = read_series([_nifti(tmp_path / "a.nii", _volume(), affine)] * 2).frames[0]
    np.testing.assert_array_equal(frame.data, _volume())
    assert frame.valid is None
    axes = frame.affine[:3, :3] / np.linalg.norm(frame.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    corners = np.array([[i, j, k, 1] for i in (0, 8) for j in (0, 11) for k in (0, 6)])
    assert np.abs(corners @ (frame.affine - affine).T).max() < 5e-4 * 9


def _round_view(size=(24, 26, 10)):
    i, j, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    return np.hypot(i, j) <= 1


@pytest.mark.parametrize("fill", [-2048, -3024, -32768])
def test_a_fill_value_is_no_evidence(tmp_path, fill):
    view = _round_view()
    tissue = np.random.default_rng(0).normal(40, 60, view.shape)
    tissue[:, :8] = np.random.default_rng(1).normal(-1000, 20, tissue[:, :8].shape)
    tissue = tissue.round().astype(np.int16)
    files = [
        _nifti(tmp_path / "filled.nii", np.where(view, tissue, np.int16(fill))),
        _nifti(tmp_path / "whole.nii", tissue),
    ]
    filled, whole = read_series(files).frames
    np.testing.assert_array_equal(filled.valid, view)
    np.testing.assert_array_equal(filled.data[view], tissue[view])
    assert np.unique(filled.data[~view]).tolist() == [tissue[view].min()]
    assert whole.valid is None
    np.testing.assert_array_equal(whole.data, tissue)


def test_the_rim_of_an_interpolated_fill_value_goes_with_it(tmp_path):
    view = _round_view((80, 80, 10))
    tissue = np.random.default_rng(0).uniform(-1000, 300, view.shape)
    data = np.where(view, tissue, -2048)
    data[np.roll(view, 1, 0) & ~view] = -1990
    valid = read_series([_nifti(tmp_path / "a.nii", data.astype(np.float32))] * 2).frames[0].valid
    np.testing.assert_array_equal(valid, view)


def test_what_is_no_fill_value_stays(tmp_path):
    noise, view = np.random.default_rng(0).normal(size=(24, 26, 10)), _round_view()
    inner = np.zeros_like(view)
    inner[8:12, 8:12, 3:7] = True
    cases = {
        "clipped": np.clip(noise, -2, 2),  # 2 % hold the minimum, as many lie just above it
        "masked": np.where(view, np.abs(noise) + 5, 0),
        "air": np.where(view, 200 * noise, -1024).clip(-1024),
        "inner": np.where(inner, -2048, noise),  # not on the border
        "corner": np.where(np.arange(noise.size).reshape(noise.shape) < 2, -2048, noise),  # too few
        "mask": np.where(view, 1, -1),
    }
    cases["air"][view & (noise < -1)] = -1000 - 20 * np.abs(noise[view & (noise < -1)])
    for name, data in cases.items():
        frame = read_series([_nifti(tmp_path / f"{name}.nii", data.astype(np.float32))] * 2).frames[0]
        assert frame.valid is None, name
        np.testing.assert_array_equal(frame.data, data.astype(np.float32))


def test_a_folder_lacks_no_scan(tmp_path):
    """As in a git-annex clone in which one scan was not fetched."""
    for k in range(3):
        _nifti(tmp_path / f"t{k}.nii", _volume())
    (tmp_path / "t3.nii").symlink_to("gone.nii")
    assert "t3.nii: expected a file, got a link to a missing one, 'gone.nii'" in _error(tmp_path)
    (tmp_path / "study" / "sub").mkdir(parents=True)
    for k in range(4):
        (tmp_path / f"t{k}.nii").rename(tmp_path / "study" / "sub" / f"t{k}.nii")
    assert "t3.nii: expected a file, got a link to a missing one" in _error(tmp_path / "study")


def test_a_little_padding_after_the_voxels_does_no_harm(tmp_path):
    path = _nifti(tmp_path / "a.nii", _volume())
    with open(path, "ab") as file:
        file.write(bytes(40))
    np.testing.assert_array_equal(read_image(path).data, _volume())


@pytest.mark.parametrize("name", ["x.hdr", "x.img", "x.img.gz"])
@pytest.mark.parametrize("codes", [(1, 2), (1, 0), (0, 2), (0, 0)])
def test_a_pair_of_files_lies_where_the_same_image_in_one_file_does(tmp_path, name, codes):
    """Whichever of the qform and the sform, which place it elsewhere, is in force; and in time."""
    for kind, file in ((nib.Nifti1Image, "one.nii.gz"), (nib.Nifti1Pair, name)):
        image = kind(_volume((*SIZE, 2)), None)
        image.set_qform(OBLIQUE, codes[0])
        image.set_sform(OBLIQUE + 7 * np.eye(4)[:, :1] @ np.eye(4)[3:], codes[1])
        image.header.set_zooms((*image.header.get_zooms()[:3], 8.5))
        nib.save(image, tmp_path / file)
    one, pair = (read_series(tmp_path / file) for file in ("one.nii.gz", name))
    assert one.frame_time == pair.frame_time == 8.5
    for expected, frame in zip(one.frames, pair.frames):
        np.testing.assert_array_equal(frame.data, expected.data)
        np.testing.assert_array_equal(frame.affine, expected.affine)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_no_slope_is_no_scaling(tmp_path, slope):
    _patched(tmp_path / "a.nii", "scl_slope", slope)
    frame = read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(frame.data, _volume().astype(np.int16))
    # Neither form: the middle of the volume is the origin, and the first axis points left.
    expected = np.diag([-1.0, 1, 1, 1])
    expected[:3, 3] = [4, -5.5, -3]
    np.testing.assert_array_equal(frame.affine, expected)


@needs_data
def test_real_4d_file():
    series = read_series(DATA / "asl" / "pcasl.nii.gz")
    assert len(series.frames) == 10 and series.frames[0].data.shape == (52, 68, 20)
    assert series.frame_time == pytest.approx(2.54) and series.frames[0].header.get_xyzt_units() == ("mm", "sec")
