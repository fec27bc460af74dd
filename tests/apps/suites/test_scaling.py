from argparse import Namespace

import torch

from groupmorph_monai.apps.suites.scaling import scaling
from groupmorph_monai.benchmarks import compare
from groupmorph_monai.data.phantoms import phantom


def test_the_slopes_are_those_of_seconds_that_grow_so(monkeypatch, capsys):
    def measure(method, series):
        return [], 2.0 * len(series) ** 1.5 * series[0].numel() ** 0.5, 1.0

    monkeypatch.setattr(compare, "measure", measure)
    monkeypatch.setattr(phantom, "make_phantom", lambda seed, size, number: {"image": torch.empty(number, *size)})
    rows, lines = scaling(Namespace(weights=None)), capsys.readouterr().out.splitlines()
    assert {row["K"] for row in rows} == {2, 4, 8, 16} and len({row["voxels"] for row in rows}) == 3
    assert lines[-2].endswith("against K: 1.50") and lines[-1].endswith("against voxels: 0.50")
