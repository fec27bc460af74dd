"""Training by its command, with every config and overlay, interrupted and resumed."""

from functools import partial

import nibabel
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import (
    BUNDLE,
    NARROW,
    TINY,
    config_paths,
    distances_mm,
    last_weights,
    network_settings,
    read_scalars,
    run_config,
)
from image_files import write_nifti
from json_files import read_json, write_json
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.trained_alike import train_alike
from groupmorph_monai.apps.command_line import main
from groupmorph_monai.apps.configs import overlay_names, read_configs
from groupmorph_monai.apps.input_errors import find_input_error
from groupmorph_monai.benchmarks.compare import BundleMethod, compare
from groupmorph_monai.data import make_heart, make_phantom
from groupmorph_monai.networks import GroupSetVAE, KrebsCVAE
from groupmorph_monai.probability import NegativeELBO
from groupmorph_monai.workflow.weights import read_weights

TINY_DATA = {
    **TINY,
    "heart_size_voxels": [24, 24, 16],
    "hearts_validation": 1,
    "thorax_size_voxels": [24, 24, 20],
    "thorax_validation": 1,
    "breast_size_voxels": [24, 24, 20],
    "breast_spacing_mm": [14.0, 14.0, 10.0],
    "breasts_validation": 1,
    "log_interval": 1,
}
NARROW_GROUP_VAE = {"encoder_channels": [4, 6, 6], "decoder_channels": [6]}
NARROW_BY_MODEL = {
    "models/groupmorph": NARROW_GROUP_VAE,
    "models/voxelmorph": NARROW_GROUP_VAE,
    "models/voxelmorph_diff": NARROW_GROUP_VAE,
    "models/avsm": {"channels": [3, 4, 5, 6]},
    "models/avsm_affine": {"channels": [3, 4]},
    "models/time_dependent": NARROW,
    "models/krebs_cvae": {"encoder_channels": [3, 4, 5, 2], "decoder_channels": [4, 4], "lattice_voxels": [3, 3, 3]},
}
# Models that learn nothing in a few iterations from random weights: last layer, weights of such a network, overlays.
PUBLISHED = {
    "models/avsm": ("head", "avsm.pt", "integrators/squaring"),
    "models/groupmorph": ("mean_head", "voxelmorph.pt"),
    "models/krebs_cvae": ("last.1", "krebs_cvae.pt", "data/hearts"),
    "models/voxelmorph": ("mean_head", "voxelmorph.pt"),
    "models/voxelmorph_diff": ("mean_head", "voxelmorph_diff.pt", "data/hearts"),
}
RATE_OF_FOUR = {
    "_target_": "torch.optim.lr_scheduler.LambdaLR",
    "optimizer": "@optimizer",
    "lr_lambda": {"_target_": "groupmorph_monai.workflow.warmup_and_cosine", "_mode_": "callable", "iterations": 4},
}
OVERLAYS = sorted(set(overlay_names()) - {"modes/sample", "modes/transport"})  # which only register


def train(output, *overlays, **options):
    network = next((NARROW_BY_MODEL[name] for name in overlays if name in NARROW_BY_MODEL), NARROW)
    settings = {**TINY_DATA, **network_settings(network), **options}
    run_config("training", "train", *overlays, output_dir=str(output), **settings)


def same_weights(folder, weights):
    return all(torch.equal(value, weights[name]) for name, value in last_weights(folder).items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output = tmp_path_factory.mktemp("finished")
    train(output)
    return output


def test_a_stopped_run_ends_with_the_same_numbers(finished, tmp_path):
    train(tmp_path, max_iterations=2, lr_scheduler=RATE_OF_FOUR)
    first = last_weights(tmp_path)
    train(tmp_path)
    assert same_weights(finished, last_weights(tmp_path))
    assert not torch.equal(first["variance_head.weight"], last_weights(tmp_path)["variance_head.weight"])
    with pytest.raises(RuntimeError) as raised:
        train(tmp_path, iterations_per_epoch=4)
    assert "2 iterations per epoch, expected 4" in str(find_input_error(raised.value))


def test_a_short_run_is_validated(tmp_path):
    train(tmp_path, val_interval=1000)
    assert (tmp_path / "model_best.pt").is_file()


def test_mlflow_holds_what_tensorboard_does(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="run by make others")
    train(tmp_path, tracking="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlruns.db'}")
    experiment = client.get_experiment_by_name("monai_experiment")
    runs = client.search_runs([experiment.experiment_id])
    names = {"train_loss": "train/loss", "validation_loss": "validation_loss", "nmi": "nmi", "rmse": "rmse"}
    for name, tag in names.items():
        tracked = [m.value for run in runs for m in client.get_metric_history(run.info.run_id, name)]
        assert tracked == pytest.approx(read_scalars(tmp_path, tag)[1], rel=1e-5), name
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_tensorboard_shows_each_term_the_metrics_and_a_picture(finished):
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    wanted = {"train/log_likelihood", "train/kl", "train/loss", "train/learning_rate"}
    wanted |= {"validation_loss", "landmark_after_mm", "rmse", "nmi", "folding_percent"}
    assert wanted <= set(events.Tags()["scalars"])
    values = {name: [e.value for e in events.Scalars(name)] for name in wanted}
    for kl, likelihood, loss in zip(
        values["train/kl"], values["train/log_likelihood"], values["train/loss"], strict=True
    ):
        assert loss == pytest.approx(0.1 * kl - likelihood, abs=1e-4)
    assert events.Tags()["images"]


def test_the_best_weights_are_those_of_the_smallest_validation_loss(finished):
    network = GroupSetVAE(**NARROW)
    network.load_state_dict(torch.load(finished / "model_best.pt", weights_only=True))
    _, losses = read_scalars(finished, "validation_loss")
    assert same_weights(finished, network.state_dict()) == (losses[-1] == min(losses))


# A pair with small motion, used unchanged in each iteration, so that a few iterations align it.
ONE_PAIR = {
    **TINY_DATA,
    **dict.fromkeys(("timepoints", "phantom_timepoints", "timepoints_least", "timepoints_most"), 2),
    **dict.fromkeys(("motion_probability", "affine_motion_probability", "affine_probability"), 0.0),
    **dict.fromkeys(("flip_probability", "contrast_probability"), 0.0),
    **{"phantom_size_voxels": [24, 24, 24], "patch_size_voxels": [24, 24, 24], "phantom_max_motion_voxels": 5.0},
    **{"phantom_margin_voxels": 0, "initial_alignment": "none", "warmup_iterations": 0, "val_interval": 1000},
}
AFFINE_PAIR = {"phantom_margin_voxels": 4, "affine_shift_voxels": 2.0, "learning_rate": 3e-3}
SETTINGS = {
    "data/affine_phantoms": AFFINE_PAIR,
    "data/breast": {"iterations_per_epoch": 40},
    "data/hearts": {"iterations_per_epoch": 40, "learning_rate": 3e-3},
    "models/avsm_affine": {**AFFINE_PAIR, "affine_pull": 1.25},  # in the first epoch a weight of 1
}


def errors_mm(names, settings, prepare):
    """Compute the mean landmark distance of a pair: unregistered, and by the network before and after training."""
    parser = ConfigParser()
    parser.read_config(config_paths("train", *names))
    for name, value in settings.items():
        parser[name] = value
    parser["max_iterations"] = settings["iterations_per_epoch"]
    parser["training_phantoms"] = "@validation_phantoms"
    torch.manual_seed(0)
    prepare(parser.get_parsed_content("network"))
    evaluator, trainer = (parser.get_parsed_content(name) for name in ("validate#evaluator", "train#trainer"))
    evaluator.run()
    before = dict(evaluator.state.metrics)
    trainer.run()
    evaluator.run()
    errors = before["landmark_before_mm"], before["landmark_after_mm"], evaluator.state.metrics["landmark_after_mm"]
    print("static {:.2f} mm, before training {:.2f} mm, after it {:.2f} mm".format(*errors))
    return errors


def check_that_it_trains(folder, overlay, **more):
    network = network_settings(NARROW_BY_MODEL.get(overlay, NARROW))
    schedule = {"iterations_per_epoch": 20, "learning_rate": 6e-3, "output_dir": str(folder)}
    settings = {**ONE_PAIR, **network, **schedule, **SETTINGS.get(overlay, {}), **more}
    names = [overlay, "data/affine_phantoms"] if overlay == "models/avsm_affine" else [overlay]
    static, untrained, trained = errors_mm(names, settings, lambda network: None)
    assert trained < 0.85 * static and trained < 0.95 * untrained


def test_the_default_network_trains_through_its_last_step(tmp_path):
    check_that_it_trains(
        tmp_path, "modes/all_to_one", iterations_per_epoch=60, **{"network_def#updates": [1, 1, 1, 1, 1]}
    )


# An effort changes the refinement, not the training.
@pytest.mark.parametrize(
    "overlay",
    [pytest.param(o, marks=pytest.mark.slow) if o.startswith("effort/") else o for o in OVERLAYS if o not in PUBLISHED],
)
def test_every_overlay_trains(overlay, tmp_path):
    check_that_it_trains(tmp_path, overlay)


class PartialELBO(NegativeELBO):
    """The objective, with these entries of the registration detached."""

    def __init__(self, *args, constant, **kwargs):
        super().__init__(*args, **kwargs)
        self.constant = constant

    def terms(self, registration, target=None):
        constants = {name: registration[name].detach() for name in self.constant if name in registration}
        return super().terms({**registration, **constants}, target)


# Each overlay adds a term to the likelihood of the warped images, and either term alone would train the network.
@pytest.mark.parametrize(
    "overlay, constant",
    [
        ("modes/bidirectional", ["backward_pairs"]),
        ("modes/bidirectional", ["warped"]),
        ("modes/surfaces", ["ddf", "inverse_ddf"]),
        ("modes/surfaces", ["warped"]),
    ],
)
def test_every_term_of_the_loss_trains_alone(overlay, constant, tmp_path):
    check_that_it_trains(tmp_path, overlay, **{"loss#_target_": partial(PartialELBO, constant=constant)})


@pytest.mark.slow
@pytest.mark.parametrize("model", PUBLISHED)
def test_every_published_model_trains(model, tmp_path):
    """The shipped weights with a random last layer learn again."""
    layer, weights, *names = PUBLISHED[model]
    size = [40, 40, 24] if "data/hearts" in names else [32, 32, 32]
    sizes = {f"{name}_size_voxels": size for name in ("phantom", "heart", "patch")}
    schedule = {"iterations_per_epoch": 15, "learning_rate": 1e-3, "output_dir": str(tmp_path)}

    def forget(network):
        network.load_state_dict(read_weights(BUNDLE / "models" / weights, "cpu"))
        for parameter in network.get_submodule(layer).parameters():
            torch.nn.init.zeros_(parameter)

    static, forgotten, trained = errors_mm([model, *names], {**ONE_PAIR, **schedule, **sizes}, forget)
    assert forgotten == pytest.approx(static, abs=0.01) and trained < 0.7 * static


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(NARROW_BY_MODEL))
def test_every_model_registers_refines_and_is_evaluated_with_the_weights_it_trained(model, phantom, series, tmp_path):
    """Two iterations do not suffice to learn, but the refinement needs no training."""
    weights = tmp_path / "trained" / "model_best.pt"
    train(weights.parent, model, max_iterations=2)
    options = {"weights": str(weights), **network_settings(NARROW_BY_MODEL[model])}
    if model == "models/avsm":  # whose affine network is trained by itself
        options["initial_alignment"] = "affine"
    timepoints = read_configs(config_paths(model)).get("timepoints", 3)
    names = ("effort/fast", model)
    run_config(
        "inference", "inference", *names, series=series[:timepoints], output_dir=str(tmp_path / "out"), **options
    )
    before, after = distances_mm(phantom, tmp_path / "out", timepoints)
    print(f"{model}: {after / before:.3f} of {before:.3f} mm left")
    assert after < 0.9 * before
    assert read_json(tmp_path / "out" / "report.json")["metrics"]["folding_percent"] < 1
    options |= {"phantoms": 1, "phantom_size_voxels": [24, 24, 24], "output_dir": str(tmp_path / "evaluated")}
    run_config("evaluate", "inference", "evaluate", *names, **options)
    mean = read_json(tmp_path / "evaluated" / "metrics.json")["mean"]
    print(f"evaluated: {mean['landmark_after_mm_mean']:.3f} of {mean['landmark_before_mm_mean']:.3f} mm left")
    assert mean["landmark_after_mm_mean"] < 0.9 * mean["landmark_before_mm_mean"]


@pytest.mark.slow
def test_codes_are_carried_over_and_drawn(tmp_path, capsys):
    weights, files = tmp_path / "krebs.pt", {}
    torch.manual_seed(0)
    network = KrebsCVAE()
    torch.nn.init.normal_(network.last[1].weight, std=0.3)
    torch.save(network.state_dict(), weights)
    for seed in (1, 2):
        for k, volume in enumerate(make_heart(seed, "normal", size=(24, 24, 16))["image"]):
            files[seed, k] = write_nifti(tmp_path / f"heart{seed}_{k}.nii.gz", volume.numpy(), np.eye(4))
    out, drawn = tmp_path / "transported", tmp_path / "drawn"
    common = ["--weights", str(weights), "--output"]
    assert main(["transport", files[1, 0], files[1, 1], "--to", files[2, 0], *common, str(out)]) == 0
    fields = [nibabel.load(out / f"inverse_ddf_0{k}.nii.gz").get_fdata() for k in range(2)]
    assert abs(fields[0]).max() == 0 and abs(fields[1]).max() > 1e-4
    assert "inverse_ddf_KK.nii.gz" in capsys.readouterr().out
    assert main(["sample", files[2, 0], "--number", "3", *common, str(drawn)]) == 0
    fields = [nibabel.load(drawn / f"ddf_0{k}.nii.gz").get_fdata() for k in range(3)]
    assert abs(fields[0] - fields[1]).max() > 0.01 and abs(fields[1] - fields[2]).max() > 0.01
    with pytest.raises(SystemExit, match="2"):
        main(["sample", files[2, 0], "--number", "1", *common, str(drawn)])
    assert "--number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_stops_when_its_minutes_are_over_and_its_model_is_compared(tmp_path):
    tiny = tmp_path / "tiny.yaml"
    network = network_settings(NARROW)
    tiny.write_text(yaml.safe_dump({**TINY_DATA, **network, "max_iterations": 10**6}), encoding="utf-8")
    method = BundleMethod(config_paths("inference", "effort/no_refine"), "", network)
    files, lines = [*config_paths("train"), str(tiny)], []
    trained = train_alike(method, files, tmp_path / "GroupMorph", 0.05, 3, lines.append)
    assert 0 < len(lines) < 1000 and lines[0].startswith("GroupMorph: 20 iterations")
    assert torch.load(trained.weights, weights_only=True).keys() == GroupSetVAE(**NARROW).state_dict().keys()
    case = {"name": "one", **make_phantom(6, (32, 28, 24), 3, max_motion_voxels=3, landmarks=50)}
    *_, row = compare([case], {"trained": trained}, progress=lambda line: None)
    assert row["inverse consistency, voxels"] < 0.1


def test_own_series_by_folder_and_by_list(phantom, save_series, tmp_path):
    # Three scans, as the time of the initial alignment grows with the square of their number.
    part = {**phantom, "image": phantom["image"][:3]}
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        save_series(part, tmp_path / "data" / name)
    train(tmp_path / "by_folder", dataset_dir=str(tmp_path / "data"), max_iterations=2)
    _, before_mm = read_scalars(tmp_path / "by_folder", "landmark_before_mm")
    distance = (phantom["landmarks"][0] - phantom["landmarks"][1]).norm(dim=-1).mean().item()
    assert before_mm[0] == pytest.approx(distance, rel=0.6)

    entry = {"image": [f"a/t{k:02d}.nii.gz" for k in range(3)]}
    write_json(tmp_path / "data" / "dataset.json", {"training": [entry], "validation": [{"image": "b"}]})
    train(tmp_path / "by_list", dataset_dir=str(tmp_path / "data"), max_iterations=2, initial_alignment="none")
    assert last_weights(tmp_path / "by_list")


def test_whole_scans_are_brought_together_before_training(phantom, save_series, tmp_path):
    static = phantom["image"][:1].expand(2, -1, -1, -1), phantom["landmarks"][:1].expand(2, -1, -1)
    for folder in (tmp_path / "data" / name for name in ("a", "b")):
        folder.mkdir(parents=True)
        save_series({"image": static[0], "landmarks": static[1], "affine": phantom["affine"]}, folder)
        scan = nibabel.load(folder / "t01.nii.gz")
        affine = scan.affine.copy()
        affine[0, 3] += 8
        write_nifti(folder / "t01.nii.gz", scan.get_fdata(), affine)
        points = np.loadtxt(folder / "landmarks_01.csv", delimiter=",", skiprows=1) + [8, 0, 0]
        np.savetxt(folder / "landmarks_01.csv", points, delimiter=",", header="x,y,z", comments="")
    train(tmp_path / "out", dataset_dir=str(tmp_path / "data"), max_iterations=2, learning_rate=0.0)
    before_mm, after_mm = (read_scalars(tmp_path / "out", f"landmark_{when}_mm")[1] for when in ("before", "after"))
    assert before_mm[0] == pytest.approx(8, abs=0.01) and after_mm[0] < 0.5


def test_training_begins_from_given_weights(finished, tmp_path, capsys):
    begun = finished / "model_best.pt"
    train(tmp_path / "here", weights=str(begun), max_iterations=2, learning_rate=0.0)
    assert same_weights(tmp_path / "here", torch.load(begun, weights_only=True))
    # A resumed training continues from its own weights and ignores the initial ones.
    train(tmp_path / "begun", weights=str(begun), max_iterations=2, lr_scheduler=RATE_OF_FOUR)
    train(tmp_path / "begun", weights=str(begun))
    train(tmp_path / "at_once", weights=str(begun))
    assert same_weights(tmp_path / "begun", last_weights(tmp_path / "at_once"))
    absent = tmp_path / "absent.pt"
    assert main(["train", "--phantoms", "--weights", str(absent), "--output", str(tmp_path / "there")]) == 2
    assert f"groupmorph: weights: {absent}: expected a file, found none" in capsys.readouterr().err


@pytest.mark.slow
def test_training_lowers_the_bound(tmp_path):
    train(
        tmp_path, max_iterations=40, iterations_per_epoch=5, learning_rate=3e-3, phantoms_training=1,
        phantom_size_voxels=[24, 24, 24], patch_size_voxels=[24, 24, 24], **{"network_def#initial_std_voxels": 0.15},
    )  # fmt: skip
    _, losses = read_scalars(tmp_path, "validation_loss")
    assert losses[-1] < losses[0] - 0.1
