"""Images that cannot be read are named in one line."""

import gzip
import os
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from image_files import (
    OBLIQUE,
    SHEARED,
    SIZE,
    error_of,
    make_volume,
    orthogonal_affine,
    patch_header,
    write_by_itk,
    write_nifti,
)

from groupmorph_monai.data.reading.readers import header_grids, read_image
from groupmorph_monai.errors import InputError


def test_headers_of_files_that_are_cut_short_or_missing_tell_nothing(tmp_path):
    whole = Path(write_nifti(tmp_path / "a.nii", np.zeros((200, 200, 200), np.float32)))
    cut = tmp_path / "cut.nii"
    cut.write_bytes(whole.read_bytes()[:5000])
    assert header_grids([whole]) and header_grids([whole, cut]) == header_grids([whole, "absent.nii"]) == []


# One file per mistake: its name, a function that writes it, and a part of the expected message.
def _truncated(path, writer):
    writer(path, make_volume((20, 20, 20)), orthogonal_affine())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _vectors(path):
    itk.imwrite(itk.image_from_array(make_volume((5, 6, 7, 3)), is_vector=True), str(path))


def _rgb(path):
    nib.save(nib.Nifti1Image(np.zeros(SIZE, [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)), path)


def _add_extension(path, byte_order, counted=0):
    """Write an image with ``counted`` extensions, and insert another one without moving ``vox_offset``."""
    image = nib.Nifti1Image(make_volume(), orthogonal_affine(), nib.Nifti1Header(endianness=byte_order))
    image.header.extensions.extend(nib.nifti1.Nifti1Extension(6, b"comment") for _ in range(counted))
    content = image.to_bytes()
    added = np.array([16, 6, 0, 0], byte_order + "i4").tobytes()
    with nib.openers.Opener(str(path), "wb") as file:
        file.write(content[:348] + b"\1\0\0\0" + content[352 : 352 + 16 * counted] + added)
        file.write(content[352 + 16 * counted :])


def _nan(path):
    data = make_volume()
    data[2, 3, 4] = np.nan
    write_nifti(path, data)


def _named(path, name):
    """Write an image with the ending of its format, and rename it."""
    write = write_nifti if ".nii" in name else write_by_itk
    write(path.with_name(name), make_volume(), orthogonal_affine())
    path.with_name(name).rename(path)


def _alone(path):
    nib.save(nib.Nifti1Pair(make_volume(), OBLIQUE), path)
    path.with_name(path.name.replace(".hdr", ".img")).unlink()


def _moved(distance_mm):
    return OBLIQUE + distance_mm * np.eye(4)[:, :1] @ np.eye(4)[3:]


# Two metres per voxel along an array axis that is parallel to the third world axis.
GIANT = np.diag([1.0, 1, 2000, 1])[:, [2, 0, 1, 3]]

MISTAKES = {
    "missing.nii.gz": (lambda p: None, "got a path that does not exist"),
    "folder.nii.gz": (lambda p: p.mkdir(), "got a folder"),
    "cut.nii": (lambda p: _truncated(p, write_nifti), "(Expected 32000 bytes, got"),
    "cut.nii.gz": (lambda p: _truncated(p, write_nifti), "got an unreadable one"),
    "stump.nii": (lambda p: _named(p, "a.nii") or os.truncate(p, 350), "copy"),
    "cut.mha": (lambda p: _truncated(p, write_by_itk), "bytes of voxels as declared"),
    "cut.nrrd": (lambda p: _truncated(p, write_by_itk), "bytes of voxels as declared"),
    "text.nii.gz": (lambda p: p.write_text("no image", encoding="utf-8"), "another kind of file, or a damaged one"),
    "empty.nii.gz": (lambda p: p.touch(), "got an empty file; copy it again"),
    "pointer.nrrd": (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid"), "'git lfs pull'"),
    "unpacked.nii.gz": (lambda p: _named(p, "a.nii"), "needs the ending .nii; rename it"),
    "packed.nii": (lambda p: _named(p, "a.nii.gz"), "needs the ending .nii.gz; rename it"),
    "scan": (lambda p: _named(p, "a.nii"), "needs the ending .nii; rename it"),
    "scan.gz": (lambda p: _named(p, "a.nii.gz"), "needs the ending .nii.gz; rename it"),
    "scan.mha": (lambda p: _named(p, "a.nii"), "needs the ending .nii; rename it"),
    "other.nii.gz": (lambda p: p.write_bytes(gzip.compress(bytes(200))), "or a damaged one; copy it again"),
    "meta.nii": (lambda p: _named(p, "a.mha"), "needs the ending .mha; rename it"),
    "nrrd.nii.gz": (lambda p: _named(p, "a.nrrd"), "needs the ending .nrrd; rename it"),
    "text.nrrd": (lambda p: p.write_text("NRRD0004\ntype: float\n", encoding="utf-8"), "expected an empty line"),
    "notes.txt": (lambda p: p.write_text("no image", encoding="utf-8"), "expected an image"),
    "study.zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(200)), "unpack the archive"),
    "brain.mgz": (lambda p: p.write_bytes(gzip.compress(bytes(300))), "kind of file, or a damaged one"),
    "image.dcm.gz": (lambda p: p.write_bytes(gzip.compress(bytes(128) + b"DICM")), "unpack the archive"),
    "flat.nii": (lambda p: write_nifti(p, make_volume((8, 9))), "got shape (8, 9)"),
    "slice.nii": (lambda p: write_nifti(p, make_volume((8, 9, 1))), "got shape (8, 9, 1)"),
    "thin.nii": (lambda p: write_nifti(p, make_volume((8, 9, 3))), "a volume of 4 voxels or more along every axis"),
    "flat.mha": (lambda p: itk.imwrite(itk.image_from_array(make_volume((8, 9))), str(p)), "got shape (9, 8)"),
    "five.nii": (lambda p: write_nifti(p, make_volume((4, 5, 6, 2, 3))), "got shape (4, 5, 6, 2, 3)"),
    "vectors.mha": (_vectors, "RGB or vectors"),
    "rgb.nii": (_rgb, "RGB"),
    "nan.nii": (_nan, "got 1 NaN"),
    "inf.nii": (lambda p: write_nifti(p, np.where(make_volume() > 1, np.inf, 0).astype("f4")), "infinite"),
    "constant.nii": (lambda p: write_nifti(p, np.full(SIZE, 3, np.int16)), "got 3 in every voxel"),
    "one.nii": (lambda p: write_nifti(p, np.eye(1, 756, 5, "f4").reshape(SIZE)), "got 0 in all voxels but 1"),
    "huge.nii": (lambda p: write_nifti(p, np.float32(1e37) * make_volume()), "rescale"),
    "intercept.nii": (lambda p: patch_header(p, "scl_inter", 1e7, "scl_slope"), "subtract the offset"),
    "tiny.nii": (lambda p: write_nifti(p, 1e-30 * make_volume()), "rescale"),
    "giant.nii": (lambda p: write_nifti(p, make_volume(), GIANT), "got 1.8e+04 x 12 x 7 mm"),
    "dust.nii": (lambda p: write_nifti(p, make_volume(), np.diag([1e-3, 1e-3, 1e-3, 1])), "its unit in the header"),
    "steep.nii": (lambda p: write_nifti(p, make_volume(), SHEARED + np.eye(4)[:, :1] @ [[0, 9, 0, 0]]), "right angles"),
    "scale.nii": (lambda p: patch_header(p, "scl_slope", np.inf), "scl_slope"),
    "code.nii": (lambda p: patch_header(p, "sform_code", 99), "sform_code from 0 to 5"),
    "sign.nii": (
        lambda p: patch_header(p, "pixdim", [np.nan, 1, 1, 1, 1, 1, 1, 1], "qform_code"),
        "the sign of the qform",
    ),
    "short.nii": (
        lambda p: patch_header(p, "dim", [3, 9, 12, 6, 1, 1, 1, 1]),
        "216 more bytes after (9, 12, 6) voxels",
    ),
    "short.nii.gz": (
        lambda p: patch_header(p, "dim", [3, 8, 12, 7, 1, 1, 1, 1]),
        "168 more bytes after (8, 12, 7) voxels",
    ),
    "bytes.nii": (lambda p: patch_header(p, "datatype", 2), "756 more bytes"),
    "extension.nii": (lambda p: _add_extension(p, ">"), "an extension that vox_offset does not count"),
    "extension.nii.gz": (lambda p: _add_extension(p, "<"), "an extension that vox_offset does not count"),
    "second.nii": (lambda p: _add_extension(p, "<", counted=1), "an extension that vox_offset does not count"),
    "dim.nii": (lambda p: patch_header(p, "dim", [9, 9, 12, 7, 1, 1, 1, 1]), "from 1 to 7 in dim[0], got 9; correct"),
    "type.nii.gz": (lambda p: patch_header(p, "datatype", 1536), "data code 1536 not supported"),
    "offset.nii": (lambda p: patch_header(p, "vox_offset", 352.5), "in vox_offset, such as 352, got 352.5; correct"),
    "offset.nii.gz": (lambda p: patch_header(p, "vox_offset", np.nan), "in vox_offset, such as 352, got nan; correct"),
    "low.nii": (lambda p: patch_header(p, "vox_offset", 100), "in vox_offset, such as 352, got 100; correct"),
    "zero.nii": (lambda p: patch_header(p, "vox_offset", 0), "in vox_offset, such as 352, got 0; correct"),
    "origin.nii": (lambda p: write_nifti(p, make_volume(), _moved(1e30)), "got one at [1e+30, 1e+30]"),
    "mixed.Nii": (
        lambda p: write_nifti(p.with_suffix(".nii"), make_volume()) and p.with_suffix(".nii").rename(p),
        "rename it",
    ),
    "pipe.nii": (lambda p: os.mkfifo(p), "got a pipe or device"),
    "pipe.mha": (lambda p: os.mkfifo(p), "got a pipe or device"),
    "link.nii.gz": (lambda p: p.symlink_to(".git/annex/object"), "a link to a missing one, '.git/annex/object'"),
    "loop.nii.gz": (lambda p: p.symlink_to(p.name), "a link to a missing one"),
    "unsized.nii": (lambda p: patch_header(p, "pixdim", [1, 0, 1, 1, 1, 1, 1, 1]), "pixdim"),
    "vast.nii.gz": (lambda p: patch_header(p, "dim", [3, 32767, 32767, 32767, 1, 1, 1, 1]), "memory"),
    "far.nii": (lambda p: write_nifti(p, make_volume(), _moved(500)), "overlaps"),
    "series.nii": (lambda p: write_nifti(p, make_volume((*SIZE, 3))), "use it alone"),
    "analyze.img": (lambda p: nib.save(nib.Spm99AnalyzeImage(make_volume(), OBLIQUE), p), "left from right"),
    "alone.img": (lambda p: p.write_bytes(bytes(3024)), "got no alone.hdr beside it; copy both"),
    "alone.hdr.gz": (lambda p: _alone(p), "got no alone.img.gz beside it; copy both"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_bad_file_among_good_ones_is_named_in_one_line(tmp_path, name, capfd, caplog):
    make, words = MISTAKES[name]
    good = write_nifti(tmp_path / "good.nii", make_volume())
    make(tmp_path / name)
    capfd.readouterr()
    message = error_of([good, str(tmp_path / name)])
    assert message.startswith(str(tmp_path / name)) and words in message
    assert capfd.readouterr().err == "" and not caplog.records


def test_corrections_by_nibabel_are_not_logged(tmp_path, caplog):
    patch_header(tmp_path / "a.nii.gz", "sizeof_hdr", 0, "qform_code")
    read_image(tmp_path / "a.nii.gz")
    assert not caplog.records
    nib.load(tmp_path / "a.nii.gz")
    assert caplog.records  # of others


@pytest.mark.parametrize(("announced", "padding"), [(1, 0), (0, 16)])
def test_a_file_without_extensions_is_read_despite_their_flag_or_padding(tmp_path, announced, padding):
    content = bytearray(nib.Nifti1Image(make_volume(), OBLIQUE).to_bytes())
    content[348] = announced
    (tmp_path / "a.nii").write_bytes(content + bytes(padding))
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii").data, make_volume())


def test_an_origin_beyond_any_scanner_is_refused_in_all_scans_too(tmp_path):
    scans = [write_nifti(tmp_path / f"{k}.nii", make_volume(seed=k), _moved(1e30)) for k in range(2)]
    assert "0.nii (timepoint 0): expected a volume within 10 m of the scanner's centre, got one" in error_of(scans)


@pytest.mark.parametrize("ending", [".nii", ".nrrd"])
def test_a_file_without_permission_is_not_called_damaged(tmp_path, monkeypatch, ending):
    write = write_nifti if ending == ".nii" else write_by_itk
    write(tmp_path / f"a{ending}", make_volume(), orthogonal_affine())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=f"a{ending}: expected a file that may be read, got no permission"):
        read_image(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", [".hdr", ".img"])
def test_the_other_file_of_a_pair_is_no_device(tmp_path, ending):
    nib.save(nib.Nifti1Pair(make_volume(), OBLIQUE), tmp_path / "a.img")
    part = tmp_path / f"a{ending}"
    part.unlink()
    part.symlink_to(os.devnull)
    with pytest.raises(InputError, match=f"a{ending}: .*a pipe or device"):
        read_image(tmp_path / ("a.img" if ending == ".hdr" else "a.hdr"))


def test_a_4d_file_for_one_volume_is_to_be_split(tmp_path):
    path = write_nifti(tmp_path / "s.nii", make_volume((*SIZE, 3)))
    with pytest.raises(InputError, match="expected a 3D volume, got shape .*; split it into 3D files$"):
        read_image(path)


@pytest.mark.parametrize("value", ["", 3, {"a": 1}, [["t0.nii"]], [""], ["t0.nii", None]])
def test_values_that_cannot_be_paths_are_named(value):
    assert error_of(value).startswith(f"series: expected image files or a folder, got {value!r}")


def test_one_timepoint_no_timepoint_and_a_folder_without_images(tmp_path):
    one = write_nifti(tmp_path / "one.nii", make_volume((*SIZE, 1)))
    for source in (one, [one], tmp_path):
        assert "one.nii" in error_of(source) and "one timepoint" in error_of(source)
    assert "empty list" in error_of([])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.dcm").write_text("x", encoding="utf-8")
    message = error_of(tmp_path / "none")
    assert str(tmp_path / "none") in message and "DICOM" in message and "found none" in message
    assert "gone" in error_of(tmp_path / "gone")


def test_a_bad_timepoint_of_a_4d_file_is_numbered(tmp_path):
    data = make_volume((*SIZE, 3))
    data[..., 2] = 1
    assert "(timepoint 2)" in error_of(write_nifti(tmp_path / "s.nii", data))
