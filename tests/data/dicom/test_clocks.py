"""Dates, times and time zones in the headers of images."""

import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, SIZE, assert_aligned, dynamic, one_series, volumes  # noqa: E402

from groupmorph_monai.data.dicom import write_dicom  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402


def test_the_acquisition_time_of_an_image_comes_before_the_date_and_time_of_the_series(tmp_path):
    images = exports.siemens(volumes(), AFFINE, AcquisitionDateTime="20250301101500")
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes())
    assert series.times_s == exports.TIMES_S


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("name", ["AcquisitionTime", "AcquisitionDateTime"])
def test_times_with_a_decimal_comma_are_read_and_corrected_in_results(tmp_path, name):
    clocks = [exports.clock(t).replace(".", ",") for t in exports.TIMES_S]
    headers = [{name: "20250301" * (name == "AcquisitionDateTime") + clock} for clock in clocks]
    series = read_series(exports.save(one_series(volumes(), headers), tmp_path / "in"))
    assert_aligned(series, volumes())
    assert series.times_s == exports.TIMES_S
    write_dicom(series, volumes(), 0, tmp_path / "out")
    assert pydicom.dcmread(tmp_path / "out" / "01_0000.dcm").AcquisitionTime == exports.clock(exports.TIMES_S[1])


@pytest.mark.parametrize(
    ("study", "dates"),
    [
        ({}, [{"AcquisitionDate": "20250301"}, {"AcquisitionDate": "20250302"}]),
        # The date does not change, or there is none.
        ({"StudyTime": "233000"}, 2 * [{}]),
        ({"StudyTime": "233000"}, 2 * [{"AcquisitionDate": "20250301"}]),
        ({"StudyTime": "233000"}, 2 * [{"StudyDate": ""}]),
        # The time of the study is missing, and the date of the series.
        ({"StudyTime": "", "SeriesTime": "233000"}, 2 * [{}]),
        # So are all dates, and all times but the acquisition's.
        ({"StudyTime": "", "StudyDate": ""}, 2 * [{}]),
    ],
    ids=str,
)
def test_a_scan_over_midnight_keeps_its_order(tmp_path, study, dates):
    data = volumes(2)
    headers = [{"AcquisitionTime": clock, **date} for clock, date in zip(("235950", "000010"), dates)]
    images = one_series(data, headers, shared=exports.examination(**study))
    series = read_series(exports.save(images, tmp_path))
    assert series.times_s == (0, 20)
    assert_aligned(series, data)


@pytest.mark.parametrize("study", ["200000", "195959", "235959", "064500", ""])
@pytest.mark.parametrize("date", ["20250301", None])
def test_a_study_registered_after_the_scan_does_not_change_its_order(tmp_path, study, date):
    """Some scans are more than 12 hours earlier, others less."""
    headers = [{"AcquisitionTime": time, "AcquisitionDate": date} for time in ("070000", "075900", "080100", "120500")]
    images = one_series(volumes(), headers, shared=exports.examination(StudyTime=study))
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes())
    assert series.times_s == (0, 3540, 3660, 18300)


def test_a_late_scan_is_not_before_an_early_one_on_the_day_of_the_study(tmp_path):
    images = one_series(
        volumes(2),
        [{"AcquisitionTime": time, "AcquisitionDate": "20250301"} for time in ("070000", "200000")],
        shared=exports.examination(StudyTime="064500"),
    )
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes(2))
    assert series.times_s == (0, 46800)


@pytest.mark.parametrize("starts", [{"StudyTime": "233000"}, {"StudyTime": "", "SeriesTime": "235945"}])
def test_series_after_midnight_follow_those_before(tmp_path, starts):
    """The last one has a date of its own, which is right."""
    images = exports.siemens(volumes(3), AFFINE, **starts)
    for number, image in enumerate(images):
        k = number // SIZE[2]
        image.AcquisitionTime = ("235950", "000010", "000030")[k]
        image.AcquisitionDate = ("20250301", "20250301", "20250302")[k]
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes(3))
    assert series.times_s == (0, 20, 40)


def test_clocks_go_back_during_the_scan(tmp_path):
    """At the end of daylight saving time."""
    moments = ("20251026025930+0200", "20251026020000+0100", "20251026020030+0100")
    images = one_series(volumes(3), [{"AcquisitionDateTime": moment} for moment in moments])
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes(3))
    assert series.times_s == (0, 30, 60) and series.warnings == ()


WALL_CLOCKS = {
    "back": ("20251026", ("024500", "025930", "020030", "021500"), "step back by 59 min"),
    "forward": ("20260329", ("014500", "015930", "030030", "031500"), "skip an hour, 61 min"),
    "by day": ("20251026", ("124500", "125930", "120030", "121500"), ""),
    "pause": ("20260328", ("014500", "015930", "030030", "031500"), ""),
    "neither": ("20251026", ("010000", "013000", "020030", "023000"), ""),
}


@pytest.mark.parametrize("one_series", [True, False])
@pytest.mark.parametrize("change", WALL_CLOCKS)
@pytest.mark.parametrize("zone", [None, "+0200"])
def test_a_wall_clock_that_changes_during_the_scan_is_a_warning(tmp_path, change, one_series, zone):
    """The header has no time zone, or one that does not change."""
    date, times, warned = WALL_CLOCKS[change]
    images = dynamic() if one_series else exports.siemens(volumes(), AFFINE)
    for number, image in enumerate(images):
        image.AcquisitionDate, image.AcquisitionTime, image.TimezoneOffsetFromUTC = date, times[number // SIZE[2]], zone
    series = read_series(exports.save(images, tmp_path))
    assert [warned in warning for warning in series.warnings] == [True] * bool(warned)


def test_times_that_a_number_confirms_are_no_change_of_the_clock(tmp_path):
    images = exports.siemens(volumes(), AFFINE)
    for number, image in enumerate(images):
        k = number // SIZE[2]
        image.AcquisitionDate, image.AcquisitionTime = "20251026", ("020030", "021500", "024500", "025930")[k]
        image.SeriesNumber, image.TemporalPositionIdentifier = (9, 10, 7, 8)[k], k + 1
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes())
    assert series.warnings == ()


@pytest.mark.parametrize(
    "headers",
    [
        # Daylight saving time ends during the scan.
        [
            {"AcquisitionDate": "20251026", "AcquisitionTime": time, "TimezoneOffsetFromUTC": zone}
            for time, zone in (("025930", "+0200"), ("020000", "+0100"), ("020030", "+0100"))
        ],
        # A suffix has priority over the zone of the image.
        [
            {"AcquisitionDateTime": moment, "TimezoneOffsetFromUTC": "-0500"}
            for moment in ("20250301235930", "20250302050000+0000", "20250302053030+0030")
        ],
        # One program wrote the zone, another did not.
        [{"AcquisitionDateTime": f"202503011000{k}0{zone}"} for k, zone in ((0, "+0200"), (3, ""))]
        + [{"AcquisitionTime": "100100", "AcquisitionDate": "20250301"}],
        # A zone that exists in no country is ignored.
        [{"AcquisitionDateTime": f"20250301100{k}", "TimezoneOffsetFromUTC": "UTC"} for k in ("000", "030", "100")],
    ],
    ids=["dates and times", "suffix", "mixed", "invalid"],
)
def test_time_zones_of_images_and_of_moments(tmp_path, headers):
    series = read_series(exports.save(one_series(volumes(3), headers), tmp_path))
    assert_aligned(series, volumes(3))
    assert series.times_s == (0, 30, 60)


@pytest.mark.parametrize("zones", [("+0000", "", ""), ("+0200", "+0100", "")])
def test_moments_that_may_be_in_another_zone_are_not_compared(tmp_path, zones):
    """Archives convert times to UTC; the order follows the acquisition numbers."""
    headers = [
        {"AcquisitionDateTime": f"202503011000{30 - 10 * k}{zone}", "AcquisitionNumber": k + 1}
        for k, zone in enumerate(zones)
    ]
    series = read_series(exports.save(one_series(volumes(3), headers), tmp_path))
    assert_aligned(series, volumes(3))
    assert series.times_s is None


@pytest.mark.parametrize("zones", [["+0000"], ["+0200"], ["+0200", "+0100"]])
def test_time_zones_of_other_images_are_no_reason_to_lose_the_times(tmp_path, zones):
    """A workstation adds them to the maps that it computes."""
    shared = exports.examination()
    headers = [{"AcquisitionTime": exports.clock(30 * k)} for k in range(3)]
    images = one_series(volumes(3), headers, shared=shared)
    for zone in zones:
        header = {
            "ImageType": ["DERIVED", "SECONDARY"],
            "AcquisitionTime": exports.clock(0),
            "TimezoneOffsetFromUTC": zone,
        }
        images += exports.classic(shared, volumes(1)[0], exports.AFFINE, SeriesDescription="map", **header)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes(3))
    assert series.times_s == (0, 30, 60)


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_times_with_more_digits_than_allowed(tmp_path):
    images = one_series(volumes(3), [{"AcquisitionTime": time} for time in ("101010.", "101020.1234567", "101030")])
    assert read_series(exports.save(images, tmp_path)).times_s == (0, 10.123456, 20)


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.parametrize("time", ["unknown", "1\\2"])
def test_an_invalid_time_is_not_midnight(tmp_path, time):
    images = dynamic()
    images[9].add_new("AcquisitionTime", "TM", time)
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, volumes())
    assert series.times_s is None
