"""Order and times of the volumes of a series, from any of the attributes that determine them."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, assert_aligned, dynamic, one_series, volumes  # noqa: E402

from groupmorph_monai.data.reading.readers import read_series  # noqa: E402


def test_frames_without_times_keep_their_order(tmp_path):
    image = exports.enhanced(volumes(), AFFINE)[0]
    for group in image.PerFrameFunctionalGroupsSequence:
        del group.FrameContentSequence
    positions = [
        group.PlanePositionSequence[0].ImagePositionPatient for group in image.PerFrameFunctionalGroupsSequence
    ]
    place = [k for k, position in enumerate(positions) if position == positions[0]]
    series = read_series(exports.save([image], tmp_path))
    assert series.times_s is None
    frames = np.frombuffer(image.PixelData, "<u2").reshape(-1, SIZE[1], SIZE[0])
    for frame, number in zip(series.frames, place, strict=True):
        assert any(np.array_equal(frame.data[..., k], 2.0 * frames[number].T - 5) for k in range(SIZE[2]))


def test_frames_without_times_are_ordered_by_their_dimension_indices(tmp_path):
    image = exports.enhanced(volumes(), AFFINE)[0]
    for group in image.PerFrameFunctionalGroupsSequence:
        content = group.FrameContentSequence[0]
        content.DimensionIndexValues = [1, content.InStackPositionNumber, content.TemporalPositionIndex]
        del content.FrameAcquisitionDateTime, content.TemporalPositionIndex
    series = read_series(exports.save([image], tmp_path))
    for frame, volume in zip(series.frames, volumes(), strict=True):
        np.testing.assert_array_equal(frame.data, 2.0 * volume - 5)


def test_consecutive_series_whose_times_overlap_by_rounding_are_ordered_by_them(tmp_path):
    images = exports.siemens(volumes(), AFFINE)
    for number, image in enumerate(images):
        k, s = divmod(number, SIZE[2])
        image.AcquisitionTime = exports.clock((SIZE[2] - 1) * k + s + 0.01 * (s == SIZE[2] - 1))
        image.SeriesNumber = 20 - k
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes())
    np.testing.assert_allclose(series.times_s, [0, 6, 12, 18], atol=1e-4)


@pytest.mark.parametrize(
    "attributes",
    [
        {"AcquisitionTime": exports.clock},
        {"TriggerTime": lambda s: str(1000 * s)},
        {"ContentTime": exports.clock},
        {"TemporalPositionIdentifier": lambda s: int(s) + 1, "TemporalResolution": lambda s: "1000"},
        {"FrameReferenceTime": lambda s: str(1000 * s)},
    ],
    ids=lambda a: next(iter(a)),
)
def test_any_one_attribute_tells_order_and_times(tmp_path, attributes):
    """Anonymised exports may lack all attributes but one."""
    data, seconds, shuffled = volumes(3), (0, 15, 40), [2, 0, 1]  # numbered in another order
    headers = [{name: value(seconds[k]) for name, value in attributes.items()} for k in shuffled]
    images = one_series(data[shuffled], headers, SeriesDescription="dyn")
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert series.times_s == (0, 15, 40) and series.frame_time is None


def test_without_times_instances_are_ordered_by_their_numbers(tmp_path):
    data = volumes(2)
    headers = [{"InstanceNumber": [2 * s + k + 1 for s in range(SIZE[2])]} for k in (1, 0)]
    series = read_series(exports.save(one_series(data[::-1], headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None and series.frame_time is None


def test_slices_acquired_one_after_the_other_make_one_volume(tmp_path):
    """Interleaved 2D: the last slice of a volume is acquired after the first slice of the next would be sorted."""
    data, slices = volumes(3), range(SIZE[2])
    times = [[exports.clock(2 * k + 0.25 * ((3 * s) % len(slices))) for s in slices] for k in range(3)]
    series = read_series(exports.save(one_series(data, [{"AcquisitionTime": t} for t in times]), tmp_path))
    assert_aligned(series, data)
    assert series.times_s == (0, 2, 4)


def test_whole_seconds_give_way_to_trigger_times_that_agree(tmp_path):
    times = zip(("102030", "102035", "102041"), ("0", "5300", "10600"))
    headers = [{"AcquisitionTime": clock, "TriggerTime": trigger} for clock, trigger in times]
    images = one_series(volumes(3), headers)
    assert read_series(exports.save(images, tmp_path)).times_s == (0, 5.3, 10.6)


@pytest.mark.parametrize("rising", [True, False])
def test_an_order_that_contradicts_the_times_of_most_scans_is_a_warning(tmp_path, rising):
    """One scan has no acquisition time."""
    data, numbers = volumes(), range(4) if rising else (3, 2, 1, 0)
    images = exports.siemens(data, AFFINE, ContentTime=None)
    for number, image in enumerate(images):
        image.SeriesNumber = 5 + numbers[number // SIZE[2]]
        if number // SIZE[2] == 1:
            del image.AcquisitionTime, image.AcquisitionDate
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data[list(numbers)])
    assert ["1 of 4 scans have no acquisition time" in line for line in series.warnings] == [True] * (not rising)


def test_series_are_not_ordered_by_numbers_that_each_of_them_counts(tmp_path):
    data, shared, images = volumes(), exports.examination(), []
    for volume, number, series_number in zip(data, (3, 1, 2, 5), (2, 9, 10, 11)):
        images += exports.classic(shared, volume, AFFINE, AcquisitionNumber=number, SeriesNumber=series_number)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None


def test_trigger_times_count_from_the_start_of_their_series(tmp_path):
    """The scan before the contrast agent is a separate series, 300 s before the dynamic one."""
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


@pytest.mark.parametrize("times", ["interleaved", "equal"])
@pytest.mark.parametrize("numbers", [(304, 301, 303, 302), (1, 1, 1, 1)])
@pytest.mark.parametrize("phases", [("0.0", "20.0", "90.0", "100.0"), ("0,9", "20,5", "90,3", "100,1")])
def test_phases_are_in_the_order_of_their_percentages(tmp_path, times, numbers, phases):
    """Series numbers are equal or those of the reconstruction, as are the series times."""
    shared, data, images = exports.examination(Modality="CT"), volumes(), []
    for k, (volume, number) in enumerate(zip(data, numbers)):
        starts = [exports.clock(2 * s + 0.1 * (3 * k % 4)) for s in range(SIZE[2])]
        attributes = {"SeriesNumber": number, "AcquisitionTime": starts if times == "interleaved" else "101010"}
        attributes |= {"SeriesTime": exports.clock(60 * (3 * k % 4))}
        attributes |= {"SeriesDescription": f"iDose 30% Gated, {phases[k]}%"}
        images += exports.classic(shared, volume, AFFINE, exports.CT, **attributes)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None


@pytest.mark.parametrize("label", ["TemporalPositionIdentifier", "AcquisitionNumber"])
def test_delays_that_vary_by_chance_do_not_mix_volumes(tmp_path, label):
    """Triggered perfusion without acquisition times."""
    rng, data = np.random.default_rng(4), volumes()
    headers = [
        {label: k + 1, "TriggerTime": [f"{delay:.1f}" for delay in rng.uniform(0, 800, SIZE[2])]}
        | {"ContentTime": exports.clock(exports.TIMES_S[k])}
        for k in range(len(data))
    ]
    series = read_series(exports.save(exports.one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s == exports.TIMES_S


@pytest.mark.parametrize("slices_first", [True, False])
def test_trigger_times_without_meaning_give_way_to_instance_numbers(tmp_path, slices_first):
    rng, data, headers = np.random.default_rng(4), volumes(), []
    for k in range(len(data)):
        numbers = [k * SIZE[2] + s + 1 if slices_first else s * len(data) + k + 1 for s in range(SIZE[2])]
        triggers = [f"{trigger:.1f}" for trigger in rng.uniform(0, 800, SIZE[2])]
        headers.append({"InstanceNumber": numbers, "TriggerTime": triggers, "AcquisitionTime": "101010"})
    series = read_series(exports.save(one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None


def test_trigger_times_of_phases_are_not_given_up_for_instance_numbers_without_meaning(tmp_path):
    rng, data = np.random.default_rng(4), volumes()
    numbers = rng.permutation(data.shape[0] * SIZE[2]).reshape(-1, SIZE[2])
    headers = [{"InstanceNumber": row.tolist(), "TriggerTime": str(40 * k)} for k, row in enumerate(numbers)]
    series = read_series(exports.save(one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s == (0, 0.04, 0.08, 0.12)


def test_trigger_times_of_cycles_of_different_lengths_are_not_given_up_for_numbers_without_meaning(tmp_path):
    rng, data = np.random.default_rng(4), volumes()
    numbers = rng.permutation(data.shape[0] * SIZE[2]).reshape(-1, SIZE[2])
    cycles_ms = np.linspace(800, 1200, SIZE[2])
    headers = [
        {
            "InstanceNumber": row.tolist(),
            "TriggerTime": [f"{k / len(data) * cycle:.1f}" for cycle in cycles_ms],
            "AcquisitionTime": "101010",
        }
        for k, row in enumerate(numbers)
    ]
    assert_aligned(read_series(exports.save(one_series(data, headers), tmp_path)), data)


@pytest.mark.parametrize("attribute", ["AcquisitionTime", "ContentTime"])
@pytest.mark.parametrize("number", ["InstanceNumber", "TemporalPositionIdentifier"])
def test_times_that_vary_by_chance_do_not_mix_volumes_that_are_numbered(attribute, number, tmp_path):
    """As in images that were reconstructed or exported in parallel."""
    rng, data, headers = np.random.default_rng(2), volumes(), []
    for k in range(len(data)):
        numbers = [k * SIZE[2] + s + 1 for s in range(SIZE[2])] if number == "InstanceNumber" else k + 1
        clocks = [exports.clock(0.2 * k + value) for value in rng.uniform(0, 1.2, SIZE[2])]
        headers.append({"AcquisitionTime": "102000", number: numbers, attribute: clocks})
    series = read_series(exports.save(one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None


@pytest.mark.parametrize("contradicted", [False, True])
def test_instance_numbers_that_contradict_content_times_are_a_warning(contradicted, tmp_path):
    data, headers = volumes(), []
    for k in range(len(data)):
        first = (len(data) - k if contradicted else k) * SIZE[2]
        numbers = [first + s + 1 for s in range(SIZE[2])]
        headers.append({"AcquisitionTime": "102000", "ContentTime": exports.clock(20 * k), "InstanceNumber": numbers})
    series = read_series(exports.save(one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert any("which the instance numbers contradict" in warning for warning in series.warnings) == contradicted


def test_a_clock_that_is_set_during_the_scan_does_not_change_the_order(tmp_path):
    data, headers = volumes(), []
    for k, clock in enumerate((400, 402, 0, 2)):
        times = {"AcquisitionTime": exports.clock(clock), "TriggerTime": str(2000 * k)}
        headers.append({"TemporalPositionIdentifier": k + 1, **times})
    series = read_series(exports.save(one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s == (0, 2, 4, 6)


@pytest.mark.parametrize("one_series", [True, False])
def test_phases_of_one_acquisition_time_have_no_times_of_their_reconstruction(tmp_path, one_series):
    shared, data, headers = exports.examination(Modality="CT", SeriesDescription="4D"), volumes(), []
    for k in range(4):
        header = {"SeriesDescription": f"T{20 * k:02d}", "SeriesNumber": 300 + k, "ContentTime": exports.clock(-10 * k)}
        headers.append({"AcquisitionTime": "101010", **header, "SeriesInstanceUID": exports.generate_uid()})
    if one_series:
        headers = [
            {"AcquisitionTime": "101010", "AcquisitionNumber": k, "ContentTime": exports.clock(k)} for k in range(4)
        ]
    series = read_series(exports.save(exports.one_series(data, headers, shared=shared), tmp_path))
    assert_aligned(series, data)
    assert series.times_s is None


@pytest.mark.parametrize(
    "names", [("{}%", "MIP", "Ave-IP"), ("Gated {}%", "free breathing", ""), ("T{}0", "AVG", "MIP 2")]
)
def test_averages_and_free_breathing_are_no_phases(tmp_path, names, caplog):
    """They share image type, kernel and slices with the phases."""
    shared, data = exports.examination(Modality="CT"), volumes(6)
    descriptions = [*(names[0].format(25 * k) for k in range(4)), *names[1:]]
    headers = [
        {"SeriesNumber": 3 + k, "SeriesDescription": name, "SeriesInstanceUID": exports.generate_uid()}
        for k, name in enumerate(descriptions)
    ]
    images = exports.one_series(data, headers, shared=shared, AcquisitionTime="101010")
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, data[:4])
    assert "Not aligned" in caplog.text and names[1] in caplog.text
    assert ["no phase of the cycle" in warning for warning in series.warnings] == 2 * [True] * ("Gated" in names[0])


@pytest.mark.parametrize(
    "names",
    [
        ("pre", "arterial ASiR 30%", "venous ASiR 30%"),
        ("pre", "arterial ASiR-V 40%", "venous ASiR-V 50%"),
        ("pre", "arterial AIDR 3D 40 %", "venous iDose 50%"),
    ],
)
def test_percentages_of_a_reconstruction_are_no_phases(tmp_path, names):
    shared, data = exports.examination(Modality="CT"), volumes(3)
    headers = [
        {
            "SeriesDescription": name,
            "AcquisitionTime": exports.clock(60 * k),
            "SeriesInstanceUID": exports.generate_uid(),
        }
        for k, name in enumerate(names)
    ]
    series = read_series(exports.save(exports.one_series(data, headers, shared=shared), tmp_path))
    assert_aligned(series, data)
    assert not series.warnings


@pytest.mark.parametrize(
    ("attributes", "times_s"),
    [
        ({"NominalPercentageOfRespiratoryPhase": lambda k: 25.0 * k}, None),
        ({"NominalPercentageOfCardiacPhase": lambda k: 25.0 * k}, None),
        ({"ImageComments": lambda k: f"phase {25 * k} %"}, None),
        ({"TemporalPositionIdentifier": lambda k: k + 1}, None),
        ({"TriggerTime": lambda k: str(40 * k)}, (0, 0.04, 0.08, 0.12)),
    ],
    ids=lambda a: next(iter(a)) if isinstance(a, dict) else "",
)
def test_slices_of_a_gated_series_start_anywhere_in_the_cycle(tmp_path, attributes, times_s):
    """Each slice is acquired over a whole cycle: its images in the order of acquisition begin at another phase."""
    data, headers = volumes(), []
    for k in range(4):
        header = {name: value(k) for name, value in attributes.items()}
        acquired = [exports.clock(2 * s + 0.04 * ((k + s) % 4)) for s in range(SIZE[2])]
        headers.append({**header, "AcquisitionTime": acquired})
    series = read_series(exports.save(one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s == times_s


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("name", ["TriggerTime", "NominalPercentageOfCardiacPhase"])
def test_triggers_that_differ_by_chance_do_not_define_the_order(tmp_path, name, number):
    """In T1 mapping, slices are acquired one after the other, at about the same time after the trigger."""
    data, headers, rng = volumes(number), [], np.random.default_rng(3)
    for k in range(number):
        values = [round(50 + jitter, 2) for jitter in rng.uniform(0, 9, SIZE[2])]
        headers.append({"AcquisitionTime": [exports.clock(20 * s + k) for s in range(SIZE[2])], name: values})
    series = read_series(exports.save(one_series(data, headers), tmp_path))
    assert_aligned(series, data)
    assert series.times_s == tuple(range(number))


def test_percentages_of_something_else_do_not_define_the_order(tmp_path):
    images, shared = [], exports.examination()
    for k, volume in enumerate(volumes(3)):
        header = {"SeriesNumber": 5 + k, "SeriesDescription": f"T1 O2 {(0.5, 100, 21)[k]}%"}
        images += exports.classic(shared, volume, AFFINE, **header, ContentTime=exports.clock(100 * k))
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes(3))
    assert series.times_s == (0, 100, 200)
