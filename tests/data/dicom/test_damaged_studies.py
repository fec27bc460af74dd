"""Incomplete and damaged exports of studies: some are read all the same, the others are refused in one line."""

import builtins
import copy
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, assert_aligned, dynamic, refused, volumes  # noqa: E402

from groupmorph_monai.apps.command_line import main  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402


def test_images_that_wrongly_share_a_uid_are_all_read(tmp_path):
    images = dynamic()
    for image in images:
        image.SOPInstanceUID = f"1.2.3.{image.InstanceNumber}"
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


def test_parts_of_a_series_in_two_folders_or_files_named_outright(tmp_path):
    images = exports.siemens(volumes(), AFFINE)
    folders = [
        exports.save(images[: 2 * SIZE[2]], tmp_path / "a"),
        exports.save(images[2 * SIZE[2] :], tmp_path / "b"),
    ]
    assert_aligned(read_series(folders), volumes())
    assert_aligned(read_series([path for folder in folders for path in folder.rglob("*") if path.is_file()]), volumes())


def test_a_messy_folder(tmp_path):
    """The folder also contains copies, a DICOMDIR, reports, files without a preamble, private objects, empty and hidden
    files."""
    images = dynamic()
    exports.save(images, tmp_path / "DICOM")
    for number, image in enumerate(images[:9]):
        exports.write(image, tmp_path / "copy" / f"{number}.dcm")
    bare = exports.write(images[20], tmp_path / "bare")
    bare.write_bytes(bare.read_bytes()[132:])
    shutil.copy(bare, tmp_path / "DICOM" / "another copy")
    report = pydicom.Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", exports.generate_uid()
    report.Modality = "SR"
    exports.write(report, tmp_path / "report")
    directory = pydicom.Dataset()
    directory.SOPClassUID, directory.SOPInstanceUID = "1.2.840.10008.1.3.10", exports.generate_uid()
    exports.write(directory, tmp_path / "DICOMDIR")
    (tmp_path / "VIEWER.EXE").write_bytes(b"MZ" + bytes(500))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "private.raw").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / ".DS_Store").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "cut").write_bytes(bytes(128) + b"DICM" + b"\x08\x00\x05")
    for path in (tmp_path, tmp_path / "DICOMDIR"):
        assert_aligned(read_series(path), volumes())


@pytest.mark.parametrize("kind", ["classic", "enhanced", "mosaic"])
def test_copies_with_other_voxels_are_refused(tmp_path, kind):
    """They may be defaced. Which of the two is to be aligned is not guessed."""
    images = {
        "classic": dynamic,
        "enhanced": lambda: exports.enhanced(volumes(), AFFINE, files=2),
        "mosaic": lambda: exports.united_imaging(volumes(), AFFINE),
    }[kind]()
    original = exports.write(images[1], tmp_path / "a" / "original.dcm")
    exports.save(images[:1] + images[2:], tmp_path / "a")
    copy = exports.write(images[1], tmp_path / "b" / "copy.dcm")
    expected = volumes() * 2.0 - 5 if kind == "enhanced" else volumes()
    assert_aligned(read_series(tmp_path), expected)
    images[1].PixelData = b"\0\0" + images[1].PixelData[2:]
    exports.write(images[1], copy)
    message = refused(tmp_path, f"expected the voxels of {original}", "got others; remove one of the two")
    assert message.startswith(f"{copy}: ")
    original.unlink()
    assert len(read_series(tmp_path).frames) == 4


def test_copies_that_cannot_be_read_or_are_listed_twice_do_not_matter(tmp_path, caplog):
    images = dynamic()
    exports.save(images, tmp_path / "a")
    copy = exports.write(images[1], tmp_path / "b" / "copy.dcm")
    copy.write_bytes(copy.read_bytes()[:-10])
    assert_aligned(read_series([tmp_path, tmp_path / "a"]), volumes())
    assert f"Ignored a copy that cannot be read: {copy}" in caplog.text


def test_a_slice_too_many_is_named(tmp_path):
    images = dynamic()
    twice = copy.deepcopy(images[3])
    twice.SOPInstanceUID = exports.generate_uid()
    message = "expected 4 images at each of the 7 slice positions of 'dyn', as at most of them, got 5 at 29 mm"
    refused(exports.save([*images, twice], tmp_path), message, "remove the image that was exported twice")


def test_a_missing_slice_is_named(tmp_path):
    images = dynamic()
    exports.save(images[:9] + images[10:], tmp_path / "one")
    refused(tmp_path / "one", "4 images at each of the 7 slice positions", "got 3 at 26 mm", "timepoint 1 by its")
    exports.save([image for image in images if image.InstanceNumber != 4], tmp_path / "all")
    refused(tmp_path / "all", "3 mm apart", "a gap of 6 mm after slice 3", "export")


def test_an_impossible_number_of_frames_is_answered_at_once(tmp_path):
    images = dynamic()
    images[9].NumberOfFrames = 999_999_999
    refused(exports.save(images, tmp_path), "4 images at each of the 7 slice positions", "got 3 at 26 mm")


def mosaics_and_files(kind, folder):
    """Make files with one timepoint each."""
    images = (
        exports.enhanced(volumes(), AFFINE, files=4)
        if kind == "enhanced"
        else exports.united_imaging(volumes(), AFFINE)
    )
    return [exports.write(image, folder / f"{n}.dcm") for n, image in enumerate(images)]


def without(name):
    def change(path):
        image = pydicom.dcmread(path)
        delattr(image, name)
        image.save_as(path)

    return change


@pytest.mark.parametrize("kind", ["enhanced", "mosaic"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:140]),
        lambda path: path.write_bytes(path.read_bytes()[:700]),
        lambda path: path.write_bytes(path.read_bytes()[:900]),
        without("Columns"),
        without("Rows"),
    ],
    ids=["meta", "early", "late", "columns", "rows"],
)
def test_a_damaged_file_of_many_slices_is_no_timepoint_less(tmp_path, kind, damage):
    files = mosaics_and_files(kind, tmp_path)
    damage(files[2])
    refused(tmp_path, "a timepoint of", "copy or export it again")


def test_a_damaged_copy_or_a_damaged_file_of_another_series_is_no_reason_to_refuse(tmp_path):
    files = mosaics_and_files("mosaic", tmp_path)
    without("Rows")(shutil.copy(files[2], tmp_path / "copy.dcm"))
    for image in exports.united_imaging(volumes(2), AFFINE):
        without("Rows")(exports.write(image, tmp_path / "other.dcm"))
    assert_aligned(read_series(tmp_path), volumes())


def test_a_file_whose_kind_cannot_be_read_is_ignored(tmp_path):
    for k, image in enumerate(exports.united_imaging(volumes(), AFFINE)):
        exports.write(image, tmp_path / f"{k}.dcm")
    file = exports.write(exports.united_imaging(volumes(2), AFFINE)[0], tmp_path / "damaged")
    without("Rows")(file)
    kind = b"\x08\x00\x16\x00"
    content = file.read_bytes()
    assert content.count(kind + b"UI") == 1
    file.write_bytes(content.replace(kind + b"UI", kind + b"FD"))  # numbers of 8 bytes
    assert_aligned(read_series(tmp_path), volumes())


def test_raw_data_in_the_series_are_no_damaged_timepoint(tmp_path):
    """Philips adds them to its enhanced series."""
    files = mosaics_and_files("enhanced", tmp_path)
    raw = pydicom.dcmread(files[0])
    raw.SOPClassUID, raw.SOPInstanceUID = pydicom.uid.RawDataStorage, exports.generate_uid()
    for name in ("Rows", "Columns", "PixelData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        delattr(raw, name)
    exports.write(raw, tmp_path / "raw.dcm")
    assert_aligned(read_series(tmp_path), 2.0 * volumes() - 5)


def test_an_impossible_number_of_pixels_is_one_line(tmp_path):
    images = dynamic()
    for image in images:
        image.Rows = image.Columns = 65535
    refused(exports.save(images, tmp_path))


@pytest.mark.filterwarnings("ignore:The pixel data is")
@pytest.mark.parametrize("name", ["Rows", "Columns"])
def test_more_pixels_than_declared_are_refused(tmp_path, name):
    images = dynamic()
    for image in images:
        setattr(image, name, getattr(image, name) - 1)
    refused(exports.save(images, tmp_path), "bytes of pixel data as declared, got 240 bytes")


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RescaleSlope", "NaN", "finite numbers as rescale slope and intercept"),
        ("RescaleIntercept", "1e400", "finite numbers as rescale slope and intercept"),
        ("ImagePositionPatient", ["0", "0", "NaN"], "got 3 at 20 mm (timepoint 0"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(tmp_path, name, value, words):
    images = dynamic()
    setattr(images[0], name, value)
    refused(exports.save(images, tmp_path), words)


def test_the_same_slice_twice_under_two_names_of_its_own(tmp_path):
    images = dynamic(exports.examination(), volumes(2))
    again = dynamic(exports.examination(), volumes(2))
    for image, twin in zip(images, again):
        twin.SOPInstanceUID, uid = exports.generate_uid(), image.SeriesInstanceUID
        twin.SeriesInstanceUID, twin.StudyInstanceUID = uid, image.StudyInstanceUID
        twin.FrameOfReferenceUID = image.FrameOfReferenceUID
    refused(exports.save(images + again, tmp_path), "differs from", "exported twice")


def test_uneven_slices_are_refused(tmp_path):
    images = dynamic()
    for image in images:
        if image.InstanceNumber == 3:
            image.ImagePositionPatient = [*image.ImagePositionPatient[:2], float(image.ImagePositionPatient[2]) + 0.7]
    refused(exports.save(images, tmp_path), "evenly spaced", "0.7 mm off", "2.3 to 3.7 mm")


def test_series_without_pictures_or_places_and_folders_without_dicom(tmp_path, capsys):
    images = dynamic()
    for image in images:
        del image.ImagePositionPatient
    refused(exports.save(images, tmp_path / "nowhere"), "position, an orientation", "no ImagePositionPatient", "study")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "DICOM, NIfTI", "found none")
    assert main(["register", str(tmp_path / "none"), "--list"]) == 2
    capsys.readouterr()
    assert main(["register", str(tmp_path / "gone"), "--list"]) == 2
    assert "gone: expected a file or folder, got a path that does not exist" in capsys.readouterr().err


def without_groups(image):
    del image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (dynamic, lambda image: setattr(image, "PhotometricInterpretation", "PALETTE COLOR"), "colours in 28 of 28"),
        (dynamic, lambda image: setattr(image, "SamplesPerPixel", 3), "colours in 28 of 28 files"),
        (
            dynamic,
            lambda image: setattr(image, "SOPClassUID", pydicom.uid.SegmentationStorage),
            "Segmentation objects in 28 of 28 files",
        ),
        (dynamic, lambda image: delattr(image, "PixelSpacing"), "got no PixelSpacing in 28 of 28 files"),
        (lambda: exports.enhanced(volumes(), AFFINE), without_groups, "several frames without functional groups in 1"),
        (
            lambda: exports.enhanced(volumes(), AFFINE),
            lambda image: delattr(image, "SharedFunctionalGroupsSequence"),
            "got no ImageOrientationPatient and no PixelSpacing in 1 of 1 files",
        ),
    ],
    ids=["palette", "colours", "segmentation", "spacing", "groups", "shared groups"],
)
def test_a_folder_without_slices_says_what_it_has(tmp_path, make, change, words):
    images = make()
    for image in images:
        change(image)
    refused(exports.save(images, tmp_path), words)


def test_a_mosaic_without_its_private_header_is_ignored_with_a_cure(tmp_path, caplog):
    exports.save(dynamic(ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]), tmp_path)
    refused(tmp_path, "DICOM images of grey values with a position", "no positions of its slices")
    assert "a mosaic without Siemens' private header; export it again with private attributes" in caplog.text


@pytest.mark.parametrize("place", [".", "dicom"])
def test_dicom_beside_nifti_is_not_called_missing(tmp_path, capsys, place):
    exports.save(dynamic(), tmp_path / place)
    nib.save(nib.Nifti1Image(volumes()[0], AFFINE), tmp_path / "t0.nii.gz")
    assert main(["register", str(tmp_path), "--list"]) == 2
    error = capsys.readouterr().err
    assert "at its top level (t0.nii.gz), which are read instead" in error and "folder of the DICOM files" in error


def test_mixed_geometry_becomes_frames_on_their_own_grids(tmp_path):
    """The table moved between two series, and the second one has more slices."""
    shared, data = exports.examination(), volumes(2)
    lower = AFFINE @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.5], [0, 0, 0, 1]])
    images = exports.classic(shared, data[0], AFFINE, SeriesDescription="t1", AcquisitionTime="101010")
    images += exports.classic(shared, data[1][:, :, :5], lower, SeriesDescription="t1", AcquisitionTime="101110")
    series = read_series(exports.save(images, tmp_path), description="t1")
    for frame, affine, size in zip(series.frames, (AFFINE, lower), (7, 5)):
        np.testing.assert_allclose(frame.affine, affine, atol=1e-5)
        assert frame.data.shape[2] == size


def test_a_timepoint_whose_slices_were_not_fetched_is_missed(tmp_path):
    """In an incomplete git-annex clone, the other timepoints would form a series of their own."""
    for n, image in enumerate(dynamic()):
        exports.write(image, tmp_path / f"{n:04d}")
    assert len(read_series(tmp_path).frames) == 4
    for n in range(SIZE[2]):
        (tmp_path / f"{n:04d}").unlink()
        (tmp_path / f"{n:04d}").symlink_to("gone")
    refused(tmp_path, "a link to a missing one, 'gone'")


def test_a_link_to_a_folder_is_followed_once(tmp_path):
    """The last timepoint is stored elsewhere; other links lead to the study itself and above it."""
    images = exports.siemens(volumes(), AFFINE)
    exports.save(images[: 3 * SIZE[2]], tmp_path / "data" / "study")
    exports.save(images[3 * SIZE[2] :], tmp_path / "archive")
    exports.save(exports.dynamic(SeriesDescription="another patient"), tmp_path / "data" / "other")
    for name, target in {"last": tmp_path / "archive", "again": ".", "above": ".."}.items():
        (tmp_path / "data" / "study" / name).symlink_to(target)
    assert_aligned(read_series(tmp_path / "data" / "study"), volumes())


@pytest.mark.parametrize("part", ["t2", "t2/0"])
def test_a_timepoint_that_may_not_be_read_is_missed(tmp_path, monkeypatch, part):
    images, real = exports.siemens(volumes(), AFFINE), os.access
    for n, image in enumerate(images):
        exports.write(image, tmp_path / f"t{n // SIZE[2]}" / str(n % SIZE[2]))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / part and real(path, mode))
    refused(tmp_path, part, "got no permission; change its permissions")


@pytest.mark.parametrize("spacing", [[0, 0], [-1.5, 1.5]], ids=str)
def test_pixels_without_size_are_refused(tmp_path, spacing):
    images = dynamic()
    for image in images:
        image.PixelSpacing = spacing
    refused(exports.save(images, tmp_path), f"a positive Pixel Spacing, got {spacing[0]} and {spacing[1]} mm")


def test_rounded_directions_do_not_change_the_size_of_voxels(tmp_path):
    turn = Rotation.from_euler("xyz", [12, -20, 33], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * [1.5, 1.5, 3]
    images = dynamic()
    for image, twin in zip(images, exports.one_series(volumes(), 4 * [{}], affine), strict=True):
        image.ImagePositionPatient = twin.ImagePositionPatient
        image.ImageOrientationPatient = [round(value, 2) for value in twin.ImageOrientationPatient]
    for frame in read_series(exports.save(images, tmp_path)).frames:
        np.testing.assert_allclose(np.linalg.norm(frame.affine[:3, :2], axis=0), 1.5, rtol=1e-6)


def test_decimal_commas_are_read(tmp_path):
    images = dynamic(RescaleSlope="0.5", RescaleIntercept="-2.25")
    for path in exports.save(images, tmp_path).rglob("*/*"):
        content = path.read_bytes()
        for name, number in ((b"PixelSpacing", b"1.5\\1.5"), (b"slope", b"0.5 "), (b"intercept", b"-2.25")):
            assert content.count(number) == 1, name
            content = content.replace(number, number.replace(b".", b","))
        path.write_bytes(content)
    series = read_series(tmp_path)
    assert_aligned(series, volumes() * 0.5 - 2.25)
    np.testing.assert_allclose(series.frames[0].affine, AFFINE)


def test_a_mosaic_of_more_slices_than_fit_into_it_is_refused(tmp_path):
    images = exports.united_imaging(volumes(), AFFINE)
    for image in images:
        image.Rows, image.Columns = 2, 2
    refused(exports.save(images, tmp_path), "expected DICOM images of grey values", "more slices than fit")


@pytest.mark.parametrize("told", ["acquisition time", "instance number"])
def test_noise_of_headers_does_not_split_a_series(tmp_path, told):
    """Neither do different rounding thresholds, such as 0.0005. The slices of GE's volumes share no number or time."""
    data, rng = volumes(), np.random.default_rng(0)
    images = dynamic() if told == "acquisition time" else exports.ge(data, AFFINE, TriggerTime=None)
    for image in images:
        image.PixelSpacing = [f"{1.5005 + 1e-5 * noise:.7f}" for noise in rng.uniform(-1, 1, 2)]
        axes = np.array([1, 0.0005, 0, -0.0005, 1, 0]) + 1e-6 * rng.uniform(-1, 1, 6)
        image.ImageOrientationPatient = [f"{value:.8f}" for value in axes]
    assert_aligned(read_series(exports.save(images, tmp_path)), data)


def test_pydicom_missing_is_one_line(tmp_path, monkeypatch, capsys):
    exports.save(dynamic(), tmp_path)
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "dicom" or "dicom" in (arguments[2] or () if len(arguments) > 2 else ()):
            raise ModuleNotFoundError("No module named 'pydicom'", name="pydicom")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["register", str(tmp_path), "--list"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'groupmorph-monai[dicom]'" in error
