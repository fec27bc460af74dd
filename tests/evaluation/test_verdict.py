"""The worst check decides, and its reason names the scan."""

import math
from pathlib import Path

import pytest

from groupmorph_monai.evaluation.verdict import CHECKS, LEVELS, Check, judge

HIGH = Check("high_mm", "a length", "{scan} is {value} mm, expected at most {limit}.", 1.0, 3.0, "a paper")
LOW = Check("low", "a share", "Only {value} of {limit}.", 0.5, None, "measured", low_is_bad=True)


@pytest.mark.parametrize("value, level", [(1.0, "PASS"), (1.01, "LOOK"), (3.0, "LOOK"), (3.01, "FAIL")])
def test_a_value_beyond_a_threshold_has_its_level(value, level):
    assert judge({"high_mm": value}, [HIGH])["verdict"] == level


def test_low_values_are_bad_where_the_check_says_so():
    assert judge({"low": 0.5}, [LOW])["verdict"] == "PASS"
    verdict = judge({"low": 0.4}, [LOW])
    assert verdict["verdict"] == "LOOK" and verdict["reasons"] == ["LOOK: Only 0.4 of 0.5."]


def test_the_worst_timepoint_decides_and_each_is_named_with_the_threshold_that_it_passed():
    verdict = judge({"high_mm": [0.0, 2.0, math.nan, 4.0], "low": 0.9}, [LOW, HIGH])
    assert verdict["verdict"] == "FAIL"
    assert verdict["reasons"] == [
        "FAIL: Timepoint 3 is 4 mm, expected at most 3.",
        "LOOK: Timepoint 1 is 2 mm, expected at most 1.",
    ]
    assert [row["level"] for row in verdict["checks"].values()] == ["PASS", "FAIL"]
    assert verdict["checks"]["high_mm"]["source"] == "a paper"


def test_a_warning_is_a_reason_to_look():
    named = judge({"high_mm": [0.0, 4.0]}, [HIGH], names=["t0.nii.gz", "t1.nii.gz"])
    assert "Timepoint 1 (t1.nii.gz)" in named["reasons"][0]
    verdict = judge({"high_mm": 0.5}, [HIGH], ["two scans are one"])
    assert verdict["verdict"] == "LOOK" and verdict["reasons"] == ["LOOK: Two scans are one"]


@pytest.mark.parametrize("values", [{}, {"high_mm": None}, {"high_mm": math.nan}, {"high_mm": [math.nan, None]}])
def test_missing_measures_are_no_reason_to_look(values):
    assert judge(values, [HIGH]) == {"verdict": "PASS", "reasons": [], "checks": {}}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_thresholds_are_ordered_and_have_a_reason(check):
    assert check.source and check.meaning
    if check.look is not None and check.fail is not None:
        assert (check.fail < check.look) == check.low_is_bad
        middle = (check.look + check.fail) / 2
        assert LEVELS[check.level(middle)] == "LOOK"
    assert "{value}" in check.sentence and check.sentence[-1] in ".?"


def test_the_docs_state_every_check_with_its_thresholds():
    page = (Path(__file__).parents[2] / "bundle" / "docs" / "verdict.md").read_text(encoding="utf-8")
    for check in CHECKS:
        side = "below" if check.low_is_bad else "above"
        look, fail = ("-" if limit is None else f"{side} {limit:g}" for limit in (check.look, check.fail))
        assert f"| `{check.name}` | {check.meaning} | {look} | {fail} |" in page
