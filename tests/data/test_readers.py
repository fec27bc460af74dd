"""Files in, a series out: geometry against ITK and closed forms, and every mistake answered by one line."""

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from groupmorph_monai.data.readers import read_image, read_series
from groupmorph_monai.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"
SIZE = (9, 12, 7)
OBLIQUE = np.array([[1.2, -0.6, 0.3, -20], [0.5, 1.6, -0.4, 5], [-0.1, 0.5, 2.8, 40], [0, 0, 0, 1]])
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the project")


def _orthogonal(spacing=(1.5, 2.0, 3.0)):
    """A rotated anisotropic affine that ITK takes too."""
    rotation, _ = np.linalg.qr(OBLIQUE[:3, :3])
    affine = OBLIQUE.copy()
    affine[:3, :3] = rotation * spacing
    return affine


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
    assert series.frame_time == 8.5 and series.header.get_xyzt_units() == ("mm", "sec")
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
    assert series.frame_time == 4.5 and series.header is None


def test_folder_is_read_in_natural_order_past_other_files(tmp_path):
    for t in (10, 2, 1):
        _nifti(tmp_path / f"scan{t}.nii.gz", np.full(SIZE, t, np.float32) + _volume() * 1e-3)
    for name in ("times.txt", "note.json", "table.csv", ".DS_Store", "._scan1.nii.gz"):
        (tmp_path / name).write_text("no image")
    for given in (tmp_path, [str(tmp_path)]):
        assert [round(float(f.data.mean())) for f in read_series(given).frames] == [1, 2, 10]


def test_folder_or_list_of_one_4d_file_is_that_file(tmp_path):
    data = _volume((*SIZE, 2))
    path = _nifti(tmp_path / "s.nii.gz", data)
    for given in (path, [path], tmp_path, [tmp_path]):
        np.testing.assert_array_equal(read_series(given).frames[1].data, data[..., 1])


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


MISTAKES = {
    "missing.nii.gz": (lambda p: None, "no such file"),
    "folder.nii.gz": (lambda p: p.mkdir(), "got a folder"),
    "cut.nii": (lambda p: _truncated(p, _nifti), "cannot be read"),
    "cut.nii.gz": (lambda p: _truncated(p, _nifti), "cannot be read"),
    "cut.mha": (lambda p: _truncated(p, _itk), "cannot be read"),
    "cut.nrrd": (lambda p: _truncated(p, _itk), "cannot be read"),
    "text.nii.gz": (lambda p: p.write_text("no image"), "cannot be read"),
    "text.nrrd": (lambda p: p.write_text("NRRD0004\ntype: float\n"), "cannot be read"),
    "notes.txt": (lambda p: p.write_text("no image"), "expected an image"),
    "flat.nii": (lambda p: _nifti(p, _volume((8, 9))), "got shape (8, 9)"),
    "slice.nii": (lambda p: _nifti(p, _volume((8, 9, 1))), "got shape (8, 9, 1)"),
    "flat.mha": (lambda p: itk.imwrite(itk.image_from_array(_volume((8, 9))), str(p)), "got shape (9, 8)"),
    "five.nii": (lambda p: _nifti(p, _volume((4, 5, 6, 2, 3))), "got shape (4, 5, 6, 2, 3)"),
    "vectors.mha": (_vectors, "RGB or vectors"),
    "rgb.nii": (_rgb, "RGB"),
    "nan.nii": (_nan, "got 1 NaN"),
    "inf.nii": (lambda p: _nifti(p, np.where(_volume() > 1, np.inf, 0).astype("f4")), "infinite"),
    "constant.nii": (lambda p: _nifti(p, np.full(SIZE, 3, np.int16)), "got 3 in every voxel"),
    "far.nii": (lambda p: _nifti(p, _volume(), OBLIQUE + 500 * np.eye(4)[:, :1] @ np.eye(4)[3:]), "overlaps"),
    "series.nii": (lambda p: _nifti(p, _volume((*SIZE, 3))), "give it alone"),
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


def test_one_timepoint_no_timepoint_and_a_folder_without_images(tmp_path):
    one = _nifti(tmp_path / "one.nii", _volume((*SIZE, 1)))
    for given in (one, [one], tmp_path):
        assert "one.nii" in _error(given) and "one timepoint" in _error(given)
    assert "empty list" in _error([])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.dcm").write_text("x")
    message = _error(tmp_path / "none")
    assert str(tmp_path / "none") in message and "found none among 1 files" in message and "dcm2niix" in message
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


@needs_data
def test_real_4d_file():
    series = read_series(DATA / "asl" / "pcasl.nii.gz")
    assert len(series.frames) == 10 and series.frames[0].data.shape == (52, 68, 20)
    assert series.frame_time == pytest.approx(2.54) and series.header.get_xyzt_units() == ("mm", "sec")
