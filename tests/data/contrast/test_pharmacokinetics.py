import numpy as np
import pytest
from scipy.integrate import quad

from groupmorph_monai.data.contrast.pharmacokinetics import concentration, parker_aif, relaxation_rate, spgr_signal
from groupmorph_monai.data.phantoms.phantom import LESION_KINETICS


def test_aif_has_parkers_peak_and_tail():
    seconds = np.arange(0, 600, 0.1)
    blood = parker_aif(seconds) * (1 - 0.42)
    assert blood.max() == pytest.approx(6.0, abs=0.3)  # mmol/l, Parker 2006, Fig. 3
    assert seconds[blood.argmax()] == pytest.approx(10.2, abs=0.5)
    assert blood[-1] == pytest.approx(1.050 * np.exp(-0.1685 * 599.9 / 60), rel=1e-3)
    assert (parker_aif([-10, -0.1]) == 0).all()


@pytest.mark.parametrize("time_s", [20, 90, 400])
def test_tofts_model_is_the_convolution(time_s):
    ktrans, ve, vp = 0.25, 0.3, 0.05

    def leaked(s):
        return parker_aif(s) * np.exp(-ktrans / ve * (time_s - s) / 60)

    integral = sum(quad(leaked, a, b)[0] for a, b in zip([0, 10, 20], [10, 20, time_s])) / 60
    expected = vp * parker_aif(time_s) + ktrans * integral
    assert concentration([time_s], ktrans, ve, vp)[0] == pytest.approx(expected, rel=2e-3)


def test_signal_is_ernsts():
    e1, angle = np.exp(-0.005 / 1.4), np.deg2rad(12)
    expected = 0.8 * np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)
    assert spgr_signal(0.0, 1.4, 0.8) == pytest.approx(expected, rel=1e-12)
    rate = 1 / 1.4 + 4.5 * 0.3
    assert spgr_signal(0.3, 1.4) == pytest.approx(spgr_signal(0.0, 1 / rate), rel=1e-12)


def test_the_relaxation_rate_is_that_of_the_signal():
    rates = np.array([1 / 1.4, 1.5, 8.0, 60.0])
    enhancement = spgr_signal(0.0, 1 / rates, 3.0, flip_angle_deg=20) / spgr_signal(0.0, 1.4, 3.0, flip_angle_deg=20)
    assert relaxation_rate(enhancement, 1.4, flip_angle_deg=20) == pytest.approx(rates, rel=1e-9)
    assert relaxation_rate([0.0, 1e3], 1.4).tolist() == pytest.approx([0, 100])  # signals that no tissue gives


@pytest.mark.parametrize("name, low, high", [("persistent", 0.1, 1), ("plateau", -0.1, 0.1), ("washout", -1, -0.1)])
def test_lesions_rise_on_level_off_or_fall(name, low, high):
    # Kuhl's kinds: signal after the first two minutes against its peak within them.
    early = spgr_signal(concentration(np.arange(1, 120), *LESION_KINETICS[name], 0.0), 1.5, 0.8).max()
    late = spgr_signal(concentration([420], *LESION_KINETICS[name], 0.0), 1.5, 0.8)[0]
    assert early > 1.5 * spgr_signal(0.0, 1.5, 0.8)
    assert low <= (late - early) / early <= high
