"""Each experiment trains and compares the models that its rows are named for."""

import argparse
import csv

import pytest
from monai.bundle import ConfigParser

from experiments.affine import AFFINE
from experiments.covariance import COVARIANCE
from experiments.models import MODELS
from experiments.symmetry import SYMMETRY
from groupmorph_monai.data import make_phantom
from groupmorph_monai.workflow.parsed_config import parsed_config


@pytest.fixture
def measured(monkeypatch):
    """Record the methods passed to `compare`, and the config, minutes and K of each training by the name of its
    folder."""
    recorded = {"methods": {}, "trained": {}}

    def compare(cases, methods, progress=print):
        recorded["methods"] |= methods
        return [{"method": name, "seconds": 1.0} for name in methods]

    def train_alike(method, files, folder, minutes, timepoints, progress, **settings):
        parser = ConfigParser()
        parser.read_config(list(files))
        for name, value in settings.items():
            parser[name] = value
        recorded["trained"][folder.name] = parser, minutes, timepoints
        return method

    def rows(cases, methods, *rest):
        return [{"method": name, "more": 2.0} for name in methods]

    small = [{"name": "phantom", **make_phantom(1, (16, 16, 16), 6, landmarks=10)}]
    monkeypatch.setattr("experiments.models.synthetic_cases", lambda seeds: small)
    for name in ("models", "symmetry", "affine", "covariance"):
        monkeypatch.setattr(f"experiments.{name}.compare", compare)
    monkeypatch.setattr("experiments.trained_alike.train_alike", train_alike)
    monkeypatch.setattr("experiments.symmetry.asymmetry", rows)
    monkeypatch.setattr("experiments.covariance.draws", rows)
    return recorded


def run(experiment, folder):
    args = argparse.Namespace(suite=experiment, minutes=2.0, output=str(folder), seeds=[1])
    with open(experiment.run(args).with_suffix(".csv"), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def value(method, name):
    return parsed_config(method.config_files, method.settings).get(name)


def test_every_model_and_addition_is_trained_as_long_and_registers_as_itself(measured, tmp_path):
    run(MODELS, tmp_path)
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
    rows = run(SYMMETRY, tmp_path)
    weights = {name: parser.get("symmetry_weight") for name, (parser, *_) in measured["trained"].items()}
    assert sorted(weights.values()) == [0, 0, 0.1, 1] and weights["symmetry weight 0.1"] == 0.1
    kinds = {name: value(method, "alignment")["_target_"] for name, method in measured["methods"].items()}
    assert kinds.pop("symmetric by construction").endswith("ReferenceAlignment")
    assert all(kind.endswith("OneWayAlignment") for kind in kinds.values())
    assert all(float(row["more"]) == 2 and float(row["seconds"]) == 1 for row in rows)


def test_affine_steps_share_one_training(measured, tmp_path):
    run(AFFINE, tmp_path)
    (parser, minutes, timepoints) = measured["trained"]["affine"]
    assert (minutes, timepoints, parser.get("passes")) == (0.85 * 2, 3, 3)
    steps = {name: value(method, "passes") for name, method in measured["methods"].items() if "step" in name}
    assert steps == {"1 step": 1, "2 steps": 2, "3 steps": 3, "5 steps": 5, "7 steps": 7, "7 steps, refined": 7}
    likelihoods = [value(measured["methods"]["7 steps, refined"], name) for name in ("window_extents", "window_step")]
    assert likelihoods == [parser.get("window_extents"), parser.get("window_step")]
    unrefined = [name for name in steps if value(measured["methods"][name], "inferer")["refinement"] is None]
    assert unrefined == [name for name in steps if name != "7 steps, refined"]


def test_covariance_crosses_the_prior_with_the_posterior(measured, tmp_path):
    run(COVARIANCE, tmp_path)
    combinations = {
        (p.get("lambda_u"), p.get("posterior_smoothing_voxels") > 0) for p, *_ in measured["trained"].values()
    }
    assert combinations == {(1.0, False), (1.0, True), (20.0, False), (20.0, True)}
