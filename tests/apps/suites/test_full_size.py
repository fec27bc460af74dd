from argparse import Namespace
from dataclasses import dataclass

import pytest

from groupmorph_monai.apps.suites import full_size as module
from groupmorph_monai.apps.suites.suite import bundle_method
from groupmorph_monai.space.transforms import ComposedTransform


@dataclass
class Unregistered:
    overlays: tuple
    settings: dict

    def prepare_whole(self):
        assert self.overlays == ("effort/no_refine",) and self.settings in ({"initial_alignment": "none"}, {})
        return lambda series: [ComposedTransform()] * len(series.frames)


def test_a_series_of_full_size_is_registered_from_its_own_grid(monkeypatch, in_this_process):
    def method(weights, *overlays, **settings):
        return Unregistered(overlays, settings) if overlays else bundle_method(weights, "effort/fast")

    monkeypatch.setattr(module, "bundle_method", method)
    rows = {row["method"]: row for row in module.full_size(Namespace(weights=None), (54, 48, 42), 3)}
    assert list(rows) == ["single pass alone", "affine, single pass", "refined"]
    before = rows["refined"]["before, mm"]
    assert before > 1 and rows["refined"]["after, mm"] < 0.4 * before
    assert rows["affine, single pass"]["after, mm"] == pytest.approx(before)
    assert rows["refined"]["peak memory, GB"] > 0.05
