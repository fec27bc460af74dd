import pytest

from groupmorph_monai.apps.suites.methods import bundle_method
from groupmorph_monai.benchmarks import breathing as module
from groupmorph_monai.benchmarks.breathing import breathing
from groupmorph_monai.space.transforms import ComposedTransform


def _unregistered(series):
    return [ComposedTransform()] * len(series.frames)


def test_breathing_is_followed_and_a_failure_counts_as_one(monkeypatch):
    small = {"size": (48, 42, 20), "spacing_mm": (4, 4, 7), "landmarks": 100}
    made = module.make_breathing_series
    monkeypatch.setattr(module, "make_breathing_series", lambda seed, motion: made(seed, motion, **small))
    method = bundle_method(None, "effort/fast")
    (row,) = breathing(method, [1], [12.0])
    assert row["before, inside, mm"] > 3
    assert row["inside, mm"] < 1.5 and row["outside, mm"] < 2 and row["success, %"] == 100
    monkeypatch.setattr(method, "prepare_whole", lambda: _unregistered)
    (lost,) = breathing(method, [1], [12.0])
    assert lost["inside, mm"] == pytest.approx(lost["before, inside, mm"]) and lost["success, %"] == 0
