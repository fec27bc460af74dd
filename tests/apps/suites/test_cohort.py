import pytest

from groupmorph_monai.apps.suites.cohort import cohort, simulate


@pytest.mark.parametrize(
    "seconds, workers, options, end",
    [
        ([3, 1, 1, 1], 2, {}, 3),  # the long one beside the three others
        ([1, 1, 1, 3], 2, {}, 4),  # the long one last
        ([2] * 6, 3, {"start_s": 5}, 9),
        ([2] * 6, 3, {"failing": [4]}, 6),  # once more when all are done
        ([1] * 100, 100, {"dispatch_s": 0.5}, 51),  # the scheduler is what all wait for
        ([2, 1], 2, {"failing": [0, 1]}, 4),
    ],
)
def test_simulated_times_equal_those_computed_by_hand(seconds, workers, options, end):
    assert simulate(seconds, workers, **options) == (
        pytest.approx(end),
        sum(seconds) + sum(seconds[n] for n in options.get("failing", ())),
    )


def test_core_hours_do_not_depend_on_the_workers():
    rows = cohort(series=500, workers=(1, 50))
    assert rows[0]["core hours"] == rows[1]["core hours"]
    # e^(0.3^2 / 2) is the mean of a log-normal variable whose median is 1; 1 % are done twice.
    assert rows[0]["core hours"] == pytest.approx(500 * 348 * 1.046 * 1.01 * 2 / 3600, rel=0.05)
    assert rows[1]["hours"] > rows[0]["hours"] / 50
