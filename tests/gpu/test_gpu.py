"""On a GPU, results agree with the CPU's up to rounding; a table lists seconds and memory."""

import time
from functools import partial

import numpy as np
import pytest
import torch

from groupmorph_monai.apps.configs import bundle_root, config_files
from groupmorph_monai.data import make_phantom
from groupmorph_monai.workflow.parsed_config import parsed_config
from groupmorph_monai.workflow.weights import read_weights

if not torch.cuda.is_available():
    pytest.skip("PyTorch finds no GPU on this machine", allow_module_level=True)
pytestmark = pytest.mark.gpu
# With the overlay's random weights, as none are shipped.
MODELS = sorted(f"models/{file.stem}" for file in (bundle_root() / "configs" / "models").glob("*.yaml"))

KINDS = {"one pass": ("effort/no_refine",), "refined": ()}


def parts(overlays=(), config="inference", **settings):
    return parsed_config(config_files(config, overlays), settings)


def shipped_model(device, overlays=(), **settings):
    parser = parts(overlays, device=torch.device(device), **settings)
    network = parser.get_parsed_content("network_def").eval().to(device)
    network.load_state_dict(read_weights(bundle_root() / "models" / "model.pt", device))
    return network, parser.get_parsed_content("inferer")


def scaled(image):
    return ((image - image.amin()) / (image.amax() - image.amin()))[None]


@torch.no_grad()
def test_the_demo_registers_as_on_the_cpu():
    image, fields = scaled(make_phantom(7, (64, 64, 48), 4, max_motion_voxels=4.0)["image"]), []
    for device in ("cpu", "cuda"):
        network, inferer = shipped_model(device, network_bf16=False)
        fields.append(inferer(image.to(device), network)["ddf"].cpu())
    difference = (fields[0] - fields[1]).norm(dim=2)
    # Each step ends at a small residual, which several fields have: in air, they differ by more than rounding errors.
    assert difference.mean() < 0.02 and fields[0].norm(dim=2).mean() > 0.5


@pytest.mark.parametrize("overlay", MODELS)
def test_every_model_registers_as_on_the_cpu(overlay):
    # Krebs' correlation subtracts no mean: shifts that smooth noise increase it, in a direction that depends on
    # rounding.
    overlays = (overlay, "effort/no_refine") if overlay == "models/krebs_cvae" else (overlay,)
    timepoints = parts(overlays).get_parsed_content("timepoints") or 2
    image, fields = scaled(make_phantom(1, (40, 36, 32), timepoints, max_motion_voxels=1.0)["image"]), []
    for device in ("cpu", "cuda"):
        parser = parts(overlays, device=torch.device(device), network_bf16=False)
        torch.manual_seed(0)
        network, inferer = (parser.get_parsed_content(name) for name in ("network_def", "inferer"))
        with torch.no_grad():
            fields.append(inferer(image.to(device), network.eval().to(device))["ddf"].cpu())
    assert (fields[0] - fields[1]).norm(dim=2).mean() < 0.02


def test_a_training_iteration_has_the_cpus_loss_and_gradient():
    image, results = scaled(make_phantom(1, (32, 32, 32), 3)["image"]), []
    for device in ("cpu", "cuda"):
        # Without draws of z, which differ between devices.
        parser = parts((), "train", device=torch.device(device))
        torch.manual_seed(0)
        network, inferer, loss = (parser.get_parsed_content(n) for n in ("network", "inferer", "loss"))
        prediction = inferer.predict(image.to(device), network)
        value = loss(inferer.warped(image.to(device), prediction))
        value.backward()
        results.append((value.item(), torch.cat([p.grad.flatten().cpu() for p in network.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-3)
    assert torch.nn.functional.cosine_similarity(results[0][1], results[1][1], dim=0) > 0.999


def measured(work):
    """Measure the seconds of the second run, and the peak GPU memory in GB."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 1e9


def row(name, work):
    """Make a row of the table, also if the memory does not suffice."""
    try:
        seconds, memory_gb = measured(work)
        print(f"| {name} | {seconds:.3g} | {memory_gb:.3g} |", flush=True)
    except torch.cuda.OutOfMemoryError:
        print(f"| {name} | - | more than there is |", flush=True)
        torch.cuda.empty_cache()


def test_table_of_seconds_and_memory():
    print(f"\n{torch.cuda.get_device_name()}\n\n| what | seconds | memory, GB |\n|---|---|---|")
    models = {kind: shipped_model("cuda", overlays) for kind, overlays in KINDS.items()}
    for size in ((96, 96, 64), (371, 371, 180)):
        small = make_phantom(5, [round(n / 5) for n in size], 20)["image"][None]
        series = scaled(torch.nn.functional.interpolate(small, size, mode="trilinear", align_corners=True)[0])
        for timepoints in (6, 20):
            image = series[:, :timepoints].cuda()
            for kind, (network, inferer) in models.items():
                with torch.no_grad():
                    row(f"{kind}, {' x '.join(map(str, size))}, K = {timepoints}", partial(inferer, image, network))
    parser = parts((), "train", device=torch.device("cuda"))
    network, inferer, loss, optimizer = (
        parser.get_parsed_content(name) for name in ("network", "train#inferer", "loss", "optimizer")
    )
    image = torch.from_numpy(np.random.default_rng(0).random((1, 4, 96, 96, 96), np.float32)).cuda()

    def iterate():
        optimizer.zero_grad()
        loss(inferer(image, network)).backward()
        optimizer.step()

    row("training iteration, 96 x 96 x 96, K = 4", iterate)
