"""Times and order of NIfTI series from the sidecars of dcm2niix and BIDS."""

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest

from groupmorph_monai.data.reading.readers import read_series
from groupmorph_monai.data.reading.sidecars import even_step, sidecar, times_of_files, times_of_volumes
from groupmorph_monai.errors import InputError

SIZE = (8, 9, 7)


def scan(path, sidecar=None, volumes=None, value=0, frame_time=None):
    """Write an image of noise around ``value``, 4D with ``volumes``, and its JSON sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = SIZE if volumes is None else (*SIZE, volumes)
    image = nibabel.Nifti1Image(
        (np.random.default_rng(0).normal(size=shape) + 10 * value).astype(np.float32), np.eye(4)
    )
    if frame_time is not None:
        image.header.set_zooms((1, 1, 1, frame_time))
        image.header.set_xyzt_units("mm", "msec")
    nibabel.save(image, path)
    if sidecar is not None:
        path.with_name(path.name.split(".")[0] + ".json").write_text(json.dumps(sidecar), encoding="utf-8")
    return path


def levels(series):
    return [round(float(frame.data.mean()) / 10) for frame in series.frames]


@pytest.mark.parametrize(
    ("sidecars", "times"),
    [
        # Formats of dcm2niix: hours and seconds without a leading zero, and microseconds.
        ([{"AcquisitionTime": t} for t in ("9:59:58.500000", "10:00:08.500000", "10:00:20.250000")], (0, 10, 21.75)),
        ([{"AcquisitionDateTime": f"2025-03-0{d}T{t}"} for d, t in ((1, "23:59:50"), (2, "00:00:10"), (2, "00:00:40"))],
         (0, 20, 50)),
        ([{"AcquisitionTime": t} for t in ("12:29:58.102500", "12:30:2.285000", "12:31:0.5")], (0, 4.1825, 62.3975)),
        ([{"AcquisitionDateTime": f"2025-03-01T{t}"} for t in ("09:59:50.5", "10:00:2.5", "10:0:7")], (0, 12, 16.5)),
        ([{"AcquisitionDateTime": f"2025-10-26T{t}"} for t in ("02:59:30+02:00", "02:00:00+01:00")], (0, 30)),
        ([{"TriggerDelayTime": t} for t in (0, 350, 700.5)], (0, 0.35, 0.7005)),
        # All cardiac phases have one acquisition time.
        ([{"AcquisitionTime": t} for t in ("23:59:50", "0:00:10", "00:01:00")], (0, 20, 70)),
        ([{"AcquisitionTime": "10:00:00", "TriggerDelayTime": t} for t in (10, 60, 110)], (0, 0.05, 0.1)),
        ([{"FrameTimesStart": [t]} for t in (0, 15, 45)], (0, 15, 45)),
        ([{}, {"AcquisitionTime": "10:00:00"}, {}], None),
        ([{"AcquisitionTime": "10:00:00"}] * 3, None),
        ([{"AcquisitionTime": t} for t in ("noon", "10:00:00", "11:00:00")], None),
    ],
)  # fmt: skip
def test_times_of_3d_files(tmp_path, sidecars, times, caplog):
    files = [scan(tmp_path / f"t{k}.nii.gz", sidecar, value=k) for k, sidecar in enumerate(sidecars)]
    expected = None if times is None else pytest.approx(times)
    caplog.clear()
    assert times_of_files([sidecar(file) for file in files]) == expected and read_series(files).times_s == expected
    partly = times is None and len({json.dumps(sidecar) for sidecar in sidecars}) > 1
    assert ("states no acquisition time, so all times are ignored" in caplog.text) == partly


def test_a_folder_is_read_in_the_order_of_its_times_and_a_list_as_given(tmp_path):
    clocks = {"a": "10:05:00", "b": "10:01:00", "c": "10:02:00"}
    files = [
        scan(tmp_path / f"{name}.nii", {"AcquisitionTime": clock, "SeriesDescription": "dyn"}, value=k)
        for k, (name, clock) in enumerate(clocks.items())
    ]
    series = read_series(tmp_path)
    assert levels(series) == [1, 2, 0] and series.times_s == (0, 60, 240) and series.description == "dyn"
    assert levels(read_series(files)) == [0, 1, 2] and read_series(files).times_s == (0, -240, -180)


@pytest.mark.parametrize(
    ("sidecar", "frame_time", "times"),
    [
        ({"FrameTimesStart": [0, 10, 30]}, None, (0, 10, 30)),
        ({"VolumeTiming": [5, 8, 12]}, None, (0, 3, 7)),
        ({"RepetitionTime": 2.5}, None, (0, 2.5, 5)),
        ({"RepetitionTime": 0.004, "MRAcquisitionType": "3D"}, None, None),
        ({"RepetitionTime": 0.004, "MRAcquisitionType": "3D"}, 8000, (0, 8, 16)),
        ({"RepetitionTime": 0.004, "MRAcquisitionType": "3D"}, 4, None),
        ({"RepetitionTime": 4, "MRAcquisitionType": "3D"}, 4000, (0, 4, 8)),
        ({"FrameTimesStart": [0, 10]}, 5000, (0, 5, 10)),
        ({"FrameTimesStart": [0, 10, 30]}, 10000, (0, 10, 30)),
        ({"FrameTimesStart": [0, 10, 10]}, None, None),
        ({"FrameTimesStart": [0, 10, float("inf")]}, None, None),
        ({"RepetitionTime": float("inf")}, None, None),
        ({"RepetitionTime": 10**400}, None, None),
        ([1, 2], 5000, (0, 5, 10)),
        (None, None, None),
    ],
)
def test_times_of_a_4d_file(tmp_path, sidecar, frame_time, times):
    path = scan(tmp_path / "dyn.nii.gz", sidecar, volumes=3, frame_time=frame_time or 0)
    series = read_series(path)
    assert series.times_s == (None if times is None else pytest.approx(times))
    # Another frame time would be written with the aligned series.
    assert series.frame_time == (frame_time if times and times[2] == 2 * times[1] else None)


def test_scans_out_of_order_or_of_two_patients_are_named(tmp_path):
    def warnings(order, patients=("A", "A", "A")):
        files = [
            scan(tmp_path / f"t{k}.nii.gz", {"AcquisitionTime": f"10:0{k}:00", "PatientID": patients[k]}, value=k)
            for k in order
        ]
        return read_series(files).warnings

    assert warnings((0, 1, 2)) == ()
    (late,) = warnings((0, 2, 1))
    assert "t1.nii.gz: expected a scan after" in late and "t2.nii.gz, got an acquisition 60 s earlier" in late
    assert warnings((0, 1, 2), ("A", "A ", "")) == ()
    (other,) = warnings((0, 1, 2), ("A", "A", "B"))
    assert "t2.nii.gz: expected the patient of" in other and "t1.nii.gz, 'A', got 'B'" in other


@pytest.mark.parametrize(
    "sidecars",
    [
        [{"TriggerDelayTime": t} for t in (600, 700, 0, 100)],
        [{"AcquisitionTime": f"10:00:0{t}"} for t in (2, 4, 1)],
    ],
)
def test_phases_may_be_listed_from_any_time_of_the_cycle(tmp_path, sidecars):
    files = [scan(tmp_path / f"t{k}.nii.gz", content, value=k) for k, content in enumerate(sidecars)]
    assert read_series(files).warnings == ()


def test_dates_and_times_of_day_are_not_mixed(tmp_path):
    moments = [{"AcquisitionDateTime": "2025-03-01T10:00:00"}, {"AcquisitionTime": "10:01:00"}]
    files = [scan(tmp_path / f"t{k}.nii.gz", content) for k, content in enumerate(moments)]
    assert times_of_files([sidecar(file) for file in files]) is None


def test_a_frame_time_of_1_without_a_unit_is_none(tmp_path):
    image = nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(6, 5, 4, 3)).astype(np.float32), np.eye(4))
    nibabel.save(image, tmp_path / "plain.nii.gz")
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, tmp_path / "seconds.nii.gz")
    assert read_series(tmp_path / "plain.nii.gz").times_s is None
    assert read_series(tmp_path / "seconds.nii.gz").times_s == (0, 1, 2)


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100000, '{"RepetitionTime": ' + "9" * 5000 + "}"])
def test_a_damaged_sidecar_is_left_aside(content, tmp_path, caplog):
    path = scan(tmp_path / "dyn.nii.gz", volumes=3)
    (tmp_path / "dyn.json").write_text(content, encoding="utf-8")
    assert times_of_volumes(path, sidecar(path), 3) is None and "dyn.json" in caplog.text


def test_a_damaged_sidecar_is_named_once(tmp_path, caplog):
    files = [scan(tmp_path / f"t{k}.nii.gz", {"AcquisitionTime": f"10:00:0{k}"}) for k in range(3)]
    (tmp_path / "t1.json").write_text("{", encoding="utf-8")
    read_series(files)
    assert sum("t1.json: ignored" in record.getMessage() for record in caplog.records) == 1


def test_even_steps():
    assert even_step((0, 10.01, 20)) == 10 and even_step((0, 10, 21)) is None
    assert even_step((0,)) is None and even_step(None) is None and even_step((0, -1, -2)) is None


def test_a_bids_data_set_of_one_4d_series(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}", encoding="utf-8")
    scan(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    path = scan(tmp_path / "sub-01" / "perf" / "sub-01_dce.nii.gz", {"FrameTimesStart": [0, 9, 18]}, volumes=3)
    scan(tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    scan(tmp_path / "derivatives" / "x" / "sub-01_dce.nii.gz", volumes=3)
    series = read_series(tmp_path)
    assert series.frames[0].path == str(path) and series.times_s == (0, 9, 18)


def test_3d_runs_and_sessions_of_a_bids_data_set_make_a_series(tmp_path):
    for k, session in enumerate((2, 10, 1)):
        clock = {"AcquisitionDateTime": f"2025-03-{session:02d}T10:00:00"}
        scan(tmp_path / "sub-01" / f"ses-{session}" / "anat" / f"sub-01_ses-{session}_T1w.nii.gz", clock, value=k)
    series = read_series(tmp_path)
    assert levels(series) == [2, 0, 1] and series.times_s == (0, 86400, 9 * 86400)


def test_several_series_of_a_bids_data_set_are_not_guessed(tmp_path):
    for kind in ("bold", "dce"):
        scan(tmp_path / "sub-01" / kind / f"sub-01_{kind}.nii.gz", {"SeriesDescription": f"my {kind}"}, volumes=3)
    with pytest.raises(InputError, match=r"one series, got 2: .*--series-description"):
        read_series(tmp_path)
    for pattern in ("*_dce*", "my dce", "DCE"):
        assert read_series(tmp_path, description=pattern).frames[0].path.endswith("sub-01_dce.nii.gz")
    with pytest.raises(InputError, match="named 't2'.*found none"):
        read_series(tmp_path, description="t2")


def test_single_files_of_a_bids_data_set_are_refused(tmp_path):
    scan(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    scan(tmp_path / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    with pytest.raises(InputError, match="2 single files; list the scans"):
        read_series(tmp_path)


def test_a_side_car_is_utf_8_whatever_the_locale(tmp_path):
    scan(tmp_path / "dyn.nii.gz", {})
    (tmp_path / "dyn.json").write_bytes('{"SeriesDescription": "Körper"}'.encode())
    code = "import sys; from groupmorph_monai.data.reading.sidecars import sidecar; print(ascii(sidecar(sys.argv[1])))"
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code, str(tmp_path / "dyn.nii.gz")]
    printed = subprocess.run(command, env=ascii_only, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == ascii({"SeriesDescription": "Körper"})


def test_a_side_car_that_is_a_device_is_not_read(tmp_path, caplog):
    file = scan(tmp_path / "t0.nii.gz")
    (tmp_path / "t0.json").symlink_to(os.devnull)
    assert sidecar(file) == {} and "a pipe or device" in caplog.text


def test_times_of_volumes_in_disorder_are_ignored_with_a_warning(tmp_path, caplog):
    file = scan(tmp_path / "t0.nii.gz", {"VolumeTiming": [0, 20, 10]}, volumes=3)
    assert times_of_volumes(file, sidecar(file), 3, 5.0) == (0, 5, 10)
    assert "VolumeTiming is ignored, as it is not 3 ascending times" in caplog.text
