"""Reading of series: the geometry agrees with ITK and closed forms, and every mistake is reported in one line."""

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from image_files import (
    OBLIQUE,
    SHEARED,
    SIZE,
    affine_by_itk,
    error_of,
    make_volume,
    orthogonal_affine,
    patch_header,
    write_by_itk,
    write_nifti,
)

from groupmorph_monai.data.preprocessing.right_angles import is_sheared
from groupmorph_monai.data.reading.readers import header_grids, read_image, read_series

DATA = Path(__file__).parents[4] / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the data beside the project")


def test_4d_nifti_keeps_values_place_time_and_units(tmp_path):
    data = make_volume((*SIZE, 3))
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
    files = [write_nifti(tmp_path / f"{t}.nii", make_volume((*SIZE, 1, 1), t)) for t in range(2)]
    np.testing.assert_array_equal(read_series(files).frames[1].data, make_volume((*SIZE, 1, 1), 1)[..., 0, 0])


@pytest.mark.parametrize("name", ["x.mha", "x.mhd", "x.nrrd", "x.nii.gz"])
def test_formats_of_itk_lie_where_nifti_lies(tmp_path, name):
    data, affine = make_volume(), orthogonal_affine()
    frames = read_series(
        [write_by_itk(tmp_path / name, data, affine), write_nifti(tmp_path / "n.nii", data, affine)]
    ).frames
    for frame in frames:
        np.testing.assert_array_equal(frame.data, data)
        np.testing.assert_allclose(frame.affine, affine, atol=1e-4)


def test_4d_image_of_itk_is_a_series(tmp_path):
    data = make_volume((*SIZE, 3))
    image = itk.image_from_array(np.ascontiguousarray(data.T))
    image.SetSpacing([1.5, 2.0, 3.0, 4.5])
    itk.imwrite(image, str(tmp_path / "t.nrrd"))
    series = read_series(tmp_path / "t.nrrd")
    np.testing.assert_array_equal(np.stack([f.data for f in series.frames], -1), data)
    np.testing.assert_allclose(series.frames[0].affine, np.diag([-1.5, -2.0, 3.0, 1.0]))
    assert series.frame_time == 4.5 and series.frames[0].header is None


def test_folder_is_read_in_natural_order_past_other_files(tmp_path):
    for t in (10, 2, 1):
        write_nifti(tmp_path / f"scan{t}.nii.gz", np.full(SIZE, t, np.float32) + make_volume() * 1e-3)
    for name in ("times.txt", "note.json", "table.csv", ".DS_Store", "._scan1.nii.gz"):
        (tmp_path / name).write_text("no image", encoding="utf-8")
    for source in (tmp_path, [str(tmp_path)]):
        assert [round(float(f.data.mean())) for f in read_series(source).frames] == [1, 2, 10]


def test_pairs_of_files_in_a_folder_are_scans(tmp_path):
    for t in (0, 1):
        nib.save(nib.Nifti1Pair(make_volume() + t, OBLIQUE), tmp_path / f"t{t}.img")
    (tmp_path / "alone.hdr").write_text("of another format", encoding="utf-8")
    assert [Path(frame.path).name for frame in read_series(tmp_path).frames] == ["t0.hdr", "t1.hdr"]


def test_folder_or_list_of_one_4d_file_is_that_file(tmp_path):
    data = make_volume((*SIZE, 2))
    path = write_nifti(tmp_path / "s.nii.gz", data)
    for source in (path, [path], tmp_path, [tmp_path]):
        np.testing.assert_array_equal(read_series(source).frames[1].data, data[..., 1])


def test_headers_alone_tell_the_grids_of_what_is_read(tmp_path):
    four = nib.Nifti1Image(make_volume((*SIZE, 3)), np.diag([1000, 1000, 1000, 1]) @ OBLIQUE)
    four.header.set_xyzt_units("micron", "sec")
    nib.save(four, tmp_path / "series.nii.gz")
    files = [
        write_nifti(tmp_path / "a.nii", make_volume()),
        write_by_itk(tmp_path / "b.nrrd", make_volume((8, 7, 6)), OBLIQUE),
    ]
    files.append(write_by_itk(tmp_path / "c.mha", make_volume(), OBLIQUE @ np.diag([1, 1, 2, 1])))
    for source in ([tmp_path / "series.nii.gz"], files):
        read = [frame.grid for frame in read_series(source).frames]
        assert len(header_grids(source)) == len(read)
        assert all(header_grid.matches(grid, 1e-4) for header_grid, grid in zip(header_grids(source), read))


@pytest.mark.parametrize("affine", [np.diag([0, 1, 1, 1]), np.diag([np.nan, 1, 1, 1]), np.diag([1e6, 1, 1, 1])])
def test_headers_that_place_no_patient_tell_nothing(affine, tmp_path):
    def grids(affine):
        image = nib.Nifti1Image(make_volume(), np.eye(4))
        image.header.set_sform(affine, 1)
        image.header["vox_offset"] = 352
        (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + make_volume().tobytes())
        return header_grids([tmp_path / "a.nii"])

    assert len(grids(np.eye(4))) == 1 and grids(affine) == []


def test_labels_keep_their_type(tmp_path):
    labels = np.arange(np.prod(SIZE), dtype=np.uint16).reshape(SIZE)
    for path in (
        write_nifti(tmp_path / "l.nii", labels),
        write_by_itk(tmp_path / "l.mha", labels, orthogonal_affine()),
    ):
        read = read_image(path, labels=True)
        assert read.data.dtype == np.uint16
        np.testing.assert_array_equal(read.data, labels)
        assert read_image(path).data.dtype == np.float32


def test_boxes_that_touch_only_by_their_axis_aligned_hull_overlap_and_far_ones_do_not(tmp_path):
    near = OBLIQUE.copy()
    near[:3, 3] += OBLIQUE[:3, 0] * (SIZE[0] - 2)  # two voxels of overlap along i
    far = OBLIQUE.copy()
    far[:3, 3] += OBLIQUE[:3, 0] * (SIZE[0] + 1)  # a gap of one voxel
    first = write_nifti(tmp_path / "a.nii", make_volume())
    assert len(read_series([first, write_nifti(tmp_path / "b.nii", make_volume(), near)]).frames) == 2
    assert "overlaps" in error_of([first, write_nifti(tmp_path / "c.nii", make_volume(), far)])


@pytest.mark.parametrize(("unit", "size_mm"), [("meter", 1e3), ("micron", 1e-3), ("mm", 1.0), (0, 1.0)])
def test_units_of_space_become_millimetres(tmp_path, unit, size_mm):
    affine = np.diag([1 / size_mm, 1 / size_mm, 1 / size_mm, 1]) @ OBLIQUE
    image = nib.Nifti1Image(make_volume((*SIZE, 2)), affine)
    image.header.set_xyzt_units(unit, "sec")
    nib.save(image, tmp_path / "s.nii")
    np.testing.assert_allclose(read_series(tmp_path / "s.nii").frames[1].affine, OBLIQUE, rtol=1e-6, atol=1e-5)


def test_a_time_that_nobody_gave_is_none(tmp_path):
    files = [write_nifti(tmp_path / f"{t}.nii", make_volume(seed=t)) for t in range(2)]
    assert read_series(files).frame_time is None
    image = nib.Nifti1Image(make_volume((*SIZE, 2)), OBLIQUE)
    for value, unit in ((0, "sec"), (5, "hz"), (5, "rads")):
        image.header["pixdim"][4] = value
        image.header.set_xyzt_units("mm", unit)
        nib.save(image, tmp_path / "s.nii")
        series = read_series(tmp_path / "s.nii")
        assert series.frame_time is None and series.times_s is None
    itk.imwrite(itk.image_from_array(np.ascontiguousarray(make_volume((*SIZE, 2)).T)), str(tmp_path / "s.nrrd"))
    assert read_series(tmp_path / "s.nrrd").frame_time is None


def _two_forms(path, qform, sform, codes, unit="mm"):
    image = nib.Nifti1Image(make_volume(), None)
    image.set_qform(qform, codes[0])
    image.set_sform(sform, codes[1])
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return str(path)


def test_the_sform_is_preferred_and_a_different_qform_is_reported(tmp_path, caplog):
    shifted = OBLIQUE + 3 * np.eye(4)[:, :1] @ np.eye(4)[3:]
    near = OBLIQUE + 0.01 * np.eye(4)[:, :1] @ np.eye(4)[3:]
    # A little more than half a turn, which float32 quaternions represent to about 1e-4 radians.
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
        assert all(
            path in warning and "3.0 mm" in warning and "sform is used" in warning and "apply" in warning
            for warning in warnings
        )


@pytest.mark.parametrize("unit, mm", [("mm", 1), ("micron", 1e-3)])
@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (2, 1)])
def test_a_file_that_itk_places_elsewhere_is_a_warning_that_says_how_far(tmp_path, codes, unit, mm):
    header_affine = np.diag([1 / mm, 1 / mm, 1 / mm, 1]) @ OBLIQUE
    path = _two_forms(tmp_path / "a.nii", header_affine, header_affine, codes, unit)
    series = read_series([path, path])
    corners = np.array([(i, j, k, 1) for i in (0, SIZE[0] - 1) for j in (0, SIZE[1] - 1) for k in (0, SIZE[2] - 1)])
    apart = np.linalg.norm(corners @ (series.frames[0].affine - affine_by_itk(path)).T, axis=1).max()
    assert (apart > 1) == (codes == (0, 0))
    if apart < 1:
        assert apart < 1e-3 and not series.warnings
        return
    warning, _ = series.warnings
    for words in (path, f"{apart:.1f} mm", "neither qform nor sform", "ITK", "groupmorph apply"):
        assert words in warning


@pytest.mark.parametrize("kind", ["nii", "mha", "nrrd"])
@pytest.mark.parametrize("permutation", [(0, 1, 2), (2, 0, 1)])
def test_a_sheared_scan_comes_onto_right_angles_with_its_values_in_place(tmp_path, kind, permutation):
    """Interpolation is exact on a linear ramp, so the value of every covered voxel is known."""
    affine = SHEARED[:, [*permutation, 3]]
    size = tuple(np.array((20, 24, 9))[list(permutation)])
    voxels = np.stack([*np.meshgrid(*map(np.arange, size), indexing="ij"), np.ones(size)])
    ramp = np.einsum("d,dijk->ijk", [2.0, -3, 5, 0] @ affine, voxels).astype(np.float32)
    path = tmp_path / f"x.{kind}"
    (write_nifti if kind == "nii" else write_by_itk)(path, ramp, affine)
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


@pytest.mark.parametrize("stored", ["3D", "4D"])
def test_sheared_scans_are_one_warning_that_names_the_first_and_the_cure(tmp_path, stored, caplog):
    if stored == "3D":
        files = [
            write_nifti(tmp_path / f"{k}.nii", make_volume(), a) for k, a in enumerate((OBLIQUE, SHEARED, SHEARED))
        ]
    else:
        files = [write_nifti(tmp_path / "1.nii", make_volume((*SIZE, 3)), SHEARED)]
    (warning,) = read_series(files).warnings
    pairs = [SHEARED[:3, [i, j]].T for i, j in ((0, 1), (0, 2), (1, 2))]
    degrees = max(abs(90 - np.degrees(np.arctan2(np.linalg.norm(np.cross(*axes)), np.dot(*axes)))) for axes in pairs)
    named = f"the axes of {tmp_path / '1.nii'}{' and 1 more' if stored == '3D' else ''} are sheared"
    assert (
        named in warning and f"{degrees:.1f} degrees" in warning and "ITK" in warning and "groupmorph apply" in warning
    )
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [warning]


def test_a_shear_from_rounding_is_dropped_and_the_data_stay(tmp_path):
    affine = OBLIQUE.copy()
    affine[:3, 2] += 5e-4 * 3.0 / 1.5 * affine[:3, 0]
    series = read_series([write_nifti(tmp_path / "a.nii", make_volume(), affine)] * 2)
    frame = series.frames[0]
    np.testing.assert_array_equal(frame.data, make_volume())
    assert frame.valid is None and not series.warnings
    axes = frame.affine[:3, :3] / np.linalg.norm(frame.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    corners = np.array([[i, j, k, 1] for i in (0, 8) for j in (0, 11) for k in (0, 6)])
    assert np.abs(corners @ (frame.affine - affine).T).max() < 5e-4 * 9


def test_a_folder_lacks_no_scan(tmp_path):
    """Example: a git-annex clone in which one scan was not fetched."""
    for k in range(3):
        write_nifti(tmp_path / f"t{k}.nii", make_volume())
    (tmp_path / "t3.nii").symlink_to("gone.nii")
    assert "t3.nii: expected a file, got a link to a missing one, 'gone.nii'" in error_of(tmp_path)
    (tmp_path / "study" / "sub").mkdir(parents=True)
    for k in range(4):
        (tmp_path / f"t{k}.nii").rename(tmp_path / "study" / "sub" / f"t{k}.nii")
    assert "t3.nii: expected a file, got a link to a missing one" in error_of(tmp_path / "study")


def test_scans_behind_a_link_to_a_folder_belong_to_the_series(tmp_path):
    volumes = [make_volume() + k for k in range(3)]
    (tmp_path / "study" / "scans").mkdir(parents=True)
    for k, volume in enumerate(volumes):
        write_nifti(tmp_path / "study" / "scans" / f"t{k}.nii", volume)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "sub").symlink_to(tmp_path / "study")
    for frame, volume in zip(read_series(tmp_path / "linked").frames, volumes, strict=True):
        np.testing.assert_array_equal(frame.data, volume)


def test_a_little_padding_after_the_voxels_does_no_harm(tmp_path):
    path = write_nifti(tmp_path / "a.nii", make_volume())
    with open(path, "ab") as file:
        file.write(bytes(40))
    np.testing.assert_array_equal(read_image(path).data, make_volume())


@pytest.mark.parametrize("name", ["x.hdr", "x.img", "x.img.gz"])
@pytest.mark.parametrize("codes", [(1, 2), (1, 0), (0, 2), (0, 0)])
def test_a_pair_of_files_lies_where_the_same_image_in_one_file_does(tmp_path, name, codes):
    """This holds whichever of qform and sform applies, which differ, and also for times."""
    for kind, file in ((nib.Nifti1Image, "one.nii.gz"), (nib.Nifti1Pair, name)):
        image = kind(make_volume((*SIZE, 2)), None)
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
    patch_header(tmp_path / "a.nii", "scl_slope", slope)
    frame = read_image(tmp_path / "a.nii")
    np.testing.assert_array_equal(frame.data, make_volume().astype(np.int16))
    # Without both forms, the centre of the volume is the origin, and the first axis points left.
    expected = np.diag([-1.0, 1, 1, 1])
    expected[:3, 3] = [4, -5.5, -3]
    np.testing.assert_array_equal(frame.affine, expected)


@needs_data
def test_real_4d_file():
    series = read_series(DATA / "asl" / "pcasl.nii.gz")
    assert len(series.frames) == 10 and series.frames[0].data.shape == (52, 68, 20)
    assert series.frame_time == pytest.approx(2.54) and series.frames[0].header.get_xyzt_units() == ("mm", "sec")
