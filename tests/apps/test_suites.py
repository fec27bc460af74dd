"""Each suite hands to its measurement the configs, weights and settings that its rows are named for."""

import argparse

import pytest
from monai.bundle import ConfigParser

from groupmorph_monai.apps import suites
from groupmorph_monai.apps.suite_arguments import SUITES
from groupmorph_monai.data import make_phantom
from groupmorph_monai.errors import InputError


@pytest.fixture
def measured(monkeypatch):
    """What `compare` is given, and what each training is, by the name of its folder, and that what."""
    found = {"methods": {}, "trained": {}}

    def compare(cases, methods, progress=print):
        found["methods"] |= methods
        return [{"method": name, "seconds": 1.0} for name in methods]

    def train_alike(method, files, folder, minutes, timepoints, progress, **settings):
        parser = ConfigParser()
        parser.read_config(list(files))
        for name, value in settings.items():
            parser[name] = value
        found["trained"][folder.name] = parser, minutes, timepoints
        return method

    def rows(cases, methods, *rest):
        return [{"method": name, "more": 2.0} for name in methods]

    small = [{"name": "phantom", **make_phantom(1, (16, 16, 16), 6, landmarks=10)}]
    monkeypatch.setattr(suites, "synthetic_cases", lambda seeds: small)
    monkeypatch.setattr(suites, "compare", compare)
    monkeypatch.setattr(suites, "train_alike", train_alike)
    monkeypatch.setattr(suites, "asymmetry", rows)
    monkeypatch.setattr(suites, "draws", rows)
    return found


def run(name, folder):
    given = {"weights": None, "series": None, "seeds": [1], "spacing_mm": None, "mask": None, "dataset": None}
    return suites.SUITES[name](argparse.Namespace(suite=name, minutes=2.0, output=str(folder), **given))


def value(method, name):
    parser = ConfigParser()
    parser.read_config(list(method.config_files))
    for key, setting in method.settings.items():
        parser[key] = setting
    return parser.get(name)


def test_every_name_has_its_suite():
    assert set(suites.SUITES) == set(SUITES)


def test_peers_meet_the_single_pass_and_the_refined_answer(measured, tmp_path):
    rows = run("synthetic", tmp_path)
    ours = {name: method for name, method in measured["methods"].items() if name.startswith("GroupMorph")}
    assert [value(method, "inferer")["refinement"] for method in ours.values()] == [None, "@refinement"]
    assert len(rows) == 4 and all(row["times as fast as Elastix pair-wise"] == 1 for row in rows)


def test_each_likelihood_refines_by_itself(measured, tmp_path):
    run("likelihoods", tmp_path)
    kinds = {name: value(method, "likelihood") for name, method in measured["methods"].items()}
    assert kinds["group nmi"]["_target_"].endswith("GroupNMI") and kinds["low rank"]["_target_"].endswith("LowRank")
    assert (
        len({str(kind) + str(value(measured["methods"][name], "window_radii_voxels")) for name, kind in kinds.items()})
        == 5
    )


def test_every_model_and_addition_is_trained_as_long_and_registers_as_itself(measured, tmp_path):
    run("models", tmp_path)
    refined = {name for name in measured["methods"] if name.endswith(", refined")}
    assert len(refined) == 1 + 7 and len(measured["methods"]) == 2 * len(refined) + 3
    assert set(measured["methods"]) >= {"models/avsm", "models/avsm, refined", "priors/temporal"}
    assert {minutes for _, minutes, _ in measured["trained"].values()} == {2.0}
    for name, method in measured["methods"].items():
        parser, _, timepoints = measured["trained"][name.removesuffix(", refined").replace("/", " ")]
        assert timepoints == 6 and parser.get("patch_size_voxels") == [32, 32, 32]
        assert parser.get("network_def")["_target_"] == value(method, "network_def")["_target_"]
        assert (value(method, "inferer")["refinement"] is not None) == (name in refined)


def test_the_symmetry_loss_is_all_that_differs_but_for_what_is_symmetric(measured, tmp_path):
    rows = run("symmetry", tmp_path)
    weights = {name: parser.get("symmetry_weight") for name, (parser, *_) in measured["trained"].items()}
    assert sorted(weights.values()) == [0, 0, 0.1, 1] and weights["symmetry weight 0.1"] == 0.1
    kinds = {name: value(method, "alignment")["_target_"] for name, method in measured["methods"].items()}
    assert kinds.pop("symmetric by construction").endswith("ReferenceAlignment")
    assert all(kind.endswith("OneWayAlignment") for kind in kinds.values())
    assert all(row["more"] == 2 and row["seconds"] == 1 for row in rows)


def test_affine_steps_share_one_training(measured, tmp_path):
    run("affine", tmp_path)
    (parser, minutes, timepoints) = measured["trained"]["affine"]
    assert (minutes, timepoints, parser.get("passes")) == (0.85 * 2, 3, 3)
    steps = {name: value(method, "passes") for name, method in measured["methods"].items() if "step" in name}
    assert steps == {"1 step": 1, "2 steps": 2, "3 steps": 3, "5 steps": 5, "7 steps": 7, "7 steps, refined": 7}
    likelihoods = [value(measured["methods"]["7 steps, refined"], name) for name in ("window_extents", "window_step")]
    assert likelihoods == [parser.get("window_extents"), parser.get("window_step")]
    unrefined = [name for name in steps if value(measured["methods"][name], "inferer")["refinement"] is None]
    assert unrefined == [name for name in steps if name != "7 steps, refined"]


def test_covariance_crosses_the_prior_with_the_posterior(measured, tmp_path):
    run("covariance", tmp_path)
    found = {(p.get("lambda_u"), p.get("posterior_smoothing_voxels") > 0) for p, *_ in measured["trained"].values()}
    assert found == {(1.0, False), (1.0, True), (20.0, False), (20.0, True)}


def test_elastix_missing_is_said_before_any_registration(measured, monkeypatch):
    monkeypatch.setattr("groupmorph_monai.benchmarks.peers.elastix.itk", object())
    with pytest.raises(InputError, match="pip install 'groupmorph-monai.bench.'"):
        suites.SUITES["synthetic"](argparse.Namespace(weights=None, series=None, seeds=[1]))
    assert measured["methods"] == {}
