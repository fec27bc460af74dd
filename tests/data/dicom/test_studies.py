"""Whole studies as they are exported: what is aligned, what is left aside, and every mistake answered by one line."""

import builtins
import shutil

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402

from groupmorph_monai.apps.command_line import main  # noqa: E402
from groupmorph_monai.data.dicom import list_dicom  # noqa: E402
from groupmorph_monai.data.preprocessing.transforms import LoadSeriesd  # noqa: E402
from groupmorph_monai.data.reading.checks import check_dataset  # noqa: E402
from groupmorph_monai.data.reading.datalist import series_items  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.errors import InputError  # noqa: E402

SIZE = (12, 10, 7)
AFFINE = exports.LPS @ np.array([[1.5, 0, 0, -8], [0, 1.5, 0, -6], [0, 0, 3, 20], [0, 0, 0, 1.0]])


def volumes(timepoints=4, seed=5):
    return np.random.default_rng(seed).integers(1, 4000, (timepoints, *SIZE)).astype(np.uint16)


def dynamic(shared, data=None, **attributes):
    """Images of one series, all timepoints in it."""
    data, uid, images = volumes() if data is None else data, exports.generate_uid(), []
    for k, volume in enumerate(data):
        header = {"SeriesInstanceUID": uid, "SeriesNumber": 5, "SeriesDescription": "dyn", "AcquisitionNumber": k + 1}
        header |= {"AcquisitionTime": exports.clock(exports.TIMES_S[k])}
        images += exports.classic(shared, volume, AFFINE, **{**header, **attributes})
    return images


def study(shared):
    """A dynamic series among what else an examination holds."""
    other = volumes(6, seed=6)
    flipped = AFFINE[:, [0, 2, 1, 3]]
    computed = {"ImageType": ["DERIVED", "SECONDARY", "SUB"], "SeriesNumber": 9}
    images = dynamic(shared)
    images += exports.classic(shared, other[0], flipped, SeriesDescription="localizer", SeriesNumber=2)
    images += exports.classic(shared, other[0], AFFINE, SeriesDescription="localizer", SeriesNumber=2)
    images += exports.classic(shared, other[1], AFFINE, SeriesDescription="t2_tse", SeriesNumber=3, EchoTime="90")
    images += dynamic(shared, other[:3], SeriesDescription="subtraction", **computed)
    weighted = exports.generate_uid()
    for b in (0, 400, 800):
        header = {"SeriesDescription": "ep2d_diff", "SeriesNumber": 4, "SeriesInstanceUID": weighted}
        header |= {"EchoTime": "60", "DiffusionBValue": float(b), "AcquisitionTime": exports.clock(b)}
        images += exports.classic(shared, other[2], AFFINE, **header)
    return images


def refused(path, *parts, description=None):
    """The one line by which a study is refused."""
    with pytest.raises(InputError) as caught:
        read_series(path, description=description)
    message = str(caught.value)
    assert "\n" not in message and "; " in message and len(message) < 900
    for part in parts:
        assert part in message, message
    return message


def assert_aligned(series, data):
    np.testing.assert_array_equal(np.stack([frame.data for frame in series.frames]), data)


def test_the_dynamic_series_is_found_among_others(tmp_path):
    series = read_series(exports.save(study(exports.examination()), tmp_path))
    assert_aligned(series, volumes())
    assert series.times_s == exports.TIMES_S and series.description == "dyn"


def test_the_list_says_what_would_be_aligned_and_why_the_rest_is_not(tmp_path, capsys):
    exports.save(study(exports.examination()), tmp_path)
    assert main(["register", str(tmp_path), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    states = {line.split("'")[1]: line.split("  ")[-3].strip() for line in lines}
    assert states == {
        "dyn": "to be aligned",
        "localizer": "localiser",
        "t2_tse": "other series",
        "ep2d_diff": "diffusion",
        "subtraction": "derived",
    }
    assert next(line for line in lines if "'dyn'" in line).endswith("4 x 7 slices of 12 x 10")


@pytest.mark.parametrize(
    ("series", "options", "words"),
    [
        ({"PatientID": "P2"}, [], "expected the scans of one patient, got 2 patients"),
        ({"SeriesDescription": "dyn_b"}, [], "expected one series to align"),
        ({}, ["--series-description", "t3"], "expected a pattern of one of"),
    ],
)
def test_a_list_of_what_cannot_be_aligned_ends_as_an_error(tmp_path, capsys, series, options, words):
    shared = exports.examination()
    exports.save(dynamic(shared) + dynamic(shared, volumes(seed=7), SeriesNumber=6, **series), tmp_path)
    assert main(["register", str(tmp_path), "--list", *options]) == 2
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2 and all("slices of" in line for line in captured.out.splitlines())
    assert captured.err.startswith("groupmorph: ") and captured.err.count("\n") == 1
    assert words in captured.err and "--list" not in captured.err


@pytest.mark.parametrize("pattern", ["subtraction", "SUB*", "*traction"])
def test_a_description_chooses_what_the_program_would_not(tmp_path, pattern):
    exports.save(study(exports.examination()), tmp_path)
    assert_aligned(read_series(tmp_path, description=pattern), volumes(6, seed=6)[:3])
    refused(tmp_path, "'t2_tse'", "--list", description="t3")


def test_brackets_of_a_description_are_no_pattern(tmp_path):
    shared = exports.examination()
    images = dynamic(shared, SeriesDescription="t1 [dyn]")
    images += dynamic(shared, volumes(seed=7), SeriesDescription="t1 d", SeriesNumber=6)
    assert_aligned(read_series(exports.save(images, tmp_path), description="t1 [dyn]"), volumes())


def test_a_description_of_one_scan_names_it_and_no_other_series(tmp_path):
    exports.save(study(exports.examination()), tmp_path)
    message = refused(tmp_path, "the series that match 't2*' have one timepoint: 3 't2_tse'", description="t2*")
    assert message.startswith("--series-description: ") and "'dyn'" not in message


def test_single_scans_that_are_not_alike_are_aligned_when_named(tmp_path, caplog):
    shared, data = exports.examination(), volumes(2)
    images = exports.classic(
        shared, data[0], AFFINE, SeriesDescription="t1_pre", AcquisitionTime="101010", FlipAngle="5"
    )
    images += exports.classic(shared, data[1], AFFINE, SeriesDescription="t1_post", AcquisitionTime="102010")
    exports.save(images, tmp_path)
    refused(tmp_path, "two timepoints", "--series-description")
    series = read_series(tmp_path, description="t1*")
    assert_aligned(series, data)
    assert series.times_s == (0, 600) and series.description == "t1_pre, t1_post" and "dissimilar" in caplog.text


def test_two_series_of_equal_length_are_not_guessed(tmp_path):
    shared = exports.examination()
    images = dynamic(shared) + dynamic(shared, volumes(seed=7), SeriesDescription="dyn_b", SeriesNumber=6)
    exports.save(images, tmp_path)
    refused(tmp_path, "one series to align", "'dyn'", "'dyn_b'", "--series-description")
    assert_aligned(read_series(tmp_path, description="dyn_b"), volumes(seed=7))


def test_two_studies_with_one_series_each_are_told_apart_by_their_folders(tmp_path):
    for name in ("first", "second"):
        exports.save(dynamic(exports.examination()), tmp_path / name)
    message = refused(tmp_path, "one series to align", "the same name", "folder")
    assert "--series-description" not in message
    assert_aligned(read_series(tmp_path / "second"), volumes())


def test_images_that_wrongly_share_a_uid_are_all_read(tmp_path):
    images = dynamic(exports.examination())
    for image in images:
        image.SOPInstanceUID = f"1.2.3.{image.InstanceNumber}"
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


def test_parts_of_a_series_in_two_folders_or_files_named_outright(tmp_path):
    images = exports.siemens(volumes(), AFFINE)
    folders = [exports.save(images[: 2 * SIZE[2]], tmp_path / "a"), exports.save(images[2 * SIZE[2] :], tmp_path / "b")]
    assert_aligned(read_series(folders), volumes())
    assert_aligned(read_series([path for folder in folders for path in folder.rglob("*") if path.is_file()]), volumes())


def test_a_messy_folder(tmp_path):
    """Copies, a DICOMDIR, reports, files without a preamble, private junk, empty and hidden files."""
    images = dynamic(exports.examination())
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


def test_a_missing_slice_is_named(tmp_path):
    images = dynamic(exports.examination())
    exports.save(images[:9] + images[10:], tmp_path / "one")
    refused(tmp_path / "one", "4 images at each of the 7 slice positions", "got 3 at 26 mm", "timepoint 1 by its")
    exports.save([image for image in images if image.InstanceNumber != 4], tmp_path / "all")
    refused(tmp_path / "all", "3 mm apart", "a gap of 6 mm after slice 3", "export")


def test_the_same_slice_twice_under_two_names_of_its_own(tmp_path):
    images = dynamic(exports.examination(), volumes(2))
    again = dynamic(exports.examination(), volumes(2))
    for image, twin in zip(images, again):
        twin.SOPInstanceUID, uid = exports.generate_uid(), image.SeriesInstanceUID
        twin.SeriesInstanceUID, twin.StudyInstanceUID = uid, image.StudyInstanceUID
        twin.FrameOfReferenceUID = image.FrameOfReferenceUID
    refused(exports.save(images + again, tmp_path), "differs from", "exported twice")


def test_uneven_slices_are_refused(tmp_path):
    images = dynamic(exports.examination())
    for image in images:
        if image.InstanceNumber == 3:
            image.ImagePositionPatient = [*image.ImagePositionPatient[:2], float(image.ImagePositionPatient[2]) + 0.7]
    refused(exports.save(images, tmp_path), "evenly spaced", "0.7 mm off", "2.3 to 3.7 mm")


def test_several_patients_are_refused_and_several_frames_of_reference_left_to_the_user(tmp_path, caplog):
    one, two = exports.examination(), exports.examination()
    two.StudyInstanceUID, data = one.StudyInstanceUID, volumes(2)
    images = exports.classic(one, data[0], AFFINE, SeriesDescription="t1", AcquisitionTime="101010")
    images += exports.classic(two, data[1], AFFINE, SeriesDescription="t1", AcquisitionTime="111010")
    exports.save(images, tmp_path / "moved")
    refused(tmp_path / "moved", "--series-description")
    assert_aligned(read_series(tmp_path / "moved", description="t1"), data)
    assert "frames of reference" in caplog.text
    two.PatientID = "P2"
    exports.save(dynamic(one) + dynamic(two), tmp_path / "two")
    refused(tmp_path / "two", "one patient", "2 patients", "folder of one")


def test_series_without_pictures_or_places_and_folders_without_dicom(tmp_path):
    images = dynamic(exports.examination())
    for image in images:
        del image.ImagePositionPatient
    refused(exports.save(images, tmp_path / "nowhere"), "position and an orientation", "study")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "DICOM, NIfTI", "found none")
    assert main(["register", str(tmp_path / "none"), "--list"]) == 2


@pytest.mark.parametrize("place", [".", "dicom"])
def test_dicom_beside_nifti_is_not_called_missing(tmp_path, capsys, place):
    exports.save(dynamic(exports.examination()), tmp_path / place)
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
    """As in a git-annex clone, where the other timepoints would make a series of their own."""
    for n, image in enumerate(dynamic(exports.examination(), volumes())):
        exports.write(image, tmp_path / f"{n:04d}")
    assert len(read_series(tmp_path).frames) == 4
    for n in range(SIZE[2]):
        (tmp_path / f"{n:04d}").unlink()
        (tmp_path / f"{n:04d}").symlink_to("gone")
    refused(tmp_path, "a link to a missing one, 'gone'")


def test_voxels_without_size_are_refused(tmp_path):
    images = dynamic(exports.examination(), volumes())
    for image in images:
        image.PixelSpacing = [0, 0]
    refused(exports.save(images, tmp_path), "invertible affine matrix")


def test_noise_of_headers_does_not_split_a_series(tmp_path):
    """Nor wherever values are rounded, such as at 0.0005."""
    data, rng = volumes(), np.random.default_rng(0)
    images = dynamic(exports.examination(), data)
    for image in images:
        image.PixelSpacing = [f"{1.5005 + 1e-5 * noise:.7f}" for noise in rng.uniform(-1, 1, 2)]
        axes = np.array([1, 0.0005, 0, -0.0005, 1, 0]) + 1e-6 * rng.uniform(-1, 1, 6)
        image.ImageOrientationPatient = [f"{value:.8f}" for value in axes]
    assert_aligned(read_series(exports.save(images, tmp_path)), data)


@pytest.mark.parametrize(("values", "state"), [((6, 6, 6), "to be aligned"), ((0, 400, 10**9 + 800), "diffusion")])
def test_ges_private_b_value_counts_where_it_changes(tmp_path, values, state):
    """GE fills the attribute of other scans, too."""
    images = dynamic(exports.examination(), volumes(3))
    for image, value in zip(images, np.repeat(values, SIZE[2])):
        image.add_new((0x0043, 0x0010), "LO", "GEMS_PARM_01")
        image.add_new((0x0043, 0x1039), "IS", [int(value), 8, 0, 0])
    listing, reason = list_dicom([exports.save(images, tmp_path)])
    assert listing.splitlines()[0].strip().startswith(state) and (reason is None) == (state == "to be aligned")


def test_pydicom_missing_is_one_line(tmp_path, monkeypatch, capsys):
    exports.save(dynamic(exports.examination()), tmp_path)
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "dicom" or "dicom" in (arguments[2] or () if len(arguments) > 2 else ()):
            raise ModuleNotFoundError("No module named 'pydicom'", name="pydicom")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["register", str(tmp_path), "--list"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'groupmorph-monai[dicom]'" in error


def test_series_are_not_ordered_by_numbers_that_each_of_them_counts(tmp_path):
    shared, data, images = exports.examination(), volumes(), []
    for k, volume in enumerate(data):
        attributes = {"AcquisitionNumber": (3, 1, 2, 5)[k], "SeriesNumber": (2, 9, 10, 11)[k]}
        images += exports.classic(shared, volume, AFFINE, SeriesDescription="t1", **attributes)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None


def test_trigger_times_count_from_the_start_of_their_series(tmp_path):
    """The scan before the contrast agent is a series of its own, 300 s before the dynamic one."""
    shared, data = exports.examination(), volumes()
    before = {"SeriesNumber": 3, "AcquisitionTime": "100000", "TriggerTime": "0"}
    images = exports.classic(shared, data[0], AFFINE, SeriesDescription="pre", **before)
    for k, trigger in enumerate(("8000", "28000", "48000")):
        images += dynamic(shared, data[k + 1 : k + 2], AcquisitionTime="100500", TriggerTime=trigger)
    for image in images[SIZE[2] :]:
        image.SeriesInstanceUID = images[-1].SeriesInstanceUID
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert series.times_s == (0, 308, 328, 348)


def test_the_times_of_series_are_those_of_their_volumes_if_there_are_no_others(tmp_path):
    shared, data, images = exports.examination(), volumes(), []
    for volume, number, time in zip(data, (5, 4, 3, 2), exports.TIMES_S):
        attributes = {"SeriesTime": exports.clock(time), "SeriesDate": "20250301", "AcquisitionNumber": 1}
        images += exports.classic(shared, volume, AFFINE, SeriesNumber=number, **attributes)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert series.times_s == exports.TIMES_S


def test_water_images_that_the_scanner_calls_derived_are_scans(tmp_path):
    shared = exports.examination()
    images = dynamic(shared, ImageType=["DERIVED", "PRIMARY", "DIXON", "WATER"], SeriesDescription="LAVA-Flex")
    images += dynamic(shared, volumes(2, seed=6), SeriesDescription="t2", EchoTime="90", SeriesNumber=3)
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


def test_images_of_palette_colours_are_no_scans(tmp_path):
    shared = exports.examination()
    maps = dynamic(shared, volumes(seed=6), SeriesDescription="dyn ttp", SeriesNumber=9)
    for image in maps:
        image.PhotometricInterpretation = "PALETTE COLOR"
    assert_aligned(read_series(exports.save(dynamic(shared) + maps, tmp_path)), volumes())


def test_segmentations_are_no_scans(tmp_path):
    shared = exports.examination()
    images = dynamic(shared, volumes(2))
    segmentation = "1.2.840.10008.5.1.4.1.1.66.4"
    for k, volume in enumerate(volumes(3)):
        attributes = {"SeriesInstanceUID": "1.2.3", "AcquisitionNumber": k + 1}
        images += exports.classic(shared, volume, AFFINE, segmentation, SeriesDescription="dyn seg", **attributes)
    assert list_dicom([exports.save(images, tmp_path)])[0].count("\n") == 0


def test_a_number_of_the_protocol_may_be_written_in_two_ways(tmp_path):
    images = exports.siemens(volumes(), AFFINE)
    for image in images[: SIZE[2]]:
        image.RepetitionTime, image.FlipAngle = "4.200", "10.0"
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


def test_phases_of_a_gated_scan_are_in_the_order_of_their_series(tmp_path):
    """All phases are acquired at once, slice by slice, so that acquisition times say nothing about their order."""
    shared, data, images = exports.examination(Modality="CT"), volumes(), []
    for k, (volume, first) in enumerate(zip(data, (0.3, 0.0, 0.2, 0.1))):
        times = [exports.clock(2 * s + first) for s in range(SIZE[2])]
        attributes = {"SeriesNumber": 300 + k, "SeriesDescription": f"Gated {25 * k} %", "AcquisitionTime": times}
        images += exports.classic(shared, volume, AFFINE, exports.CT, **attributes)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None


def test_a_study_of_stacks_alike_lists_without_files(tmp_path):
    listing, reason = list_dicom([exports.save(exports.siemens(volumes(), AFFINE), tmp_path)])
    assert listing.count("to be aligned") == 4 and "t1_fl3d_pre" in listing and reason is None


def test_a_registration_needs_an_output(tmp_path, capsys):
    assert main(["register", str(exports.save(dynamic(exports.examination()), tmp_path))]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["$1/0", "@series", "%series"])
def test_a_pattern_is_never_evaluated(tmp_path, capsys, pattern):
    study = str(exports.save(dynamic(exports.examination()), tmp_path / "study"))
    arguments = ["register", study, "--output", str(tmp_path / "out"), "--series-description", pattern]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert pattern in error and "'dyn'" in error


def test_a_data_set_of_studies_takes_the_series_that_is_named(tmp_path):
    """Two dynamic series in each study, which nothing but the description tells apart."""
    for number, name in enumerate(("first", "second")):
        shared = exports.examination()
        images = dynamic(shared, volumes(seed=number), SeriesDescription="dyn_a")
        images += dynamic(shared, volumes(seed=number + 10), SeriesDescription="dyn_b", SeriesNumber=6)
        exports.save(images, tmp_path / name)
    with pytest.raises(InputError, match="expected one series to align"):
        check_dataset(tmp_path)
    check_dataset(tmp_path, description="dyn_b")
    items = series_items(str(tmp_path), None, [{"phantom": {}}], phantom_share=0.5, description="dyn_b")
    loaded = [LoadSeriesd(spacing_mm=None)(item) for item in items if "image" in item]
    assert len(loaded) == 2 and all("description" not in item for item in loaded)
    for number, item in enumerate(loaded):
        whole = sorted(item["image"].flatten().tolist())
        assert whole == sorted(volumes(seed=number + 10).ravel().tolist())
