"""A registration that rests on a small part of a scan does not pass, and its reasons name the scan."""

import numpy as np
import pytest
from json_files import read_json
from scanners import Scan, register, save

from groupmorph_monai.data import make_phantom

UNREFINED = ("--no-refine", "--initial", "none")


def judged(measured, folder, value=np.nan, scans=None, options=UNREFINED):
    """Register a phantom of which each scan was measured in a range of its slices, and otherwise has one ``value``.

    Args:
        measured: first and last slice along the first axis, of 40, of each scan.
        scans: indices of the phantom's scans; None for the first ones.

    Returns:
        The verdict, and its reasons.
    """
    phantom = make_phantom(3, size=(40, 36, 32), timepoints=4, spacing_mm=(3.0, 3.0, 3.6), max_motion_voxels=2)
    volumes = phantom["image"].numpy()[list(scans or range(len(measured)))]
    for volume, (first, last) in zip(volumes, measured):
        volume[:first], volume[last:] = value, value
    series = [Scan(volume, phantom["affine"].numpy()) for volume in volumes]
    verdict = read_json(register(save(series, folder), folder / "out", *options) / "report.json")["verdict"]
    return verdict["verdict"], " ".join(verdict["reasons"])


@pytest.mark.parametrize("value", [np.nan, 0])
@pytest.mark.parametrize("scans", [(0, 1), (0, 0)], ids=["another scan", "a copy"])
def test_a_scan_that_is_mostly_padding(scans, value, tmp_path):
    verdict, reasons = judged([(0, 40), (0, 3)], tmp_path, value, scans)
    assert verdict == "FAIL" and "Timepoint 1 (t1.nii.gz) covers 5" in reasons


@pytest.mark.parametrize(
    "measured, scan, options",
    [
        ([(0, 40), (0, 40), (0, 3), (0, 40)], 2, UNREFINED),
        ([(0, 3), (0, 40), (0, 40), (0, 40)], 0, UNREFINED),
        ([(0, 40), (0, 40), (0, 40), (35, 40)], 3, UNREFINED),
        pytest.param([(0, 40), (0, 40), (0, 40), (35, 40)], 3, (), marks=pytest.mark.slow),
    ],
)
def test_one_of_four_scans_is_hardly_measured(measured, scan, options, tmp_path):
    verdict, reasons = judged(measured, tmp_path, options=options)
    assert verdict != "PASS" and f"Timepoint {scan} (t{scan}.nii.gz) covers" in reasons


@pytest.mark.parametrize("measured", [[(0, 20), (20, 40)], [(0, 14), (14, 40)], [(0, 20), (0, 20), (0, 20), (20, 40)]])
def test_scans_whose_measured_parts_do_not_meet(measured, tmp_path):
    verdict, reasons = judged(measured, tmp_path)
    text = f"FAIL: 0 % of the structure of the series can be compared in timepoint {len(measured) - 1}"
    assert verdict == "FAIL" and text in reasons


def test_scans_that_were_measured_in_one_part(tmp_path):
    verdict, reasons = judged([(0, 32), (0, 32), (0, 32)], tmp_path)
    assert verdict != "FAIL" and "covers" not in reasons and "compared" not in reasons


def test_scans_of_noise_cannot_be_checked(tmp_path):
    noise = np.random.default_rng(0).standard_normal((2, 20, 20, 20)).astype(np.float32)
    files = save([Scan(volume, np.eye(4)) for volume in noise], tmp_path)
    verdict = read_json(register(files, tmp_path / "out", *UNREFINED) / "report.json")["verdict"]
    assert verdict["verdict"] == "LOOK" and "LOOK: Timepoint 1 has no structure above its noise" in str(verdict)
