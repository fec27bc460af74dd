"""Images of several kinds, such as echoes, water and fat, or repetitions: which are timepoints."""

from copy import deepcopy

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, assert_aligned, dynamic, refused, volumes  # noqa: E402

from groupmorph_monai.data.dicom import list_dicom  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402


def test_images_of_palette_colours_are_no_scans(tmp_path):
    shared = exports.examination()
    maps = dynamic(shared, volumes(seed=6), SeriesDescription="dyn ttp", SeriesNumber=9)
    for image in maps:
        image.PhotometricInterpretation = "PALETTE COLOR"
    assert_aligned(read_series(exports.save(dynamic(shared) + maps, tmp_path)), volumes())


KINDS = {
    "velocities": [{"TriggerTime": str(40 * (k // 3)), "ContentTime": exports.clock(k)} for k in range(6)],
    "contrasts": [{"AcquisitionNumber": k // 3 + 1, "ContentTime": exports.clock(k)} for k in range(6)],
    "recovered in turn": [
        {"AcquisitionTime": exports.clock(7.5 * (k // 3) + 0.5), "InstanceNumber": [6 * s + k for s in range(SIZE[2])]}
        for k in range(6)
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_several_kinds_are_no_timepoints(tmp_path, kind):
    """Three images at each of two moments, which differ in when they were reconstructed or how they are numbered."""
    images = exports.one_series(volumes(6), KINDS[kind], SeriesDescription="flow")
    refused(exports.save(images, tmp_path), "expected one image for each", "got 3 that may be echoes", "of one kind")


@pytest.mark.parametrize("phase", ["TriggerTime", "NominalPercentageOfCardiacPhase", "TemporalPositionIdentifier"])
@pytest.mark.parametrize("repetition", ["AcquisitionTime", "AcquisitionNumber"])
def test_repetitions_of_a_scan_are_timepoints(tmp_path, phase, repetition):
    """Two of three phases each, such as a cine acquired twice, or the runs of a perfusion."""
    headers = []
    for k in range(6):
        r, number = divmod(k, 3)
        header = {phase: 20 * number, "ContentTime": exports.clock(10 * r + number)}
        headers.append(header | {repetition: exports.clock(10 * r + 0.5) if repetition == "AcquisitionTime" else r + 1})
    assert_aligned(read_series(exports.save(exports.one_series(volumes(6), headers), tmp_path)), volumes(6))


RESTARTED = {
    "times": lambda number: {"AcquisitionDateTime": "20250301" + exports.clock(300 * number)},
    "numbers": lambda number: {"AcquisitionNumber": number + 1},
    "neither": lambda number: {},
}


@pytest.mark.parametrize("told", RESTARTED)
@pytest.mark.parametrize("later_first", [True, False])
def test_temporal_positions_that_start_again_in_every_file(tmp_path, told, later_first):
    """Without times of the frames. Numbers of files and frames do not tell kinds of images from timepoints."""
    images = exports.enhanced(volumes(), AFFINE, files=2)
    for number, image in enumerate(images):
        image.InstanceNumber = 2 - number if later_first else 1 + number
        for name, value in RESTARTED[told](number).items():
            setattr(image, name, value)
        for group in image.PerFrameFunctionalGroupsSequence:
            content = group.FrameContentSequence[0]
            content.TemporalPositionIndex -= 2 * number
            content.DimensionIndexValues = [1, content.InStackPositionNumber, content.TemporalPositionIndex]
            del content.FrameAcquisitionDateTime
    exports.save(images, tmp_path)
    if told == "neither":
        refused(tmp_path, "expected one image for each temporal position", "got 2 that may be echoes")
    else:
        series = read_series(tmp_path)
        assert_aligned(series, 2.0 * volumes() - 5)
        assert series.times_s is None


def test_ct_images_of_one_acquisition_are_timepoints(tmp_path):
    """A perfusion scan in cine mode, twice."""
    images = exports.one_series(volumes(6), KINDS["contrasts"], shared=exports.examination(Modality="CT"))
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes(6))


def test_volumes_faster_than_clocks_in_whole_seconds_are_timepoints(tmp_path):
    headers = [
        {"AcquisitionTime": f"10203{k // 2}", "InstanceNumber": [6 * s + k for s in range(SIZE[2])]} for k in range(6)
    ]
    assert_aligned(read_series(exports.save(exports.one_series(volumes(6), headers), tmp_path)), volumes(6))


def test_echoes_without_an_echo_time_are_distinguished_by_their_numbers(tmp_path):
    headers = [{"AcquisitionTime": exports.clock(5 * k), "EchoNumbers": k % 2 + 1} for k in range(6)]
    images = exports.one_series(volumes(6), headers, SeriesDescription="me")
    for image in images:
        del image.EchoTime
    refused(exports.save(images, tmp_path), "ECHO 1", "ECHO 2")
    assert_aligned(read_series(tmp_path, description="*ECHO 2*"), volumes(6)[1::2])


def test_series_of_one_volume_each_that_were_sent_twice_are_refused(tmp_path):
    images = exports.siemens(volumes(), AFFINE)
    exports.save(images, tmp_path / "a")
    series = {image.SeriesInstanceUID: exports.generate_uid() for image in images}
    for image in images:
        image.SOPInstanceUID, image.SeriesInstanceUID = exports.generate_uid(), series[image.SeriesInstanceUID]
    exports.save(images, tmp_path / "b")
    refused(tmp_path, "differs from", "exported twice")
    assert_aligned(read_series(tmp_path / "b"), volumes())


@pytest.mark.parametrize(
    ("kind", "timepoints", "refuse"),
    [
        (["DERIVED", "PRIMARY", "M", "ND"], 4, True),
        (["DERIVED", "PRIMARY", "M", "ND"], 3, False),
        (["DERIVED", "SECONDARY", "MPR"], 4, False),
        (["DERIVED", "PRIMARY", "M", "SUB"], 4, False),
    ],
)
def test_a_repeated_scan_is_not_taken_for_a_longer_derived_series(tmp_path, kind, timepoints, refuse):
    shared, repeated = exports.examination(), volumes(2, seed=6)
    images = dynamic(shared, repeated, SeriesDescription="t2", SeriesNumber=3, EchoTime="90")
    images += dynamic(shared, volumes(timepoints), SeriesDescription="DCE", ImageType=kind)
    exports.save(images, tmp_path)
    if refuse:
        refused(tmp_path, "expected one series to align", "'t2'", "'DCE'", "the longer one is derived")
        assert_aligned(read_series(tmp_path, description="DCE"), volumes())
    else:
        assert_aligned(read_series(tmp_path), repeated)


@pytest.mark.parametrize("export", [exports.siemens, exports.ge, exports.philips])
def test_derived_copies_of_the_series_are_neither_refused_nor_a_doubt(tmp_path, export):
    images = export(volumes(), AFFINE)
    exports.save(images, tmp_path / "dyn")
    uids = {image.SeriesInstanceUID for image in images}
    for n in range(2):
        copied = {uid: exports.generate_uid() for uid in uids}
        copies = [pydicom.dcmread(path) for path in sorted((tmp_path / "dyn").rglob("*")) if path.is_file()]
        for image in copies:
            image.SeriesInstanceUID, image.SOPInstanceUID = copied[image.SeriesInstanceUID], exports.generate_uid()
            image.ImageType, image.SeriesNumber = ["DERIVED", "PRIMARY", "M", "ND"], image.SeriesNumber + 100 * (n + 1)
        exports.save(copies, tmp_path / f"copy {n}")
    series = read_series(tmp_path)
    assert_aligned(series, volumes())
    assert not series.warnings


@pytest.mark.parametrize(
    ("description", "sequence", "is_diffusion"),
    [
        ("Ax DWI b0-800", {"ScanningSequence": ["EP", "SE"]}, True),
        ("b800", {"ScanningSequence": "EP", "SequenceName": "*ep_b800#3"}, True),
        ("Ax DWI", {}, False),  # no echo-planar sequence
        ("perfusion", {"ScanningSequence": "EP", "SequenceName": "*ep_b0"}, False),
    ],
)
def test_diffusion_without_b_values_is_told_by_its_sequence(tmp_path, description, sequence, is_diffusion):
    shared, weighted = exports.examination(), volumes(4, seed=6)
    images = dynamic(shared, weighted, SeriesDescription=description, SeriesNumber=3, EchoTime="70", **sequence)
    images += dynamic(shared, volumes(2))
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes(2) if is_diffusion else weighted)
    assert_aligned(read_series(tmp_path, description=description), weighted)


@pytest.mark.parametrize("segmentation", ["1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"])
def test_segmentations_are_no_scans(tmp_path, segmentation):
    shared = exports.examination()
    images = dynamic(shared, volumes(2))
    for k, volume in enumerate(volumes(3)):
        attributes = {"SeriesInstanceUID": "1.2.3", "AcquisitionNumber": k + 1}
        images += exports.classic(shared, volume, AFFINE, segmentation, SeriesDescription="dyn seg", **attributes)
    assert list_dicom([exports.save(images, tmp_path)])[0].count("\n") == 0


def water_and_fat(names, seconds):
    """A series for each timepoint of both kinds, which share their times."""
    shared, data = exports.examination(), (volumes(), volumes(seed=8))
    return [
        image
        for k in range(4)
        for kind, name in enumerate(names)
        for image in exports.classic(
            shared,
            data[kind][k],
            AFFINE,
            SeriesDescription=f"{name} dyn {k}",
            SeriesNumber=10 * k + kind,
            AcquisitionTime=exports.clock(seconds[k]),
        )
    ]


def test_water_and_fat_of_ge_are_not_timepoints_of_one_series(tmp_path):
    exports.save(water_and_fat(("WATER:", "FAT:"), np.arange(4) * 60), tmp_path)
    refused(tmp_path, "expected one series to align", "ND\\WATER", "ND\\FAT")
    assert_aligned(read_series(tmp_path, description="water*"), volumes())


def test_series_that_share_their_times_are_of_several_kinds(tmp_path):
    exports.save(water_and_fat(("in phase", "opposed phase"), exports.TIMES_S), tmp_path)
    refused(tmp_path, "equal ones in 0 'in phase dyn 0' and 1 'opposed phase dyn 0'", "--series-description")
    assert_aligned(read_series(tmp_path, description="in phase*"), volumes())


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize(
    ("step_s", "delay_s", "words"),
    [(0, 0, "equal"), (3, 0, "equal"), (3, 0.01, "overlapping"), (0, 0.0024, "overlapping")],
    ids=str,
)
def test_series_of_one_acquisition_are_no_timepoints(tmp_path, number, step_s, delay_s, words):
    """A Dixon scan, in 3D or slice by slice, whose images the headers do not tell apart: only their descriptions do."""
    shared, images, slices = exports.examination(), [], np.arange(SIZE[2])
    for k, name in enumerate(("W", "F", "in", "opp")[:number]):
        header = {"SeriesNumber": k + 1, "SeriesDescription": f"t1_{name}", "ContentTime": exports.clock(60 + k)}
        times = [exports.clock(step_s * s + delay_s * k) for s in slices]
        images += exports.classic(shared, volumes()[k], AFFINE, **header, AcquisitionNumber=k, AcquisitionTime=times)
    refused(exports.save(images, tmp_path), f"{words} ones in 1 't1_W' and 2 't1_F'", "--series-description")


def renumbered(images, new_series=True, **attributes):
    """Copy images of one series with new UIDs and these attributes."""
    copies, series = deepcopy(images), exports.generate_uid() if new_series else images[0].SeriesInstanceUID
    for image in copies:
        image.SOPInstanceUID, image.SeriesInstanceUID = exports.generate_uid(), series
        for name, value in attributes.items():
            setattr(image, name, value)
    return copies


@pytest.mark.parametrize("export", [exports.ge, exports.siemens])
@pytest.mark.parametrize("timepoints", [range(4), [3]])
def test_a_second_export_under_other_names_adds_no_timepoints(tmp_path, export, timepoints):
    """A series for each timepoint, such as of its filtered images, beside the series of the scan."""
    images = export(volumes(), AFFINE)
    for k in timepoints:
        volume = images[SIZE[2] * k : SIZE[2] * (k + 1)]
        name = f"Ph{k}/{volume[0].SeriesDescription}"
        images += renumbered(volume, SeriesNumber=100 + k, SeriesDescription=name)
    name = images[SIZE[2] * timepoints[0]].SeriesDescription
    exports.save(images, tmp_path)
    refused(tmp_path, "equal ones in", f"{name!r} and {100 + timepoints[0]} 'Ph", "--series-description")


@pytest.mark.parametrize("number", [2, 3, 4])
def test_magnitude_and_phase_of_a_second_examination_are_no_timepoints(tmp_path, number):
    """They are in one series, which a description selects together with the first examination."""
    images, late = dynamic(), dynamic(data=volumes(number, seed=6), SeriesDescription="dyn late")
    for image in late:
        image.AcquisitionTime = f"11{image.AcquisitionTime[2:]}"
    phase = renumbered(late, new_series=False, ImageType=["ORIGINAL", "PRIMARY", "P", "ND"])
    exports.save(images + late + phase, tmp_path)
    refused(tmp_path, "'dyn late'", "--series-description", description="dyn*")
    assert_aligned(read_series(tmp_path, description="'dyn'"), volumes())


@pytest.mark.parametrize("new_series", [True, False])
@pytest.mark.parametrize("number", [{"TemporalPositionIdentifier": 9}, {"AcquisitionNumber": 9}], ids=str)
@pytest.mark.parametrize("export", [exports.siemens, exports.ge, exports.philips])
def test_renumbered_copies_of_a_timepoint_are_refused(tmp_path, export, number, new_series):
    images = export(volumes(), AFFINE)
    for k, image in enumerate(images):
        image.TemporalPositionIdentifier = image.AcquisitionNumber = k // SIZE[2] + 1
    copies = renumbered(images[SIZE[2] : 2 * SIZE[2]], new_series, **number)
    exports.save(images + copies, tmp_path)
    refused(tmp_path, " got ", copies[0].SeriesDescription, "remove", "--series-description")


def test_scans_whose_pixels_an_anonymiser_replaced_are_no_copies(tmp_path):
    data = np.stack(3 * [volumes(1)[0]])
    headers = [{"AcquisitionTime": "101010", "InstanceNumber": [3 * s + k for s in range(SIZE[2])]} for k in range(3)]
    assert_aligned(read_series(exports.save(exports.one_series(data, headers), tmp_path)), data)


def test_a_copied_phase_of_a_4d_ct_is_refused(tmp_path):
    headers = [{"SeriesNumber": k, "SeriesDescription": f"T{20 * k}"} for k in range(4)]
    shared, uids = exports.examination(Modality="CT"), [exports.generate_uid() for _ in headers]
    headers = [header | {"SeriesInstanceUID": uid} for header, uid in zip(headers, uids)]
    images = exports.one_series(volumes(), headers, shared=shared, AcquisitionTime="101010")
    assert_aligned(read_series(exports.save(images, tmp_path)), volumes())
    copies = renumbered(images[SIZE[2] : 2 * SIZE[2]], SeriesNumber=9, SeriesDescription="T20 again")
    refused(exports.save(copies, tmp_path, seed=1), "expected other voxels", "1 'T20' and 9 'T20 again'")


@pytest.mark.parametrize(
    ("pause_s", "names", "warned"), [(1800, "dyn", True), (200, "dyn", False), (1800, "ab", False)]
)
def test_runs_of_one_protocol_are_a_warning(tmp_path, pause_s, names, warned):
    shared, images = exports.examination(), []
    data = volumes(8)
    for k, volume in enumerate(data):
        start = exports.clock(k % 4 * 60 + k // 4 * pause_s)
        name = names if names == "dyn" else f"{names[k // 4]} {k % 4}"
        header = {"SeriesDescription": name, "SeriesNumber": k + 1, "AcquisitionTime": start}
        images += exports.classic(shared, volume, AFFINE, **header)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert ["2 times 4 with equal descriptions and 27 min" in line for line in series.warnings] == [True] * warned
