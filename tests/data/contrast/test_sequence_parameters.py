"""Parameters of the sequence from real and made headers: DICOM and the sidecars of dcm2niix."""

import numpy as np
import pytest
from json_files import write_json

pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402

from groupmorph_monai.apps.settings import SETTINGS  # noqa: E402
from groupmorph_monai.data.contrast.sequence_parameters import LARGEST, sequence_parameter  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402
from groupmorph_monai.data.series import Frame, Series  # noqa: E402
from groupmorph_monai.errors import InputError  # noqa: E402

TIMES_S = (0.0, 60.0, 120.0)


def niftis(folder, contents):
    """Write a series with one sidecar per scan, or a single file if one content is given."""
    names = [folder / f"t{k if len(contents) > 1 else 0}.nii.gz" for k in range(3)]
    for name, content in zip(names, contents):
        write_json(name.with_name(name.name.removesuffix(".nii.gz") + ".json"), content)
    return Series(tuple(Frame(np.zeros((2, 2, 2)), np.eye(4), str(name)) for name in names), times_s=TIMES_S)


@pytest.mark.parametrize(
    "content, name, value, key",
    [
        ({"RepetitionTime": 0.0041, "FlipAngle": 10}, "repetition_time_s", 0.0041, "RepetitionTime"),
        ({"RepetitionTime": 0.0041, "FlipAngle": 10}, "flip_angle_deg", 10, "FlipAngle"),
        ({"RepetitionTimeExcitation": 0.004, "RepetitionTime": 1.8}, "repetition_time_s", 0.004,
         "RepetitionTimeExcitation"),
        ({"MagneticFieldStrength": 1.5}, "field_strength_t", 1.5, "MagneticFieldStrength"),
        ({"RepetitionTime": 60.0}, "repetition_time_s", None, None),  # from volume to volume
        ({"RepetitionTime": 0}, "repetition_time_s", None, None),
        ({"FlipAngle": "12"}, "flip_angle_deg", None, None),
        ({}, "flip_angle_deg", None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("files", [1, 3])
def test_side_cars(tmp_path, content, name, value, key, files):
    actual = sequence_parameter(niftis(tmp_path, [content] * files), name)
    assert actual == (None if value is None else (value, f"sidecar of t0.nii.gz, {key}"))


def test_scans_that_differ_are_refused(tmp_path):
    series = niftis(tmp_path, [{"FlipAngle": angle} for angle in (2, 5, 12)])
    with pytest.raises(InputError, match="the same flip_angle_deg in all scans, got 2, 5, 12; omit those"):
        sequence_parameter(series, "flip_angle_deg")
    close = niftis(tmp_path, [{"RepetitionTime": seconds} for seconds in (0.00410, 0.00412, 0.00409)])
    assert sequence_parameter(close, "repetition_time_s")[0] == 0.0041


@pytest.mark.parametrize(
    "content, name, words",
    [
        ({"FlipAngle": 720}, "flip_angle_deg", "up to 180 in the sidecar of t0.nii.gz, FlipAngle, got 720"),
        ({"FlipAngle": 10**400}, "flip_angle_deg", "up to 180"),
        ({"RepetitionTimeExcitation": 4}, "repetition_time_s", "up to 1 in .*, got 4"),
        ({"MagneticFieldStrength": 15000}, "field_strength_t", "up to 20 in .* --set kinetics_t10_s"),
    ],
)
def test_values_beyond_any_scanner_are_refused(tmp_path, content, name, words):
    with pytest.raises(InputError, match=words):
        sequence_parameter(niftis(tmp_path, [content] * 3), name)


def test_settings_have_the_same_limits_as_headers():
    for name in ("repetition_time_s", "flip_angle_deg"):
        assert SETTINGS[f"kinetics_{name}"].accepts(LARGEST[name])
        assert not SETTINGS[f"kinetics_{name}"].accepts(1.01 * LARGEST[name])


@pytest.mark.parametrize("vendor", ["siemens", "ge", "philips", "enhanced"])
def test_dicom_headers_of_the_vendors(tmp_path, vendor):
    volumes = np.random.default_rng(0).integers(1, 1000, (3, 6, 5, 4)).astype(np.uint16)
    series = read_series(exports.save(getattr(exports, vendor)(volumes, np.diag([1.0, 1, 2, 1])), tmp_path))
    time_s, source = sequence_parameter(series, "repetition_time_s")
    angle, _ = sequence_parameter(series, "flip_angle_deg")
    assert (time_s, angle) == (pytest.approx(0.0042), pytest.approx(10)) and source == "DICOM header, RepetitionTime"
