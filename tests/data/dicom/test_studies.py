"""Complete studies: which series are aligned, which are ignored, and why."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, assert_aligned, dynamic, one_series, refused, volumes  # noqa: E402

from groupmorph_monai.apps.command_line import main  # noqa: E402
from groupmorph_monai.data.dicom import list_dicom  # noqa: E402
from groupmorph_monai.data.preprocessing.transforms import LoadSeriesd  # noqa: E402
from groupmorph_monai.data.reading.checks import check_dataset  # noqa: E402
from groupmorph_monai.data.reading.datalist import series_items  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.errors import InputError  # noqa: E402


def study(shared):
    """Make a study of a dynamic series and the other series of an examination."""
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


def test_single_scans_that_are_not_alike_are_aligned_when_named(tmp_path):
    shared, data = exports.examination(), volumes(2)
    images = exports.classic(
        shared, data[0], AFFINE, SeriesDescription="t1_pre", AcquisitionTime="101010", FlipAngle="5"
    )
    images += exports.classic(shared, data[1], AFFINE, SeriesDescription="t1_post", AcquisitionTime="102010")
    exports.save(images, tmp_path)
    refused(tmp_path, "two timepoints", "--series-description")
    series = read_series(tmp_path, description="t1*")
    assert_aligned(series, data)
    assert series.times_s == (0, 600) and series.description == "t1_pre, t1_post"
    (warning,) = series.warnings
    assert "dissimilar" in warning and "'t1_pre'" in warning and "'t1_post'" in warning


@pytest.mark.parametrize(
    "others", [{"FrameOfReferenceUID": "1.2.3"}, {"StudyInstanceUID": "1.2.3"}, {"EchoTime": "30"}]
)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_description_selects_scans_that_are_not_like_the_series(tmp_path, caplog, others, number):
    data = volumes(4 + number)
    late = {"SeriesDescription": "dyn_late", "SeriesNumber": 9, "SeriesInstanceUID": exports.generate_uid()}
    headers = [{"AcquisitionTime": exports.clock(60 * k)} for k in range(4 + number)]
    headers = [{"SeriesDescription": "dyn", **header} for header in headers[:4]] + [
        header | late | others for header in headers[4:]
    ]
    series = read_series(exports.save(one_series(data, headers), tmp_path), description="dyn*")
    assert_aligned(series, data)
    assert series.times_s == tuple(60 * k for k in range(4 + number)) and "9 'dyn_late'" in caplog.text


def test_a_scan_in_another_frame_of_reference_is_a_warning(tmp_path):
    """The patient was repositioned."""
    shared, data = exports.examination(), volumes(5)
    images = dynamic(shared, data[:4])
    shared.FrameOfReferenceUID = exports.generate_uid()
    images += exports.classic(shared, data[4], AFFINE, SeriesDescription="late", AcquisitionTime=exports.clock(300))
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data[:4])
    (warning,) = series.warnings
    assert "'late'" in warning and "its frame of reference differs" in warning


@pytest.mark.parametrize("shared", ["SeriesInstanceUID", "FrameOfReferenceUID", None])
def test_a_scan_of_another_study_is_a_warning_if_it_is_of_one_session(tmp_path, shared):
    """A transfer or an anonymiser may give a timepoint a study of its own; a scan of another day has all UIDs of its
    own."""
    images = dynamic()
    for image in images[: SIZE[2]]:
        image.StudyInstanceUID = "1.2.3"
        for name in {"SeriesInstanceUID", "FrameOfReferenceUID"} - {shared}:
            image[name].value = f"1.2.4.{len(name)}"
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes()[1:])
    assert ["its study differs" in warning for warning in series.warnings] == [True] * (shared is not None)


def test_a_localiser_that_a_description_selects_beside_a_series_is_a_warning(tmp_path):
    shared = exports.examination()
    images = dynamic(shared)
    images += exports.classic(shared, volumes()[0], AFFINE, SeriesDescription="dyn localizer", EchoTime="3")
    series = read_series(exports.save(images, tmp_path), description="dyn*")
    assert_aligned(series, volumes())
    (warning,) = series.warnings
    assert "'dyn localizer'" in warning and "(localiser)" in warning


def test_two_series_of_equal_length_are_not_guessed(tmp_path):
    shared = exports.examination()
    images = dynamic(shared) + dynamic(shared, volumes(seed=7), SeriesDescription="dyn_b", SeriesNumber=6)
    exports.save(images, tmp_path)
    refused(tmp_path, "one series to align", "'dyn'", "'dyn_b'", "--series-description")
    assert_aligned(read_series(tmp_path, description="dyn_b"), volumes(seed=7))


def test_two_studies_with_one_series_each_are_distinguished_by_their_folders(tmp_path):
    for name in ("first", "second"):
        exports.save(dynamic(), tmp_path / name)
    message = refused(tmp_path, "one series to align", "the same name", "folder")
    assert "--series-description" not in message
    assert_aligned(read_series(tmp_path / "second"), volumes())


def test_several_patients_are_refused_and_several_frames_of_reference_left_to_the_user(tmp_path):
    one, two = exports.examination(), exports.examination()
    two.StudyInstanceUID, data = one.StudyInstanceUID, volumes(2)
    images = exports.classic(one, data[0], AFFINE, SeriesDescription="t1", AcquisitionTime="101010")
    images += exports.classic(two, data[1], AFFINE, SeriesDescription="t1", AcquisitionTime="111010")
    exports.save(images, tmp_path / "moved")
    refused(tmp_path / "moved", "--series-description")
    series = read_series(tmp_path / "moved", description="t1")
    assert_aligned(series, data)
    assert ["frames of reference" in warning for warning in series.warnings] == [True]
    two.PatientID = "P2"
    exports.save(dynamic(one) + dynamic(two), tmp_path / "two")
    refused(tmp_path / "two", "one patient", "2 patients", "folder of one")


@pytest.mark.parametrize(("values", "state"), [((6, 6, 6), "to be aligned"), ((0, 400, 10**9 + 800), "diffusion")])
def test_ges_private_b_value_counts_where_it_changes(tmp_path, values, state):
    """GE sets the attribute of other scans, too."""
    images = dynamic(exports.examination(), volumes(3))
    for image, value in zip(images, np.repeat(values, SIZE[2])):
        image.add_new((0x0043, 0x0010), "LO", "GEMS_PARM_01")
        image.add_new((0x0043, 0x1039), "IS", [int(value), 8, 0, 0])
    listing, reason = list_dicom([exports.save(images, tmp_path)])
    assert listing.splitlines()[0].strip().startswith(state) and (reason is None) == (state == "to be aligned")


def test_water_images_that_the_scanner_calls_derived_are_scans(tmp_path):
    shared = exports.examination()
    images = dynamic(shared, ImageType=["DERIVED", "PRIMARY", "DIXON", "WATER"], SeriesDescription="LAVA-Flex")
    images += dynamic(shared, volumes(2, seed=6), SeriesDescription="t2", EchoTime="90", SeriesNumber=3)
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


@pytest.mark.parametrize("words", ["{}_SUB", "MIP of {}", "Ave-IP {}"])
def test_series_that_only_their_descriptions_call_computed_are_no_timepoints(tmp_path, words):
    shared, computed = exports.examination(), volumes(seed=6)
    images, names = exports.siemens(volumes(), AFFINE), ("pre", "dyn_1", "dyn_2", "dyn_3")
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(shared, name, images[0][name].value)
    shared.SequenceName = images[0].SequenceName
    for k, name in enumerate(names[1:]):
        description = words.format(f"t1_fl3d_{name}")
        images += exports.classic(shared, computed[k], AFFINE, SeriesNumber=40 + k, SeriesDescription=description)
    exports.save(images, tmp_path)
    assert_aligned(read_series(tmp_path), volumes())
    assert_aligned(read_series(tmp_path, description=words.format("*")), computed[:3])
    lines, reason = list_dicom([tmp_path])
    assert lines.count("to be aligned") == 4 and lines.count("derived  ") == 3 and reason is None


@pytest.mark.parametrize("first", ["t1_pre_2avg", "sub-second_dyn_0", "t1 1 avg"])
def test_words_that_are_no_more_than_part_of_a_description_leave_out_no_timepoint(tmp_path, first):
    shared, images, names = exports.examination(), [], (first, "t1_dyn_1", "t1_dyn_2", "t1_dyn_3")
    for k, (volume, name) in enumerate(zip(volumes(), names)):
        times = {"AcquisitionTime": exports.clock(60 * k)}
        images += exports.classic(shared, volume, AFFINE, SeriesNumber=5 + k, SeriesDescription=name, **times)
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


def cine(shared, slices, **others):
    """Make one series per slice, acquired in one breath-hold each; their phases start at different times after the
    trigger."""
    images, data = [], volumes()
    for s in slices:
        series = {"SeriesInstanceUID": exports.generate_uid(), "SeriesNumber": 10 + s, "SeriesDescription": f"sax_{s}"}
        for k, volume in enumerate(data):
            times = {"TriggerTime": str(200 * k + 3 * s), "AcquisitionTime": exports.clock(20 * s)}
            images.append(exports.classic(shared, volume, AFFINE, **{**series, **times, **others})[s])
    return images


def test_slices_with_a_series_each_make_a_stack(tmp_path):
    shared = exports.examination()
    images = cine(shared, range(SIZE[2]))
    across = np.array(AFFINE[:, [0, 2, 1, 3]])  # a long axis
    for k, volume in enumerate(volumes(seed=7)):
        images.append(exports.classic(shared, volume, across, SeriesInstanceUID="1.2.3", TriggerTime=str(200 * k))[2])
    series = read_series(exports.save(images, tmp_path / "cine"))
    assert_aligned(series, volumes())
    assert series.times_s == (0, 0.2, 0.4, 0.6)
    assert_aligned(read_series(tmp_path, description="sax_3"), volumes())
    scans = volumes(seed=8)  # which come before slices that were joined
    exports.save(dynamic(shared, scans), tmp_path / "dynamic")
    assert_aligned(read_series(tmp_path), scans)


@pytest.mark.parametrize("told", ["time", "number"])
def test_the_newest_of_repeated_breath_holds_is_read(tmp_path, caplog, told):
    shared, attributes = exports.examination(), {} if told == "time" else {"AcquisitionTime": None}
    images = cine(shared, range(SIZE[2]), **attributes)
    number = 5 if told == "time" else 40
    blurred = cine(shared, (3,), **attributes)
    for image in images:
        if image.SeriesDescription == "sax_3":
            image.SeriesNumber = number  # the time has priority
            if told == "time":
                image.AcquisitionTime = exports.clock(400)
    for image in blurred:
        image.add_new("PixelData", "OW", image.PixelData[::-1])
    assert_aligned(read_series(exports.save(images + blurred, tmp_path)), volumes())
    assert "13 'sax_3'" in caplog.text and "not used" in caplog.text
    assert list_dicom([tmp_path])[0].count("single slice") == 1


def test_a_cine_before_and_one_after_are_not_mixed(tmp_path):
    """Every slice is repeated, as at rest and under stress, or one is repeated at the same time."""
    shared = exports.examination()
    images = cine(shared, range(3)) + cine(shared, range(3), AcquisitionTime=exports.clock(900))
    assert "single slice" in str(list_dicom([exports.save(images, tmp_path / "stress")])[1])
    images = cine(shared, range(SIZE[2])) + cine(shared, (3,))
    assert "single slice" in str(list_dicom([exports.save(images, tmp_path / "same")])[1])


@pytest.mark.parametrize("slices", [(2, 3), (1, 2, 4), (3, 3, 3)], ids=["two", "uneven", "one position"])
def test_other_series_of_one_slice_stay_apart(tmp_path, slices):
    lines, reason = list_dicom([exports.save(cine(exports.examination(), slices), tmp_path)])
    assert lines.count("4 x 1 slices") == len(slices) and "single slice" in str(reason)


@pytest.mark.parametrize("others", [{"SequenceName": "tag"}, {"FlipAngle": 50}])
def test_slices_of_another_sequence_do_not_make_a_stack_of_three(tmp_path, others):
    shared = exports.examination()
    images = cine(shared, (2, 3)) + cine(shared, (4,), **others)
    assert "single slice" in str(list_dicom([exports.save(images, tmp_path)])[1])


def test_slices_of_no_heartbeat_stay_apart(tmp_path):
    """Examples: 2D dynamic scans, which are not triggered, and T1 maps."""
    for trigger in (None, "500"):
        images = cine(exports.examination(), (2, 3, 4), TriggerTime=trigger)
        for k, image in enumerate(images):
            image.AcquisitionTime = exports.clock(k)
        assert "single slice" in str(list_dicom([exports.save(images, tmp_path / str(trigger))])[1])


@pytest.mark.parametrize("names", [["SeriesInstanceUID"], ["StudyInstanceUID", "FrameOfReferenceUID"]])
def test_an_anonymiser_gave_every_image_a_uid_of_its_own(tmp_path, names):
    images = exports.siemens(volumes(), AFFINE)
    for image in images:
        for name in names:
            setattr(image, name, exports.generate_uid())
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


def test_a_number_of_the_protocol_may_be_written_in_two_ways(tmp_path):
    images = exports.siemens(volumes(), AFFINE)
    for image in images[: SIZE[2]]:
        image.RepetitionTime, image.FlipAngle = "4.200", "10.0"
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())


def test_a_study_of_stacks_alike_lists_without_files(tmp_path):
    listing, reason = list_dicom([exports.save(exports.siemens(volumes(), AFFINE), tmp_path)])
    assert listing.count("to be aligned") == 4 and "t1_fl3d_pre" in listing and reason is None


def test_a_registration_needs_an_output(tmp_path, capsys):
    assert main(["register", str(exports.save(dynamic(), tmp_path))]) == 2
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize("pattern", ["$1/0", "@series", "%series"])
def test_a_pattern_is_never_evaluated(tmp_path, capsys, pattern):
    study = str(exports.save(dynamic(), tmp_path / "study"))
    arguments = ["register", study, "--output", str(tmp_path / "out"), "--series-description", pattern]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert pattern in error and "'dyn'" in error


def test_a_data_set_of_studies_takes_the_series_that_is_named(tmp_path):
    """Two dynamic series per study, which differ only in their descriptions."""
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


def test_a_folder_called_dicomdir_is_a_folder(tmp_path):
    exports.save(dynamic(), tmp_path / "DICOMDIR")
    exports.save(dynamic(exports.examination(PatientID="P2")), tmp_path / "another patient")
    assert_aligned(read_series(tmp_path / "DICOMDIR"), volumes())
