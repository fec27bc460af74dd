"""Series whose slices follow the patient: prospective motion correction, and replanned dynamic scans."""

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, assert_aligned, refused, volumes  # noqa: E402

from groupmorph_monai.data.dicom import list_dicom  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402

SHIFTS_MM = np.array([[0, 0, 0], [0.3, -0.1, 0.023], [-0.2, 0.4, 1.5], [0.1, 0.2, 3.0]])
TILTS_DEGREES = np.array([[0, 0, 0], [0, 0, 0], [0.5, -0.3, 1.0], [-2.0, 1.5, 0.7]])
TIMES = [{"AcquisitionTime": exports.clock(t)} for t in exports.TIMES_S]
NUMBERS = [{"TemporalPositionIdentifier": k + 1} for k in range(4)]
# Slices one after the other, interleaved, as in echo-planar imaging.
SLICE_TIMES = [[exports.clock(2 * k + 0.25 * (3 * s % 7)) for s in range(SIZE[2])] for k in range(4)]


def affines(tilted):
    """Make affines of the volumes whose fields of view move in world coordinates."""
    moved = []
    for shift, tilt in zip(SHIFTS_MM, TILTS_DEGREES * tilted):
        motion = np.eye(4)
        motion[:3, :3], motion[:3, 3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix(), shift
        moved.append(motion @ AFFINE)
    return moved


def series_of(headers, grids, data=None, **attributes):
    shared, images = exports.examination(), []
    attributes |= {"SeriesInstanceUID": exports.generate_uid(), "SeriesDescription": "bold_moco"}
    for volume, header, grid in zip(volumes() if data is None else data, headers, grids, strict=True):
        images += exports.classic(shared, volume, grid, **attributes, **header)
    return images


def divide(images):
    """Give every timepoint a series of its own."""
    for number, image in enumerate(images):
        image.SeriesInstanceUID, image.SeriesNumber = f"1.2.{number // SIZE[2]}", number // SIZE[2]


def check(folder, grids, times_s=exports.TIMES_S):
    series = read_series(folder)
    assert_aligned(series, volumes())
    for frame, grid in zip(series.frames, grids, strict=True):
        np.testing.assert_allclose(frame.affine, grid, atol=1e-4)
    assert series.times_s == times_s


@pytest.mark.parametrize("tilted", [0, 1])
@pytest.mark.parametrize(
    ("headers", "times_s"),
    [
        (TIMES, exports.TIMES_S),
        ([{**header, "AcquisitionTime": times} for header, times in zip(NUMBERS, SLICE_TIMES)], (0, 2, 4, 6)),
        ([{"TriggerTime": str(1000 * t)} for t in exports.TIMES_S], exports.TIMES_S),
        ([{"AcquisitionNumber": k + 1} for k in range(4)], None),
    ],
    ids=["time", "temporal position", "trigger", "acquisition number"],
)
def test_every_volume_has_its_own_place(tmp_path, headers, times_s, tilted):
    grids = affines(tilted)
    check(exports.save(series_of(headers, grids), tmp_path), grids, times_s)


def test_rounded_spacings_of_tilted_volumes_are_one(tmp_path):
    grids = affines(1)
    images = series_of(TIMES, grids)
    for number, image in enumerate(images):
        image.PixelSpacing = [1.5 + 1e-6 * (number // SIZE[2]), 1.5]
    check(exports.save(images, tmp_path), grids)


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "last first"])
@pytest.mark.parametrize("tilt", [0.01, 0.03, 0.1, 1])
def test_every_volume_has_its_own_place_and_series(tmp_path, tilt, reverse):
    """The smallest tilts are those of rounding between some timepoints, and larger between others."""
    grids = affines(tilt)
    images = series_of(TIMES, grids)
    divide(images)
    for number, image in enumerate(images):
        exports.write(image, tmp_path / f"{1000 - number if reverse else number:04d}")
    check(tmp_path, grids)


def test_motion_by_hardly_more_than_the_tolerance_of_a_position(tmp_path):
    """Every position holds the same number of images, which are not those of whole volumes."""
    grids = [AFFINE + depth * np.eye(4)[2][:, None] * np.eye(4)[3] for depth in (0, 0.004, 0.02, 0.024)]
    check(exports.save(series_of(TIMES, grids), tmp_path), grids)


def test_slices_that_turn_in_their_plane_only(tmp_path):
    """Their positions along the normal are equal, and may equal those of slices of other volumes."""
    turns = [Rotation.from_euler("z", 3.0 * k, degrees=True).as_matrix() for k in range(4)]
    grids = [np.block([[turn @ AFFINE[:3, :3], AFFINE[:3, 3:]], [AFFINE[3:]]]) for turn in turns]
    check(exports.save(series_of(TIMES, grids), tmp_path), grids)


@pytest.mark.parametrize("one_series", [True, False])
def test_a_volume_that_is_stored_the_other_way_round(tmp_path, one_series):
    """With rows in reversed order."""
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = SIZE[1] - 1
    data, grids = [*volumes()], [AFFINE, AFFINE, AFFINE @ flip, AFFINE]
    data[2] = data[2][:, ::-1]
    images = series_of(TIMES, grids, data)
    if not one_series:
        divide(images)
    series = read_series(exports.save(images, tmp_path))
    for frame, volume in zip(series.frames, volumes(), strict=True):
        image, truth = (
            nibabel.as_closest_canonical(nibabel.Nifti1Image(values.astype(np.float32), affine))
            for values, affine in ((frame.data, frame.affine), (volume, AFFINE))
        )
        np.testing.assert_array_equal(image.dataobj, truth.dataobj)
        np.testing.assert_allclose(image.affine, truth.affine, atol=1e-4)
    assert not series.warnings


def test_mosaics_and_enhanced_files_that_move(tmp_path):
    grids = affines(1)
    for name, tilted in (("united_imaging", grids), ("enhanced", grids)):
        images = []
        for k, grid in enumerate(tilted):
            single = getattr(exports, name)(volumes(), grid)
            if name == "united_imaging":
                images.append(single[k])
                images[-1].StudyInstanceUID, images[-1].FrameOfReferenceUID = "1.2.3", "1.2.4"
                images[-1].SeriesInstanceUID = "1.2.5"
            else:
                per_frame = images[0].PerFrameFunctionalGroupsSequence if images else None
                for n, group in enumerate(single[0].PerFrameFunctionalGroupsSequence):
                    shared = single[0].SharedFunctionalGroupsSequence[0]
                    group.PlaneOrientationSequence = shared.PlaneOrientationSequence
                    if per_frame and group.FrameContentSequence[0].TemporalPositionIndex == k + 1:
                        per_frame[n] = group
                if not images:
                    images = single
        if name == "enhanced":
            del images[0].SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        series = read_series(exports.save(images, tmp_path / name))
        expected = 2.0 * volumes() - 5 if name == "enhanced" else volumes()
        assert_aligned(series, expected)
        np.testing.assert_allclose([frame.affine for frame in series.frames], grids, atol=1e-4)
        np.testing.assert_allclose(series.times_s, exports.TIMES_S, atol=1e-4)


@pytest.mark.parametrize("tilted", [0, 1])
def test_volumes_that_nothing_tells_apart_are_refused(tmp_path, tilted):
    images = series_of([{"AcquisitionTime": times} for times in SLICE_TIMES], affines(tilted))
    refused(exports.save(images, tmp_path), "temporal position, acquisition number or time", "28 slices", "'bold_moco'")


def test_attributes_that_tell_different_volumes_are_refused(tmp_path):
    """Volumes moved by less than the tolerance of a slice's position: either division would look right."""
    grids = [AFFINE, AFFINE + 0.05 * np.eye(4)[2][:, None] * np.eye(4)[3]]
    headers = [
        {"AcquisitionNumber": k + 1, "TriggerTime": [str((s + k) % 2) for s in range(SIZE[2])]} for k in range(2)
    ]
    for header in headers:  # the odd slice belongs to either volume
        header["TriggerTime"][-1] = str(headers.index(header))
    images = series_of(headers, grids, volumes(2))
    assert list_dicom([exports.save(images, tmp_path)])[0].count("2 x 7 slices") == 1
    refused(tmp_path, "14 slices", "lie at different positions in every volume")


def test_a_missing_slice_of_a_moved_series_is_refused(tmp_path):
    images = series_of(TIMES, affines(1))
    refused(exports.save(images[:9] + images[10:], tmp_path), "27 slices", "export the whole series again")


@pytest.mark.parametrize("one_series", [True, False])
@pytest.mark.parametrize("turn", [8, 90])
def test_stacks_of_a_spine_or_a_localiser_are_no_timepoints(tmp_path, turn, one_series):
    """Each stack is parallel to its disc, one disc above the previous stack."""
    grids = []
    for k in range(4):
        grid = AFFINE.copy()
        grid[:3, :3] = Rotation.from_euler("x", turn * k, degrees=True).as_matrix() @ AFFINE[:3, :3]
        grid[2, 3] += 35 * k * (turn == 8)
        grids.append(grid)
    images = series_of(NUMBERS, grids)
    if not one_series:
        divide(images)
    lines, reason = list_dicom([exports.save(images, tmp_path)])
    assert "to be aligned" not in lines and reason is not None


@pytest.mark.parametrize("one_series", [True, False])
@pytest.mark.parametrize("turn", [3, 10])
def test_stacks_that_are_turned_by_more_than_a_head_are_a_warning(tmp_path, turn, one_series):
    """They may be planned along two structures of the same region."""
    grids = [AFFINE, AFFINE.copy()]
    grids[1][:3, :3] = Rotation.from_euler("x", turn, degrees=True).as_matrix() @ AFFINE[:3, :3]
    images = series_of(NUMBERS[:2], grids, volumes(2))
    if not one_series:
        divide(images)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes(2))
    assert [f"by up to {turn} degrees" in warning for warning in series.warnings] == [True] * (turn == 10)


@pytest.mark.parametrize("one_series", [True, False])
def test_a_drift_by_more_than_half_a_field_of_view_in_all(tmp_path, one_series):
    """Each timepoint is compared with the ones before it."""
    grids = [turned(degrees) for degrees in (0, 1, 2, 3)]
    for k, grid in enumerate(grids):
        grid[2, 3] += 0.2 * k * SIZE[2] * AFFINE[2, 2]
    images = series_of(TIMES, grids)
    if not one_series:
        divide(images)
    check(exports.save(images, tmp_path), grids)


def turned(degrees):
    grid = AFFINE.copy()
    grid[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() @ AFFINE[:3, :3]
    return grid


def later(images, number, study):
    """Move images to another series of the study of other images, after these."""
    for image in images:
        image.StudyInstanceUID, image.FrameOfReferenceUID = study[0].StudyInstanceUID, study[0].FrameOfReferenceUID
        image.SeriesInstanceUID, image.SeriesNumber = f"1.2.{number}", number
        image.AcquisitionTime = f"1{number}{image.AcquisitionTime[2:]}"
    return images


def test_a_shorter_run_that_is_tilted_is_not_aligned_with_a_longer_one(tmp_path):
    images = series_of(TIMES, [AFFINE] * 4)
    images += later(series_of(TIMES[:2], [turned(3)] * 2, volumes(2, seed=5)), 2, images)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes())
    assert len(series.warnings) == 1 and "2 'bold_moco'" in series.warnings[0]


def test_single_volumes_of_another_orientation_do_not_compete_with_a_series(tmp_path):
    images = series_of(TIMES[:3], [AFFINE] * 3, volumes(3))
    for number, degrees in ((2, 20), (3, 23)):
        images += later(series_of(TIMES[:1], [turned(degrees)], volumes(1, seed=number)), number, images)
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes(3))


def test_timepoints_that_were_planned_again_are_more_than_a_pair_of_maps(tmp_path):
    grids = [turned(degrees) for degrees in (0, 1, 2, 3)]
    images = series_of(TIMES, grids)
    divide(images)
    maps = series_of(TIMES[:2], [AFFINE] * 2, volumes(2, seed=5), SequenceName="map")
    check(exports.save(images + later(maps, 5, images), tmp_path), grids)


def test_single_volumes_that_are_called_differently_and_tilted_are_not_aligned_unasked(tmp_path):
    images = series_of(TIMES[:2], [AFFINE, turned(3)], volumes(2))
    divide(images)
    for image in images:
        image.SeriesDescription = ("ax", "ax oblique")[int(image.SeriesNumber)]
    refused(exports.save(images, tmp_path), "expected a series with at least two timepoints", "--series-description")
    assert_aligned(read_series(tmp_path, description="ax*"), volumes(2))


@pytest.mark.parametrize("distance_mm", [38.5, 100])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("missing", [0, 1])
def test_parallel_stacks_of_knees_or_discs_do_not_follow_the_patient(tmp_path, distance_mm, number, missing):
    """The dynamic series of the study is aligned nevertheless."""
    shared, stacks, uid = exports.examination(ScanningSequence="SE"), [], exports.generate_uid()
    for k in range(number):
        grid = AFFINE.copy()
        grid[2, 3] += distance_mm * k
        header = {"AcquisitionNumber": k + 1, "AcquisitionTime": exports.clock(900 + k), "SeriesNumber": 9}
        stacks += exports.classic(shared, volumes(1)[0], grid, SeriesInstanceUID=uid, **header)
    shared.ScanningSequence = "GR"
    study = exports.dynamic(shared, volumes(3)) + stacks[: len(stacks) - 2 * missing]
    assert_aligned(read_series(exports.save(study, tmp_path)), volumes(3))
    assert f"1 x {len(stacks) - 2 * missing} slices" in list_dicom([tmp_path])[0]


@pytest.mark.parametrize(
    ("distance_mm", "delay_s", "timepoints"),
    [(mm, 20, numbers) for mm in (18, 24, 60) for numbers in ((2, 2), (2, 1), (3, 1))] + [(60, 0, (2, 2))],
    ids=str,
)
def test_two_stacks_of_one_series_are_named(tmp_path, distance_mm, delay_s, timepoints):
    """Slices are not called missing or exported twice. The slices of a stack share their times, or there is a gap."""
    images, header = [], {"SeriesInstanceUID": exports.generate_uid(), "SeriesDescription": "knees"}
    shared, data = exports.examination(), volumes()
    for number, count in enumerate(timepoints):
        grid = AFFINE.copy()
        grid[2, 3] += distance_mm * number
        for k in range(count):
            header["AcquisitionTime"] = exports.clock(60 * k + delay_s * number)
            images += exports.classic(shared, data[k + number], grid, **header)
    places = f"7 slices at 20 to 38 mm and 7 at {distance_mm + 20} to {distance_mm + 38} mm"
    refused(exports.save(images, tmp_path), f"one stack of slices in 'knees', got several, such as {places}; use")
