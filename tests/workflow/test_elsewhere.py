"""Registration, training and evaluation on the stand-in device: all tensors are on the right device, without needless
copies or synchronisations, and results equal the CPU's."""

from collections import Counter

import pytest
import torch
from monai.bundle import ConfigWorkflow
from stand_in_device import ELSEWHERE, Elsewhere, Traffic

from groupmorph_monai.apps.configs import bundle_root, config_files
from groupmorph_monai.data import make_phantom
from groupmorph_monai.workflow.parsed_config import parsed_config

MODELS = sorted(f"models/{file.stem}" for file in (bundle_root() / "configs" / "models").glob("*.yaml"))
TINY = {
    "phantom_size_voxels": [20, 20, 20],
    "patch_size_voxels": [16, 16, 16],
    "phantoms_training": 1,
    "phantoms_validation": 1,
    "max_iterations": 2,
    "iterations_per_epoch": 2,
    "refinement_levels_voxels": [1],
    "refinement_iterations": [1],
}


def parts(overlays=(), config="inference", **settings):
    return parsed_config(config_files(config, overlays), settings)


def series(timepoints, size=(20, 18, 16)):
    image = make_phantom(1, size, timepoints, max_motion_voxels=1.0)["image"][None]
    return (image - image.amin()) / (image.amax() - image.amin())


def registered(image, device, overlays=(), **settings):
    """Run the bundle's inferer; return its output on the CPU, and the copies and waits that it caused."""
    parser = parts(overlays, network_bf16=False, **settings)
    torch.manual_seed(0)
    network, inferer = (parser.get_parsed_content(name) for name in ("network_def", "inferer"))
    with Traffic() as traffic, torch.no_grad():
        network, image = network.eval().to(device), image.to(device)
        traffic.events.clear()
        result = inferer(image, network)
        events = list(traffic.events)
        names = [name for name in ("warped", "ddf", "inverse_ddf", "ddf_std") if name in result]
        return {name: result[name].cpu() for name in names}, events


def counts(events):
    return Counter((kind, place) for kind, _, place in events)


def test_tensors_of_two_devices_do_not_meet_and_what_is_read_is_counted():
    with Traffic() as traffic:
        on_device = torch.ones(3, 2).to(ELSEWHERE)
        with pytest.raises(RuntimeError, match="one device"):
            on_device + torch.ones(3, 2)
        assert traffic.events.pop()[0] == "copy to" and not traffic.events
        view = (on_device * torch.tensor(2.0))[1:]  # numbers of the CPU are allowed
        view.add_(1)
        assert not traffic.events
        assert float(view.sum()) == 12 and bool((view > 2).all()) and view.tolist() == [[3, 3], [3, 3]]
        on_device[on_device > 0]
        torch.tensor([1.0], device=ELSEWHERE)
        assert [kind for kind, *_ in traffic.events] == ["wait", "wait", "copy from", "wait", "copy to"]


def test_an_iteration_reads_its_convergence_and_a_conjugate_gradient_step_nothing():
    image, events = series(2, (12, 10, 9)), {}
    for iterations, steps in ((1, 2), (3, 2), (3, 5)):
        _, events[iterations, steps] = registered(
            image, ELSEWHERE, refinement_levels_voxels=[1], refinement_iterations=[iterations],
            refinement_tolerance=0.0, refinement_conjugate_steps=steps,
        )  # fmt: skip
    more = counts(events[3, 2]) - counts(events[1, 2])
    assert sum(more.values()) == 2 and {kind for kind, _ in more} == {"copy from"} and len(more) == 1
    assert counts(events[3, 5]) == counts(events[3, 2])


def test_draws_are_the_cpus(monkeypatch):
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    image = series(2, (12, 10, 9))
    settings = {"refinement_levels_voxels": [1], "refinement_iterations": [1], "std_draws": 2}
    (on_device, _), (on_cpu, _) = (registered(image, device, **settings) for device in (ELSEWHERE, "cpu"))
    torch.testing.assert_close(on_device["ddf_std"], on_cpu["ddf_std"], rtol=0.05, atol=0.01)


def training_step(overlays, device):
    """Loss of the second iteration, and its traffic."""
    parser = parts(overlays, "train", device=torch.device(device), **TINY)
    torch.manual_seed(0)
    network, inferer, loss = (parser.get_parsed_content(n) for n in ("network", "train#inferer", "loss"))
    optimizer, image = parser.get_parsed_content("optimizer"), series(parser.get_parsed_content("timepoints") or 2)
    image = image.to(device)
    for _ in range(2):
        traffic = Traffic()
        with traffic:
            optimizer.zero_grad()
            value = loss(inferer(image, network.train()))
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
    return value, traffic.events


def test_a_training_iteration_neither_copies_nor_waits():
    with Traffic():
        value, events = training_step((), ELSEWHERE)
    assert not events and torch.isfinite(value.cpu())


@pytest.mark.slow
@pytest.mark.parametrize("overlay", MODELS)
def test_every_model_registers_as_on_the_cpu(overlay):
    timepoints = parts((overlay,)).get_parsed_content("timepoints") or 2
    settings = {"refinement_levels_voxels": [2, 1], "refinement_iterations": [2, 2]}
    (on_device, _), (on_cpu, _) = (
        registered(series(timepoints), d, (overlay,), **settings) for d in (ELSEWHERE, "cpu")
    )
    for name, values in on_cpu.items():
        torch.testing.assert_close(on_device[name], values, rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", MODELS)
def test_every_model_trains_without_waiting(overlay):
    with Traffic():
        value, events = training_step((overlay,), ELSEWHERE)
    # The solvers of torchdiffeq look at their times.
    assert {place.split(":")[0] for _, _, place in events} <= {"integrate.py"} and torch.isfinite(value.cpu())


@pytest.mark.slow
@pytest.mark.parametrize("config, run_id", [("train", "training"), ("evaluate", "evaluate")])
def test_engines_run_through(config, run_id, tmp_path):
    own = {"phantoms": 1, "handlers#0#device": "cpu"} if config == "evaluate" else {}
    # PyTorch loads only classes that are declared safe.
    torch.serialization.add_safe_globals([Elsewhere])
    with Traffic():
        workflow = ConfigWorkflow(
            config_file=config_files(config, ()), run_id=run_id, logging_file=False, bundle_root=str(bundle_root()),
            device=ELSEWHERE, output_dir=str(tmp_path), **{**TINY, **own},
        )  # fmt: skip
        for step in (workflow.initialize, workflow.run, workflow.finalize):
            step()
    assert (tmp_path / ("metrics.csv" if config == "evaluate" else "model_best.pt")).stat().st_size > 0
