from argparse import Namespace

import pytest

from groupmorph_monai.apps.suites import breathing as module
from groupmorph_monai.apps.suites.suite import bundle_method
from groupmorph_monai.data.phantoms import breathing as phantoms
from groupmorph_monai.space.transforms import ComposedTransform


def _unregistered(series):
    return [ComposedTransform()] * len(series.frames)


def test_breathing_is_followed_and_a_failure_counts_as_one(monkeypatch):
    small = {"size": (48, 42, 20), "spacing_mm": (4, 4, 7), "landmarks": 100}
    made, method = phantoms.make_breathing_series, bundle_method(None, "effort/fast")
    args = Namespace(weights=None, seeds=[1])
    monkeypatch.setattr(phantoms, "make_breathing_series", lambda seed, motion: made(seed, motion, **small))
    monkeypatch.setattr(module, "bundle_method", lambda weights: method)
    (row,) = module.breathing(args, [12.0])
    assert row["before, inside, mm"] > 3
    assert row["inside, mm"] < 1.5 and row["outside, mm"] < 2 and row["success, %"] == 100
    monkeypatch.setattr(method, "prepare_whole", lambda: _unregistered)
    (lost,) = module.breathing(args, [12.0])
    assert lost["inside, mm"] == pytest.approx(lost["before, inside, mm"]) and lost["success, %"] == 0
