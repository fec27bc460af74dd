"""Scans that were aborted or lack slices: read with a warning, and never left out in silence."""

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

import dicom_exports as exports  # noqa: E402
from dicom_exports import AFFINE, assert_aligned, dynamic, volumes  # noqa: E402

from groupmorph_monai.apps.command_line import main  # noqa: E402
from groupmorph_monai.data.reading.readers import read_series  # noqa: E402


@pytest.mark.parametrize(
    ("attributes", "slices", "words"),
    [
        ({}, slice(-1), "it has 6 slices instead of 7"),
        ({"RepetitionTime": "4.21", "EchoTime": "1.62"}, slice(None), "repetition time or echo time differ"),
        ({"PixelSpacing": [1.2, 1.2]}, slice(None), "its image type, matrix, voxels"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "NORM", "ND", "M"]}, slice(None), "its image type"),
        ({"ScanOptions": "FS"}, slice(None), "scan options"),
        ({"FlipAngle": "5"}, slice(None), ""),
        ({"ImageType": ["DERIVED", "SECONDARY", "SUB"]}, slice(-1), ""),
        ({"SeriesDescription": "dyn_1_SUB"}, slice(-1), ""),
    ],
)
def test_a_scan_that_may_be_a_timepoint_is_no_silent_loss(tmp_path, attributes, slices, words, caplog):
    shared, data, images = exports.examination(), volumes(), []
    for k, volume in enumerate(data):
        header = {"SeriesDescription": f"dyn_{k}", "SeriesNumber": 5 + k, "AcquisitionTime": exports.clock(60 * k)}
        scan = exports.classic(shared, volume, AFFINE, **(header | (attributes if k == 2 else {})))
        images += scan[slices] if k == 2 else scan
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, np.delete(data, 2, axis=0))
    if words:
        (warning,) = series.warnings
        assert warning.startswith("7 'dyn_2'") and words in warning and warning in caplog.text
        selected = read_series(tmp_path, description="dyn_*")
        assert len(selected.frames) == 4 and selected.times_s == (0, 60, 120, 180) and not selected.warnings
    else:
        assert not series.warnings


def test_a_scan_without_a_slice_in_its_middle_is_no_silent_loss(tmp_path):
    shared, data, images = exports.examination(), volumes(), []
    for k, volume in enumerate(data):
        header = {"SeriesDescription": f"dyn_{k}", "SeriesNumber": 5 + k, "AcquisitionTime": exports.clock(60 * k)}
        images += exports.classic(shared, volume, AFFINE, **header)
    del images[2 * 7 + 3]
    series = read_series(exports.save(images, tmp_path))
    assert_aligned(series, np.delete(data, 2, axis=0))
    assert ["it has 6 slices instead of 7" in warning for warning in series.warnings] == [True]


@pytest.mark.parametrize("kept", [slice(21, 26), slice(21, 28, 2), slice(22, 28, 3), slice(21, 22), slice(25, 26)])
def test_the_volume_during_which_a_scan_was_aborted_is_left_out_with_a_warning(tmp_path, kept):
    images = dynamic()
    series = read_series(exports.save(images[:21] + images[kept], tmp_path))
    assert_aligned(series, volumes()[:3])
    assert series.times_s == exports.TIMES_S[:3]
    number = len(images[kept])
    words = "1 slice" if number == 1 else f"{number} slices"
    assert [f"it has {words} instead of 7" in warning for warning in series.warnings] == [True]


@pytest.mark.parametrize("description", [None, "dyn"])
@pytest.mark.parametrize("size", [200, 700])
def test_a_damaged_file_of_the_last_volume_is_named(tmp_path, description, size):
    files = [exports.write(image, tmp_path / f"{n}.dcm") for n, image in enumerate(dynamic())]
    files[27].write_bytes(files[27].read_bytes()[:size])
    series = read_series(tmp_path, description=description)
    words = f"6 slices instead of 7 ({files[27]} cannot be read: "
    assert [words in warning and "aborted" not in warning for warning in series.warnings] == [True]


def test_an_aborted_volume_that_is_selected_is_aligned_with_a_warning(tmp_path):
    series = read_series(exports.save(dynamic()[:26], tmp_path), description="dyn")
    assert len(series.frames) == 4 and series.frames[3].data.shape[2] == 5
    assert ["the last timepoint has 5 slices instead of 7" in warning for warning in series.warnings] == [True]


def test_the_list_names_what_is_missing(tmp_path, capsys):
    images = dynamic()
    assert main(["register", str(exports.save(images[:9] + images[10:], tmp_path)), "--list"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(" cannot be aligned  5 'dyn'") and "got 3 at 26 mm" in captured.err
