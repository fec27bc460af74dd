import numpy as np
import pytest
from scipy.stats import wilcoxon

from groupmorph_monai.benchmarks.paper.cells import Cell
from groupmorph_monai.benchmarks.paper.statistics import means, paired_differences


def cell(case, method, status="ok", **numbers):
    return Cell(f"series {case}", method, status, numbers, {})


def test_differences_are_taken_series_by_series():
    ours, theirs = [0.3, 0.5, 0.4, 0.6, 0.35, 0.45, 0.7], [0.5, 0.6, 0.8, 0.65, 0.7, 0.6, 0.75]
    cells = [cell(k, "ours", landmarks_mm_mean=v) for k, v in enumerate(ours)]
    cells += [cell(k, "theirs", landmarks_mm_mean=v) for k, v in reversed(list(enumerate(theirs)))]
    cells += [cell(7, "theirs", landmarks_mm_mean=9.0), cell(8, "theirs", "failed")]  # met by one alone
    (row,) = paired_differences(cells, "ours")
    expected = np.subtract(theirs, ours)
    assert row["method"] == "theirs" and row["series"] == 7
    assert row["difference"] == pytest.approx(expected.mean())
    assert row["p"] == pytest.approx(wilcoxon(expected).pvalue)
    # The interval is about as wide as by the normal approximation, and inside the range of the differences.
    width = 1.96 * expected.std(ddof=0) / 7**0.5
    assert row["low"] == pytest.approx(expected.mean() - width, abs=0.3 * width)
    assert row["high"] == pytest.approx(expected.mean() + width, abs=0.3 * width)


def test_one_series_has_no_interval():
    (row,) = paired_differences([cell(0, "a", rmse=1.0), cell(0, "b", rmse=3.0)], "a")
    assert row["difference"] == 2 and np.isnan([row["low"], row["high"], row["p"]]).all()


def test_means_leave_out_what_is_not_known():
    cells = [cell(0, "a", rmse=1.0, nmi=None), cell(1, "a", rmse=3.0, nmi=0.5), cell(2, "a", "failed: x")]
    cells += [cell(0, "b", "not installed")]
    table = means(cells)
    assert table["a"] == {"rmse": 2.0, "nmi": 0.5, "series": 2, "status": "failed: x"}
    assert table["b"] == {"series": 0, "status": "not installed"}
