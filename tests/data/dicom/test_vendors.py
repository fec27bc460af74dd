"""Exports of each vendor: order, times, positions and values agree with the phantom and with SimpleITK."""

import logging

import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import SIZE, assert_aligned, refused, volumes  # noqa: E402

from groupmorph_monai.data.dicom import list_dicom  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402

SPACING = np.array([1.5, 1.25, 3.0])
TURN = Rotation.from_euler("xyz", [12, -20, 33], degrees=True).as_matrix()
# LPS axes of columns, rows and slices.
ORIENTATIONS = {
    "axial": np.eye(3),
    "sagittal": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float),
    "coronal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float),
    "oblique": TURN,
}
VENDORS = {name: getattr(exports, name) for name in ("siemens", "ge", "philips", "enhanced", "united_imaging")}


def affine_of(orientation="oblique"):
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = ORIENTATIONS[orientation] * SPACING, [-31.5, 12.25, 70.125]
    return exports.LPS @ lps


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_order_times_place_and_values(tmp_path, vendor, orientation):
    data, affine = volumes(), affine_of(orientation)
    series = read_series(exports.save(VENDORS[vendor](data, affine), tmp_path))
    assert len(series.frames) == 4
    for frame, volume in zip(series.frames, data):
        expected = 2.0 * volume - 5 if vendor == "enhanced" else volume
        np.testing.assert_allclose(frame.data, expected, rtol=1e-6)
        np.testing.assert_allclose(frame.affine, affine, atol=1e-4)
    np.testing.assert_allclose(series.times_s, exports.TIMES_S, atol=1e-4)
    assert series.frame_time == pytest.approx(61.5) and series.description
    assert series.clock == {"ge": "trigger time", "philips": "content time"}.get(vendor, "acquisition time")


@pytest.mark.parametrize("orientation", ["sagittal", "oblique"])
@pytest.mark.parametrize("vendor", ["siemens", "ge"])
def test_simpleitk_reads_the_same_voxels_at_the_same_places(tmp_path, vendor, orientation):
    images = VENDORS[vendor](volumes(), affine_of(orientation))
    for k in range(4):
        exports.save(images[k * SIZE[2] : (k + 1) * SIZE[2]], tmp_path / str(k))
    frames = read_series(tmp_path).frames
    for k, frame in enumerate(frames):
        files = [str(path) for path in (tmp_path / str(k)).rglob("*") if path.is_file()]
        depths = [_depth(file) for file in files]
        image = SimpleITK.ReadImage([files[n] for n in np.argsort(depths)])
        np.testing.assert_array_equal(frame.data, SimpleITK.GetArrayFromImage(image).T)
        for index in ((0, 0, 0), (11, 0, 0), (0, 9, 0), (0, 0, 6), (11, 9, 6)):
            theirs = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose((frame.affine @ [*index, 1])[:3], theirs, atol=1e-3)


def _depth(file):
    image = pydicom.dcmread(file)
    axes = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    return float(np.cross(*axes) @ np.array(image.ImagePositionPatient, float))


def test_scans_that_philips_scaled_for_display_are_comparable(tmp_path):
    """The rescale slope is always 1: displayed values jump with the private scale slope, true values do not."""
    series = read_series(exports.save(exports.philips(volumes(), affine_of(), RescaleSlope="1"), tmp_path))
    for frame, volume in zip(series.frames, volumes()):
        np.testing.assert_allclose(frame.data, volume, rtol=1e-6)


def test_private_blocks_that_an_archive_moved_are_found(tmp_path):
    images = exports.philips(volumes(), affine_of(), RescaleSlope="1")
    for image in images:
        scale = image[0x2005, 0x100E].value
        image.add_new((0x2005, 0x0010), "LO", "Philips Imaging DD 001")
        image.add_new((0x2005, 0x0011), "LO", "Philips MR Imaging DD 001")
        image.add_new((0x2005, 0x110E), "FL", scale)
        del image[0x2005, 0x100E]
    for frame, volume in zip(read_series(exports.save(images, tmp_path)).frames, volumes()):
        np.testing.assert_allclose(frame.data, volume, rtol=1e-6)


def test_enhanced_files_of_one_volume_each(tmp_path):
    series = read_series(exports.save(exports.enhanced(volumes(), affine_of(), files=4), tmp_path))
    np.testing.assert_allclose(series.times_s, exports.TIMES_S, atol=1e-4)
    np.testing.assert_array_equal(series.frames[3].data, 2.0 * volumes()[3] - 5)


def test_the_log_names_what_is_aligned_and_its_times(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        read_series(exports.save(exports.ge(volumes(), affine_of()), tmp_path))
    assert "Chosen: 1 'Ax LAVA Multi Phase'" in caplog.text and "trigger time" in caplog.text and "123.0" in caplog.text


def echo_planar(**attributes):
    """Make a GE series whose images all have the times of the series."""
    private = attributes.pop("private", {})
    header = {"ScanningSequence": ["EP", "GR"], "SequenceVariant": "SS", "MRAcquisitionType": "2D"}
    images = exports.ge(
        volumes(), affine_of(), **{**header, "RepetitionTime": "2000", "TriggerTime": None, **attributes}
    )
    for n, image in enumerate(images):
        block = image.private_block(0x0043, "GEMS_PARM_01", create=True)
        for element, (vr, value) in private.items():
            block.add_new(element, vr, value[n // SIZE[2]] if isinstance(value, list) else value)
    return images


@pytest.mark.parametrize(
    ("attributes", "step_s"),
    [
        ({}, 2.0),
        ({"private": {0x7C: ("FL", 3.0)}}, 5.0),  # group delay after each volume
        ({"AcquisitionTime": ["102030", "102031", *5 * ["102030"]]}, 2.0),  # one second, and not in order
        ({"AcquisitionTime": ["102030", "102036", *5 * ["102030"]]}, None),  # as long as the volumes take
        ({"SequenceVariant": "SK"}, None),  # several shots per volume
        ({"MRAcquisitionType": "3D"}, None),
        ({"ScanningSequence": "GR"}, None),
    ],
    ids=str,
)
def test_single_shot_volumes_without_times_are_a_repetition_time_apart(tmp_path, attributes, step_s):
    series = read_series(exports.save(echo_planar(**attributes), tmp_path))
    assert_aligned(series, volumes())
    assert series.times_s == (None if step_s is None else tuple(k * step_s for k in range(4)))


@pytest.mark.parametrize(("shots", "times_s"), [(1, (0, 10, 20, 30)), (2, None)])
def test_enhanced_single_shot_volumes_of_one_moment_are_a_repetition_time_apart(tmp_path, shots, times_s):
    """Canon writes the start of the series as the time of every frame."""
    (image,) = exports.enhanced(volumes() // 2, affine_of())
    image.EchoPlanarPulseSequence, image.NumberOfKSpaceTrajectories = "YES", shots
    image.MRAcquisitionType, image.RepetitionTime = "2D", "10000"
    for group in image.PerFrameFunctionalGroupsSequence:
        group.FrameContentSequence[0].FrameAcquisitionDateTime = "20250301102030"
    series = read_series(exports.save([image], tmp_path))
    assert_aligned(series, volumes() // 2 * 2.0 - 5)
    assert series.times_s == times_s


@pytest.mark.parametrize(("user_12", "reversed_timepoints"), [(0, []), (1, [0, 1, 2, 3]), (2, [0, 2]), (3, [1, 3])])
def test_volumes_of_ges_epi_pepolar_with_reversed_rows(tmp_path, user_12, reversed_timepoints):
    data, affine = volumes(), affine_of()
    stored = np.stack([v[:, ::-1] if k in reversed_timepoints else v for k, v in enumerate(data)])
    images = exports.ge(stored, affine)
    for n, image in enumerate(images):
        image.TemporalPositionIdentifier = n // SIZE[2] + 1
        block = image.private_block(0x0019, "GEMS_ACQU_01", create=True)
        block.add_new(0x9C, "LO", "research/ABCD/epi_pepolar")
        block.add_new(0xB3, "DS", str(user_12))
    exports.save(images, tmp_path)
    if 0 < len(reversed_timepoints) < 4:
        refused(tmp_path, "one series to align", "REVERSED")
        series = read_series(tmp_path, description="*REVERSED*")
    else:
        series = read_series(tmp_path)
    timepoints = reversed_timepoints or range(4)
    assert len(series.frames) == len(timepoints)
    for frame, k in zip(series.frames, timepoints):
        own, true = frame.affine @ [3, 4, 2, 1], np.linalg.inv(affine)
        i, j, s = np.rint((true @ own)[:3]).astype(int)
        np.testing.assert_allclose(true @ own, [i, j, s, 1], atol=1e-4)
        assert frame.data[3, 4, 2] == data[k][i, j, s]


def labelled_by_philips():
    images = exports.philips(volumes(), affine_of(), AcquisitionTime=None)
    for n, image in enumerate(images):
        dynamic, label = divmod(n // SIZE[2], 2)
        image.TemporalPositionIdentifier, image.ContentTime = dynamic + 1, exports.clock(30 * dynamic)
        block = image.private_block(0x2005, "Philips MR Imaging DD 005", create=True)
        block.add_new(0x29, "CS", ("CONTROL", "LABEL")[label])
    return images


def labelled_in_functional_groups():
    (image,) = exports.enhanced((volumes() + 5) // 2, affine_of())
    for group in image.PerFrameFunctionalGroupsSequence:
        content = group.FrameContentSequence[0]
        dynamic, label = divmod(content.TemporalPositionIndex - 1, 2)
        content.TemporalPositionIndex = dynamic + 1
        content.FrameAcquisitionDateTime = "20250301" + exports.clock(30 * dynamic)
        content.DimensionIndexValues = [1, content.InStackPositionNumber, dynamic + 1, label]
        context = pydicom.Dataset()
        context.ASLContext = ("CONTROL", "LABEL")[label]
        group.MRArterialSpinLabelingSequence = [context]
    return [image]


@pytest.mark.parametrize("images", [labelled_by_philips, labelled_in_functional_groups])
def test_control_and_label_of_one_moment_are_timepoints(tmp_path, images):
    """In arterial spin labelling both have the time and the temporal position of their dynamic scan."""
    series = read_series(exports.save(images(), tmp_path))
    data = volumes() if images is labelled_by_philips else (volumes() + 5) // 2 * 2.0 - 5
    assert_aligned(series, data)
    assert series.times_s is None


@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ImplicitVRLittleEndian])
def test_control_comes_before_label_whatever_the_instance_numbers_and_the_encoding(tmp_path, syntax):
    images = labelled_by_philips()
    for n, image in enumerate(images):
        (dynamic, label), place = divmod(n // SIZE[2], 2), n % SIZE[2]
        image.InstanceNumber = (2 * label + dynamic) * SIZE[2] + place + 1
        exports.write(image, tmp_path / f"{n}.dcm", syntax)
    series = read_series(tmp_path)
    assert_aligned(series, volumes())
    assert series.times_s is None


@pytest.mark.parametrize(
    ("element", "values", "name", "members"),
    [
        (0x30, [0, 2, 0, 2], "MAGNITUDE", [1, 3]),  # next to a field map
        (0x2F, [0, 0, 1, 1], "PHASE", [2, 3]),
        (0x2F, [2, 3, 3, 2], "IMAGINARY", [1, 2]),
    ],
    ids=str,
)
def test_magnitude_phase_and_field_maps_in_one_ge_series_are_not_its_timepoints(
    tmp_path, element, values, name, members
):
    """Their image types are equal, but GE's private raw data type and collapse flag differ."""
    exports.save(echo_planar(private={element: ("SS", values)}, SeriesDescription="gre"), tmp_path)
    lines, reason = list_dicom([tmp_path])
    assert lines.count("2 x 7 slices") == 2 and "expected one series to align" in str(reason)
    series = read_series(tmp_path, description=f"*{name}*")
    assert_aligned(series, volumes()[members])


@pytest.mark.parametrize(
    ("vendor", "group", "creator", "element", "vr"),
    [
        ("philips", 0x2001, "Philips Imaging DD 001", 0x03, "FL"),
        ("united_imaging", 0x0065, "Image Private Header", 0x09, "FD"),
    ],
)
def test_images_with_a_private_b_value_are_ignored(tmp_path, vendor, group, creator, element, vr):
    """DiffusionBValue is missing from them."""
    images = VENDORS[vendor](volumes(), affine_of())
    for n, image in enumerate(images):
        image.private_block(group, creator, create=True).add_new(element, vr, 1000.0 * (4 * n >= len(images)))
    lines, reason = list_dicom([exports.save(images, tmp_path)])
    assert "diffusion" in lines and "4 x 7 slices, diffusion" in str(reason)


def test_ges_b_value_is_read_without_its_type_and_creator(tmp_path):
    """Anonymisers remove the creators of private blocks, without which implicit files declare no types."""
    images = VENDORS["ge"](exports.volumes(), affine_of())
    for n, image in enumerate(images):
        image.add_new((0x0043, 0x1039), "UN", b"1000\\8\\0\\0" if 4 * n >= len(images) else b"0\\8\\0\\0 ")
    lines, reason = list_dicom([exports.save(images, tmp_path)])
    assert "diffusion" in lines and "4 x 7 slices, diffusion" in str(reason)


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_parameters_with_a_decimal_comma_are_numbers(tmp_path):
    """Kinetic models need the repetition time and the flip angle."""
    for number, image in enumerate(exports.siemens(volumes(), affine_of())):
        image.add_new("RepetitionTime", "LO", "4,5" if number % 2 else "4.50")  # an implicit file stores no types
        image.add_new("FlipAngle", "LO", "15,0")
        exports.write(image, tmp_path / f"{number}.dcm", pydicom.uid.ImplicitVRLittleEndian)
    planes = [plane for planes in read_series(tmp_path).slices for plane in planes]
    assert len(planes) == 4 * SIZE[2]
    assert {(plane.number("RepetitionTime"), plane.number("FlipAngle")) for plane in planes} == {(4.5, 15.0)}
