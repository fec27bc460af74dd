import torch

from experiments.start import start, start_methods
from groupmorph_monai.apps.suites.methods import bundle_method
from groupmorph_monai.benchmarks.cases import synthetic_cases


def test_a_network_that_compares_nothing_predicts_no_motion(tmp_path):
    methods = start_methods(None, tmp_path)
    assert len(methods) == 5 and methods["default, from zero"].weights == str(tmp_path / "zero.pt")
    ddf, _ = bundle_method(str(tmp_path / "zero.pt"), "effort/no_refine").prepare()(torch.rand(2, 32, 32, 32))
    assert not ddf.any()
    ddf, _ = methods["network alone"].prepare()(synthetic_cases([1], (32, 32, 32), 2)[0]["image"])
    assert ddf.abs().mean() > 0.1


def hold(images):
    return torch.zeros(len(images), 3, *images.shape[1:])


def test_each_kind_of_series_has_a_row_per_method():
    cases = {"one": synthetic_cases([1], (24, 24, 24), 2), "other": synthetic_cases([2], (24, 24, 24), 2)}
    rows = start(cases, {"hold": hold}, progress=lambda line: None)
    assert [(row["series"], row["method"]) for row in rows] == [
        (kind, method) for kind in ("one", "other") for method in ("unregistered", "hold")
    ]
    before, after = rows[0]["mean error, voxels"], rows[1]["mean error, voxels"]
    assert before == after > 0.5 and "seconds" in rows[1]
