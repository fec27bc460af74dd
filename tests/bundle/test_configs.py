"""The configs fulfil the requirements of MONAI, its model zoo and this package's design."""

import re

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.networks.utils import copy_model_state

from groupmorph_monai.apps.configs import config_files
from groupmorph_monai.space import FlowSequence, RungeKutta4

MAIN = ["train", "inference", "evaluate"]
FILES = {"meta": "metadata.json", "config": "inference.yaml"}
KINDS = {"affine_phantoms": "affine_phantom", "breast": "breast", "hearts": "heart", "thorax": "thorax"}
ALL = [*MAIN, "multi_gpu_train", "multi_gpu_evaluate", "batch_inference"]


def load(bundle, name):
    return yaml.safe_load((bundle / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))


def parser_of(name, *overlays):
    parser = ConfigParser()
    parser.read_config(config_files(name, overlays))
    return parser


def expressions(node):
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from expressions(item)
    elif isinstance(node, str) and node.startswith("$"):
        yield node


@pytest.mark.parametrize(
    "part", ["network_def", "posterior", "alignment", "flow", "transformation", "likelihood", "prior"]
)
def test_each_part_is_the_same_in_every_config(part):
    training, inference, evaluation = (parser_of(name)[part] for name in MAIN)
    assert training == inference == evaluation


def test_an_evaluation_registers_as_inference_does(bundle):
    own, registration = load(bundle, "evaluate"), load(bundle, "inference")
    shared = {"network_def", "inferer", "refinement", "alignment", "likelihood", "prior", "preprocessing", "evaluator"}
    assert shared <= set(registration) and not shared & {name.split("#")[0] for name in own}
    # Entries in both files differ.
    assert all(own[name] != registration[name] for name in set(own) & set(registration) - {"output_dir"})


@pytest.mark.parametrize("overlay", KINDS)
def test_an_evaluation_makes_the_phantoms_of_its_data_overlay(overlay):
    default, parser = parser_of("evaluate"), parser_of("evaluate", f"data/{overlay}")
    kinds = [set().union(*each.get_parsed_content("validation_phantoms")) for each in (default, parser)]
    assert kinds[0] == {"phantom"} and kinds[1] == {KINDS[overlay]}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", MAIN)
def test_every_piece_of_a_velocity_in_time_takes_the_integrator(name, order):
    overlays = ("models/time_dependent", "integrators/runge_kutta")
    sequence = parser_of(name, *overlays[::order]).get_parsed_content("transformation")
    assert isinstance(sequence, FlowSequence) and isinstance(sequence.flow, RungeKutta4)


def test_velocities_that_do_not_change_with_time_cost_what_stationary_ones_do():
    z = torch.rand(1, 2, 3, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    energies = [
        parser.get_parsed_content("prior").energy(velocities).sum(dim=2)
        for parser, velocities in (
            (parser_of("train"), z),
            (parser_of("train", "models/time_dependent"), z.repeat(1, 1, 3, 1, 1, 1)),
        )
    ]
    assert energies[0].min() > 0.1
    torch.testing.assert_close(energies[1], energies[0])


def test_no_expression_names_the_package(bundle):
    # Names in expressions are imported first, before a released bundle adds its package to the path.
    configs = sorted((bundle / "configs").rglob("*.yaml"))
    contents = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in configs]
    assert len(configs) > 30 and not [e for e in expressions(contents) if "groupmorph_monai" in e]


@pytest.mark.parametrize("name", ALL)
def test_expressions_hold_no_logic(bundle, name):
    for expression in expressions(load(bundle, name)):
        # Only the location of the bundle and the device depend on the environment.
        plain = re.sub(r"'[^']*' if os\.path\.isdir|'cuda.* if torch\.cuda|'nccl' if torch\.cuda", "", expression)
        assert not re.search(r"\blambda\b|\bfor\b|\bif\b", plain), expression


@pytest.mark.parametrize("name, kind", [("train", "train"), ("inference", "inference")])
def test_monai_finds_every_property(bundle, series, tmp_path, name, kind):
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / f"{name}.yaml"), workflow_type=kind, bundle_root=str(bundle),
        output_dir=str(tmp_path), **({"series": series} if kind == "inference" else {}),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []


def test_monai_verifies_what_the_network_takes_and_gives(bundle):
    files = {f"{kind}_file": str(bundle / "configs" / name) for kind, name in FILES.items()}
    verify_net_in_out("network_def", device="cpu", **files)
    with pytest.raises(ValueError, match="channel number"):
        wrong = {"_meta_#network_data_format#outputs#pred#num_channels": 1}
        verify_net_in_out("network_def", device="cpu", **files, **wrong)


def test_the_shipped_weights_fit_and_export(bundle, tmp_path):
    parser = ConfigParser(load(bundle, "inference"))
    network = parser.get_parsed_content("network_def").eval()
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network.load_state_dict(weights)
    exported = tmp_path / "model.ts"
    ckpt_export(
        "network_def", filepath=str(exported), ckpt_file=str(bundle / "models" / "model.pt"),
        **{f"{kind}_file": str(bundle / "configs" / name) for kind, name in FILES.items()}, key_in_ckpt="",
    )  # fmt: skip
    x = torch.rand(1, 6, 20, 17, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(exported))(x), network(x), atol=1e-5, rtol=1e-4)
    _, changed, unchanged = copy_model_state(network, weights, inplace=False)
    assert len(changed) == len(weights) and not unchanged
    assert (bundle / "models" / "model.pt").stat().st_size < 5e6


@pytest.mark.parametrize(
    "overlays",
    ["models/groupmorph", "models/groupmorph modes/all_to_one", "models/voxelmorph_diff", "models/krebs_cvae",
     "models/avsm", "models/avsm_affine"],
)  # fmt: skip
def test_weights_that_overlays_name_are_those_of_their_network(bundle, overlays):
    parser = parser_of("inference", *overlays.split())
    parser["bundle_root"] = str(bundle)
    file = parser.get_parsed_content("weights")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(file, weights_only=True))
    assert parser.get_parsed_content("model_weights") != "model.pt" and (bundle / "models" / file).stat().st_size < 5e6
