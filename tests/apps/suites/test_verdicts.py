import pytest

from groupmorph_monai.apps.suites.verdicts import tabulate
from groupmorph_monai.benchmarks.planted import BEYOND_REACH


def test_verdicts_are_counted_and_motion_that_was_found_is_good():
    good, bad = {"folding_percent": 0.0, "error_voxels": 0.1}, {"folding_percent": 2.0, "error_voxels": 9.0}
    results = [(None, good), (None, bad), ("x", bad), (BEYOND_REACH, good), (BEYOND_REACH, bad)]
    rows = {row["planted failure"]: row for row in tabulate(results)}
    assert rows["none"]["series"] == 2 and rows["none"]["FAIL, %"] == 50
    assert rows["all good ones"]["series"] == 3 and rows["all good ones"]["PASS, %"] == pytest.approx(200 / 3)
    assert rows["all failures"]["FAIL, %"] == 100 and rows["x"]["checks triggered"] == "folding_percent (1)"
