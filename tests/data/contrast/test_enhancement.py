"""Enhancement maps of known curves."""

import numpy as np
import pytest

from groupmorph_monai.data.contrast.enhancement import (
    arrival_of_agent_s,
    enhancement_ratio,
    mean_rise,
    peak_enhancement_percent,
    time_to_peak_s,
)

TIMES_S = (0.0, 60.0, 130.0, 200.0)
CURVES = {  # signal, then percent, ratio and time to peak with an agent that arrives at 30 s
    "persistent": ((100, 120, 160, 200), 100, 0.2, 200),
    "plateau": ((100, 180, 180, 180), 80, 1.0, 60),
    "washout": ((100, 300, 240, 150), 200, 4.0, 60),
    "washed out": ((100, 300, 200, 100), 200, 10.0, 60),  # no limit but ours
    "does not enhance": ((100, 110, 105, 112), 12, 0, 0),
    "air": ((1, 3, 1, 2), 0, None, None),
}
VOLUMES = np.stack([signal for signal, *_ in CURVES.values()], axis=1)[..., None, None].astype(np.float32)


@pytest.mark.parametrize("number, name", enumerate(CURVES))
def test_the_maps_of_a_known_curve(number, name):
    _, percent, ratio, time_s = CURVES[name]
    assert peak_enhancement_percent(VOLUMES)[number, 0, 0] == pytest.approx(percent, abs=1e-4)
    if ratio is not None:  # the ratio and the time of air are for its mask to leave out
        assert enhancement_ratio(VOLUMES, TIMES_S, 30.0)[number, 0, 0] == pytest.approx(ratio, abs=1e-5)
        assert time_to_peak_s(VOLUMES, TIMES_S)[number, 0, 0] == time_s


def test_the_early_scan_is_the_first_after_the_arrival():
    # Two scans without agent: the early one is the third, which is as bright as the last.
    volumes = np.array([100, 100, 150, 150], np.float32)[:, None, None, None]
    assert enhancement_ratio(volumes, TIMES_S, 95.0)[0, 0, 0] == 1
    assert enhancement_ratio(volumes, TIMES_S, 30.0)[0, 0, 0] == 0
    assert arrival_of_agent_s(volumes[..., 0, 0], np.array(TIMES_S)) == 95


def test_the_mean_rise_is_that_of_the_later_scans():
    assert mean_rise(VOLUMES)[:2, 0, 0] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_a_signal_of_any_unit_gives_the_same_maps(unit):
    volumes = VOLUMES * np.float32(unit)
    np.testing.assert_allclose(mean_rise(volumes), mean_rise(VOLUMES), rtol=1e-5)
    np.testing.assert_allclose(peak_enhancement_percent(volumes), peak_enhancement_percent(VOLUMES), rtol=1e-4)
    for function, *arguments in ((enhancement_ratio, TIMES_S, 30.0), (time_to_peak_s, TIMES_S)):
        np.testing.assert_allclose(function(volumes, *arguments), function(VOLUMES, *arguments), rtol=1e-5)
